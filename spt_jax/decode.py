"""Greedy decoding with a KV cache, and the likelihood of given answers.

The encoder runs once. Both functions are pure and jit as they are.
"""

import jax
import jax.numpy as jnp
from flax import struct

from spt_jax.config import LossConfig
from spt_jax.forward import START_ID, apply_t5, decode, encode
from spt_jax.losses import token_losses
from spt_jax.t5 import T5, Cache
from spt_jax.typing import Array, Bool, Float, Int, Params

EOS_ID = 1


@struct.dataclass
class _Loop:
    """The state of greedy decoding before it reads position `position`.

    Args:
        position: Of the target that is read next, counted from 0, the start id.
        last: The id there, one per row [B, 1].
        ids: What was decoded so far [B, U], 0 elsewhere.
        done: Rows that have ended [B].
        cache: The decoder's.
    """

    position: Int[Array, ""]
    last: Int[Array, "B 1"]
    ids: Int[Array, "B U"]
    done: Bool[Array, " B"]
    cache: Cache


def greedy(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    *,
    length: int,
    prompt_mask: Bool[Array, "B P"] | None = None,
) -> Int[Array, "B U"]:
    """The most likely next token, again and again, until every row has written EOS.

    Args:
        model: The T5.
        params: With or without a prompt.
        inputs: Token ids, 0 where padded.
        length: Most tokens to write, U, EOS included.
        prompt_mask: See `forward.prepend`.

    Returns:
        Ids, 0 after EOS.
    """
    encoded, mask = encode(model, params, inputs, prompt_mask=prompt_mask)
    batch = inputs.shape[0]

    def running(loop: _Loop):
        # Room is left, and some row has not ended.
        return (loop.position < length) & ~jnp.all(loop.done)

    def write_one(loop: _Loop):
        embedded = apply_t5(model, params, loop.last, method="embed")
        logits, cache = apply_t5(
            model, params, embedded, loop.cache, loop.position, mask, method="decode_step"
        )
        best = jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)
        best = jnp.where(loop.done, 0, best)
        return _Loop(
            position=loop.position + 1,
            last=best[:, None],
            ids=jax.lax.dynamic_update_slice_in_dim(loop.ids, best[:, None], loop.position, 1),
            done=loop.done | (best == EOS_ID),
            cache=cache,
        )

    start = _Loop(
        position=jnp.int32(0),
        last=jnp.full((batch, 1), START_ID, jnp.int32),
        ids=jnp.zeros((batch, length), jnp.int32),
        done=~jnp.any(inputs > 0, axis=1),  # rows of padding alone have nothing to say
        cache=apply_t5(model, params, encoded, length, method="start_cache"),
    )
    return jax.lax.while_loop(running, write_one, start).ids


def answer_log_probs(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    answers: Int[Array, "W U"],
    *,
    prompt_mask: Bool[Array, "B P"] | None = None,
) -> Float[Array, "B W"]:
    """log P(answer | inputs) of every answer, its EOS included, for every row.

    Args:
        model: The T5.
        params: With or without a prompt.
        inputs: Token ids, 0 where padded.
        answers: Token ids with EOS, 0 where padded, the same for all rows.
        prompt_mask: See `forward.prepend`.
    """
    encoded, mask = encode(model, params, inputs, prompt_mask=prompt_mask)

    def log_prob(answer: Int[Array, " U"]) -> Float[Array, " B"]:
        targets = jnp.broadcast_to(answer, (inputs.shape[0], answer.shape[0]))
        logits = decode(model, params, encoded, mask, targets)
        loss, _ = token_losses(logits, targets, LossConfig())
        return -jnp.sum(jnp.where(targets > 0, loss, jnp.zeros((), loss.dtype)), axis=1)

    # vmap leaves what does not depend on the answer, such as the keys and values of the encoder's
    # output, computed once.
    return jax.vmap(log_prob, out_axes=1)(answers)
