"""Where a prompt meets T5: prepend, mask, run.

    encoder input   [p_1 ... p_P, e_1 ... e_T]        positions 0 .. P + T - 1

All prompt vectors are attended to, by each other and by the text; the decoder is untouched
(Lester et al. 2021, section 2). There is no other place in the project that knows how.
"""

from typing import Any

import jax
import jax.numpy as jnp

from spt_jax.t5 import T5, Segments
from spt_jax.typing import Array, Bool, Float, Int, Key, Params

START_ID = 0
"""T5 starts decoding from its padding id."""


def apply_t5(model: T5, params: Params, *args, **kwargs) -> Any:
    """`model.apply` on the T5 leaves of a params tree."""
    return model.apply({"params": params["t5"]}, *args, **kwargs)


def shift_right(
    targets: Int[Array, "B U"], segments: Int[Array, "B U"] | None = None
) -> Int[Array, "B U"]:
    """What the decoder reads in order to predict `targets`: each one later, after `START_ID`.

    Args:
        targets: Token ids.
        segments: The example of each target, where a row holds several; each begins anew.
    """
    shifted = jnp.pad(targets, ((0, 0), (1, 0)), constant_values=START_ID)[:, :-1]
    if segments is None:
        return shifted
    before = jnp.pad(segments, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(segments == before, shifted, START_ID)


def prepend(
    prompt: Float[Array, "*b P d"],
    prompt_mask: Bool[Array, "B P"] | None,
    embedded: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """The embedded input with a prompt in front, and its mask.

    Args:
        prompt: One prompt [P, D] for all rows, or one per row [B, P, D].
        prompt_mask: Which vectors of each row's prompt are real; all by default. A prompt shorter
            than P belongs at the right end of its row, next to the text, so that distances are
            those that it was trained with.
        embedded: The embedded text.
        mask: Which of its positions are text.

    Raises:
        ValueError: The prompt's width is not the model's.
    """
    if prompt.shape[-1] != embedded.shape[-1]:
        raise ValueError(
            f"prompt has d_model {prompt.shape[-1]} but the model has {embedded.shape[-1]}; "
            "load the model that the prompt was trained on"
        )
    batch, length = embedded.shape[0], prompt.shape[-2]
    prompt = jnp.broadcast_to(prompt, (batch, *prompt.shape[-2:])).astype(embedded.dtype)
    if prompt_mask is None:
        prompt_mask = jnp.ones((batch, length), bool)
    return jnp.concatenate([prompt, embedded], 1), jnp.concatenate([prompt_mask, mask], 1)


def encode(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    *,
    prompt_mask: Bool[Array, "B P"] | None = None,
    segments: Segments | None = None,
    dropout_key: Key | None = None,
) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
    """The encoder's output and its mask, with the prompt of `params` if it has one.

    Args:
        model: The T5.
        params: `{"t5": ...}` and, for a prompt, `"prompt"`: [P, D] or one per row, [B, P, D].
        inputs: Token ids, 0 where padded.
        prompt_mask: See `prepend`.
        segments: Where a row holds several examples.
        dropout_key: Dropout is on where one is given.

    Raises:
        ValueError: Rows of several examples have a prompt, or the prompt's width is not the
            model's.
    """
    embedded, mask = apply_t5(model, params, inputs, method="embed"), inputs > 0
    if "prompt" in params:
        if segments is not None:
            raise ValueError(
                "rows hold several examples, and a prompt stands in front of one; "
                "give each example a row"
            )
        embedded, mask = prepend(params["prompt"], prompt_mask, embedded, mask)
    train = dropout_key is not None
    rngs = {"dropout": dropout_key} if train else None
    encoded = apply_t5(
        model,
        params,
        embedded,
        mask,
        segments=segments,
        train=train,
        rngs=rngs,
        method="encode",
    )
    return encoded, mask


def decode(
    model: T5,
    params: Params,
    encoded: Float[Array, "B S D"],
    mask: Bool[Array, "B S"],
    targets: Int[Array, "B U"],
    *,
    segments: Segments | None = None,
    dropout_key: Key | None = None,
    calls: int = 1,
) -> Float[Array, "B U V"]:
    """Logits of every target, each given those before it; `calls` as in `T5.decode`."""
    shifted = shift_right(targets, segments and segments.targets)
    embedded = apply_t5(model, params, shifted, method="embed")
    train = dropout_key is not None
    rngs = {"dropout": dropout_key} if train else None
    return apply_t5(
        model,
        params,
        embedded,
        encoded,
        mask,
        segments=segments,
        train=train,
        calls=calls,
        rngs=rngs,
        method="decode",
    )


def forward(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    targets: Int[Array, "B U"],
    *,
    prompt_mask: Bool[Array, "B P"] | None = None,
    segments: Segments | None = None,
    dropout_key: Key | None = None,
) -> Float[Array, "B U V"]:
    """Logits of every target, in float32 or wider: `encode`, then `decode`."""
    encode_key = decode_key = None
    if dropout_key is not None:
        encode_key, decode_key = jax.random.split(dropout_key)
    encoded, mask = encode(
        model, params, inputs, prompt_mask=prompt_mask, segments=segments, dropout_key=encode_key
    )
    return decode(model, params, encoded, mask, targets, segments=segments, dropout_key=decode_key)
