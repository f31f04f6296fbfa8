"""Decoding token by token with a KV cache, and the likelihood of given answers.

The encoder runs once; both can share its output as `encoded`. The result of a row does not depend
on the other rows of its batch. All functions are pure and can be jitted.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from spt_jax.config.train import LossConfig
from spt_jax.decoding.topk import top_k
from spt_jax.forward import START_ID, apply_t5, decode, encode
from spt_jax.losses import token_losses
from spt_jax.t5 import T5
from spt_jax.t5.cache import Past
from spt_jax.t5.layers import wide
from spt_jax.typing import Array, Bool, Float, Int, Params

EOS_ID = 1

Encoded = tuple[Float[Array, "B S D"], Bool[Array, "B S"]]
"""The encoder's output and its mask, as returned by `forward.encode`."""


class Written(NamedTuple):
    """What `write` returns for the rows of a batch.

    Args:
        ids: Token ids, 0 after EOS.
        log_probs: Log-probability of the ids of each row; -inf for a row of padding alone.
        of_tokens: Log-probability of each id, 0 after EOS.
    """

    ids: Int[Array, "B U"]
    log_probs: Float[Array, " B"]
    of_tokens: Float[Array, "B U"]


@struct.dataclass
class _Loop:
    """The state of decoding before it reads position `position`.

    Args:
        position: Position of the target that is read next; the start id has position 0.
        last: Id at that position, one per row.
        ids: Ids that were written so far, then 0.
        log_probs: Log-probability of these ids.
        of_tokens: Log-probability of each of these ids, then 0.
        done: True for rows that have ended.
        past: Keys and values of the targets so far.
    """

    position: Int[Array, ""]
    last: Int[Array, "B 1"]
    ids: Int[Array, "B U"]
    log_probs: Float[Array, " B"]
    of_tokens: Float[Array, "B U"]
    done: Bool[Array, " B"]
    past: Past


def write(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    choose: Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]],
    *,
    length: int,
    prompt_mask: Bool[Array, "B P"] | None = None,
    encoded: Encoded | None = None,
) -> Written:
    """Write the tokens that `choose` takes, until every row has written EOS.

    Args:
        model: The T5.
        params: Params, with or without a prompt.
        inputs: Token ids, 0 for padding.
        choose: Function from the logits of all rows and their position, counted from 0, to one id
            per row.
        length: Maximum number U of tokens, EOS included.
        prompt_mask: As in `forward.prepend`.
        encoded: Result of `forward.encode` for these arguments, if it was computed before.

    Returns:
        Ids and their log-probabilities under the model, also if `choose` draws from another
        distribution. A row of padding alone has ids 0.
    """
    states, mask = encoded or encode(model, params, inputs, prompt_mask=prompt_mask)
    batch, empty = inputs.shape[0], ~jnp.any(inputs > 0, axis=1)
    cache = apply_t5(model, params, states, length, method="start_cache")

    def running(loop: _Loop):
        # There is room for a token, and some row has not ended.
        return (loop.position < length) & ~jnp.all(loop.done)

    def write_one(loop: _Loop):
        embedded = apply_t5(model, params, loop.last, method="embed")
        now = dataclasses.replace(cache, past=loop.past)
        logits, after = apply_t5(
            model, params, embedded, now, loop.position, mask, method="decode_step"
        )
        ids = choose(logits[:, 0], loop.position).astype(jnp.int32)
        ids = jnp.where(loop.done, 0, ids)[:, None]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits[:, 0]), ids, axis=1)
        log_probs = jnp.where(loop.done[:, None], 0, log_probs)
        return _Loop(
            position=loop.position + 1,
            last=ids,
            ids=jax.lax.dynamic_update_slice_in_dim(loop.ids, ids, loop.position, axis=1),
            log_probs=loop.log_probs + log_probs[:, 0],
            of_tokens=jax.lax.dynamic_update_slice_in_dim(
                loop.of_tokens, log_probs, loop.position, axis=1
            ),
            done=loop.done | (ids[:, 0] == EOS_ID),
            past=after.past,
        )

    start = _Loop(
        position=jnp.int32(0),
        last=jnp.full((batch, 1), START_ID, jnp.int32),
        ids=jnp.zeros((batch, length), jnp.int32),
        log_probs=jnp.where(empty, -jnp.inf, jnp.zeros((), wide(model.dtype))),
        of_tokens=jnp.zeros((batch, length), wide(model.dtype)),
        done=empty,
        past=cache.past,
    )
    end = jax.lax.while_loop(running, write_one, start)
    return Written(end.ids, end.log_probs, end.of_tokens)


def likeliest(logits: Float[Array, "B V"], position: Int[Array, ""]) -> Int[Array, " B"]:
    """Return the id with the largest logit of each row, the lowest one of equals."""
    return top_k(logits, 1)[1][:, 0]


def greedy(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    *,
    length: int,
    prompt_mask: Bool[Array, "B P"] | None = None,
) -> Int[Array, "B U"]:
    """Return the ids that `write` gives with `likeliest`."""
    return write(model, params, inputs, likeliest, length=length, prompt_mask=prompt_mask).ids


def answer_log_probs(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    answers: Int[Array, "*b W U"],
    *,
    prompt_mask: Bool[Array, "B P"] | None = None,
    encoded: Encoded | None = None,
) -> Float[Array, "B W"]:
    """Return log P(answer | inputs) of every answer, its EOS included, for every row.

    Args:
        model: The T5.
        params: Params, with or without a prompt.
        inputs: Token ids, 0 for padding.
        answers: Token ids with EOS, 0 for padding: [W, U] for all rows, or [B, W, U].
        prompt_mask: As in `forward.prepend`.
        encoded: As in `write`.
    """
    states, mask = encoded or encode(model, params, inputs, prompt_mask=prompt_mask)

    def log_prob(answer: Int[Array, "*b U"]) -> Float[Array, " B"]:
        targets = jnp.broadcast_to(answer, (inputs.shape[0], answer.shape[-1]))
        logits = decode(model, params, states, mask, targets, calls=answers.shape[-2])
        loss, _ = token_losses(logits, targets, LossConfig())
        return -jnp.sum(jnp.where(targets > 0, loss, jnp.zeros((), loss.dtype)), axis=1)

    # vmap computes only once what does not depend on the answer, such as the keys and values of
    # the encoder's output.
    return jax.vmap(log_prob, in_axes=-2, out_axes=1)(answers)
