import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import pack, random_params

from spt_jax.forward import encode, forward, prepend, shift_right
from spt_jax.t5 import T5, Segments, T5Config

SHAPE = T5Config(
    vocab_size=60,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_heads=2,
    num_layers=1,
    num_decoder_layers=1,
    relpos_buckets=8,
    relpos_max_distance=16,
)
MODEL = T5(SHAPE)
T5_PARAMS = random_params(SHAPE)
# Arrays of numpy, because every operation on one of jax outside of a jit is a program of its own.
INPUTS = np.array([[7, 8, 9, 10, 1], [11, 12, 1, 0, 0]])
TARGETS = np.array([[20, 21, 1], [22, 1, 0]])
PROMPT, OTHER_PROMPT = np.random.default_rng(1).standard_normal((2, 4, 16)).astype(np.float32)


jitted = jax.jit(forward, static_argnums=0)


def logits(prompt=None, inputs=INPUTS, targets=TARGETS, **kwargs):
    params = {"t5": T5_PARAMS} if prompt is None else {"t5": T5_PARAMS, "prompt": prompt}
    return jitted(MODEL, params, inputs, targets, **kwargs)


def test_prompt_of_token_embeddings_equals_those_tokens_in_the_input():
    tokens = np.array([30, 31, 32, 33])
    prompted = logits(np.asarray(T5_PARAMS["token_embedder"]["embedding"])[tokens])
    written = logits(inputs=np.concatenate([np.tile(tokens[None], (2, 1)), INPUTS], 1))
    np.testing.assert_allclose(prompted, written, atol=1e-5)


def test_no_prompt_is_plain_t5():
    @jax.jit
    def plain(params, inputs, targets):
        ids = (inputs, shift_right(targets))
        embed = [MODEL.apply({"params": params}, part, method="embed") for part in ids]
        return MODEL.apply({"params": params}, embed[0], inputs > 0, embed[1])

    np.testing.assert_allclose(logits(), plain(T5_PARAMS, INPUTS, TARGETS), atol=1e-5)


def test_bucket_size_never_changes_logits():
    wide = np.pad(INPUTS, ((0, 0), (0, 11)))
    np.testing.assert_allclose(logits(PROMPT, wide), logits(PROMPT), atol=1e-5)


def test_one_prompt_a_row_equals_each_row_with_its_own():
    both = np.asarray(logits(np.stack([PROMPT, OTHER_PROMPT])))
    np.testing.assert_allclose(both[0], np.asarray(logits(PROMPT))[0], atol=1e-5)
    np.testing.assert_allclose(both[1], np.asarray(logits(OTHER_PROMPT))[1], atol=1e-5)


def test_short_prompts_at_the_right_end_equal_themselves_alone():
    # Lengths 4, 2 and 0 in one batch; what fills the masked places does not matter.
    inputs, targets = INPUTS[[0, 1, 1]], TARGETS[[0, 1, 1]]
    bank = np.full((3, 4, 16), 1e3, np.float32)
    bank[0], bank[1, 2:] = PROMPT, PROMPT[:2]
    mask = np.array([[True] * 4, [False, False, True, True], [False] * 4])
    mixed = np.asarray(logits(bank, inputs, targets, prompt_mask=mask))
    np.testing.assert_allclose(mixed[0], np.asarray(logits(PROMPT))[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], np.asarray(logits(PROMPT[:2]))[1], atol=1e-5)
    np.testing.assert_allclose(mixed[2], np.asarray(logits())[1], atol=1e-5)


def test_mask_is_the_prompt_and_then_the_tokens():
    encoded = jax.jit(encode, static_argnums=0)
    _, mask = encoded(MODEL, {"t5": T5_PARAMS, "prompt": PROMPT[:2]}, INPUTS)
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]


def test_every_prompt_vector_has_a_gradient():
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(logits(p)))))(PROMPT)
    assert np.all(np.linalg.norm(grads, axis=1) > 1e-3)


def test_gradient_equals_finite_differences_in_float64():
    with jax.enable_x64(True):
        model = T5(SHAPE, dtype=jnp.float64)
        t5 = jax.tree.map(lambda x: np.asarray(x, np.float64), T5_PARAMS)
        prompt = PROMPT.astype(np.float64)

        @jax.jit
        @jax.value_and_grad
        def loss_and_grad(prompt):
            out = jitted(model, {"t5": t5, "prompt": prompt}, INPUTS, TARGETS)
            assert out.dtype == jnp.float64
            return jnp.mean(jax.nn.logsumexp(out, axis=-1))

        grad = np.asarray(loss_and_grad(prompt)[1])
        for row, column in ((0, 0), (1, 7), (3, 15)):
            step = np.zeros_like(prompt)
            step[row, column] = 1e-6
            above, below = (float(loss_and_grad(prompt + sign * step)[0]) for sign in (1, -1))
            difference = (above - below) / 2e-6
            np.testing.assert_allclose(grad[row, column], difference, rtol=1e-6)


def test_dropout_reaches_the_prompt():
    model = T5(SHAPE, dropout_rate=0.5)
    params = {"t5": T5_PARAMS, "prompt": PROMPT}

    @jax.jit
    @jax.grad
    def gradient(prompt, key):
        given = {**params, "prompt": prompt}
        return jnp.sum(jnp.square(jitted(model, given, INPUTS, TARGETS, dropout_key=key)))

    grads = [np.asarray(gradient(PROMPT, jax.random.key(k))) for k in (1, 2)]
    # Dropped features of the embedded input have no gradient in any row: [B, 1, D] masks.
    dropped = [np.all(g == 0, axis=0) for g in grads]
    assert 0 < int(dropped[0].sum()) < 16 and not np.array_equal(*dropped)


def test_a_prompt_of_another_width_is_refused():
    with pytest.raises(ValueError, match="prompt has d_model 8 but the model has 16; load the mo"):
        jax.jit(prepend)(PROMPT[:, :8], None, np.zeros((2, 5, 16), np.float32), INPUTS > 0)


@pytest.mark.parametrize("repeats", [1, 3], ids=["few targets", "many targets"])
def test_an_example_in_a_packed_row_is_what_it_is_alone(repeats):
    targets = np.array([[20, 21, 22, 1], [23, 1, 0, 0]])
    alone = np.concatenate([np.asarray(logits(targets=targets))[targets > 0]] * repeats)
    row = pack([*INPUTS] * repeats, [*targets] * repeats, room=1)
    inputs, targets = row["inputs"], row["targets"]
    segments = Segments(row["inputs_segments"], row["targets_segments"])
    packed = np.asarray(logits(inputs=inputs, targets=targets, segments=segments))
    np.testing.assert_allclose(packed[targets > 0], alone, atol=1e-5)
    mixed_up = np.asarray(logits(inputs=inputs, targets=targets))
    assert np.max(np.abs(mixed_up[targets > 0] - alone)) > 0.1


def test_packed_rows_have_no_prompt():
    row = pack(INPUTS, TARGETS)
    segments = Segments(row["inputs_segments"], row["targets_segments"])
    with pytest.raises(ValueError, match="several examples, and a prompt stands in front of one"):
        logits(PROMPT, row["inputs"], row["targets"], segments=segments)
