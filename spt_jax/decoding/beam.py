"""Beam search with a KV cache: the best answers of each row, and their scores.

It is that of transformers with `early_stopping=False`. At each step the 2M best continuations of a
row's M beams are looked at, so that M are left to go on with even if every beam ends. Of the M
best, those that end compete by log P / tokens ** length_penalty for the M places of answers. A row
is done when its best beam, scored as if it ended now, does not beat the worst of M answers: a guess
and not a bound where length_penalty > 0, as a longer answer could still have won.

    axes: M beams, R results, C continuations; otherwise those of `typing`

One invariant: a beam is no copy of its row. The beams of a row are its queries: the keys and values
of the encoder's output are there once, and those of the beams stay where they were written
(`t5.cache`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.loop import EOS_ID, Encoded
from spt_jax.decoding.topk import top_k
from spt_jax.forward import START_ID, apply_t5, encode
from spt_jax.t5 import T5
from spt_jax.t5.cache import Past
from spt_jax.t5.layers import wide
from spt_jax.typing import Array, Bool, Float, Int, Params


@struct.dataclass
class _Search:
    """The state of beam search before it reads position `position`.

    Args:
        position: Of the target that is read next, counted from 0, the start id.
        last: The id there, one per beam [B, M].
        ids: What each beam has written so far [B, M, U], 0 elsewhere.
        log_probs: The log-probability of that, best first [B, M]; -inf where there is no beam.
        answers: The best that ended so far, best first [B, M, U]; 0 after EOS.
        scores: Theirs [B, M]; -inf where there is no answer yet.
        done: Rows whose answers are final [B].
        past: What the decoder remembers of all beams.
    """

    position: Int[Array, ""]
    last: Int[Array, "B M"]
    ids: Int[Array, "B M U"]
    log_probs: Float[Array, "B M"]
    answers: Int[Array, "B M U"]
    scores: Float[Array, "B M"]
    done: Bool[Array, " B"]
    past: Past


# Of what is [B, C, ...], those of each row that are chosen, [B, M].
_pick = jax.vmap(lambda row, chosen: row[chosen])


def _extend(
    search: _Search, next_log_probs: Float[Array, "B M V"], config: DecodeConfig
) -> tuple[_Search, Int[Array, "B M"]]:
    """The search with one more token in every beam, its past aside; and each beam's parent."""
    batch, beams, length = search.ids.shape
    vocab = next_log_probs.shape[-1]
    log_probs = search.log_probs[:, :, None] + next_log_probs
    log_probs, place = top_k(log_probs.reshape(batch, beams * vocab), 2 * beams)
    parents, last = place // vocab, place % vocab
    ids = jax.lax.dynamic_update_slice_in_dim(
        _pick(search.ids, parents), last[:, :, None], search.position, axis=2
    )
    ended = (last == EOS_ID) | (search.position == length - 1)
    divisor = (search.position + 1).astype(log_probs.dtype) ** config.length_penalty

    competes = ended & (jnp.arange(2 * beams) < beams)[None] & ~search.done[:, None]
    scores = jnp.where(competes, log_probs / divisor, -jnp.inf)
    # top_k takes the first of equals, so a place without an answer stays as it was, all 0.
    scores, best = jax.lax.top_k(jnp.concatenate([search.scores, scores], axis=1), beams)
    answers = _pick(jnp.concatenate([search.answers, ids], axis=1), best)

    log_probs, best = jax.lax.top_k(jnp.where(ended, -jnp.inf, log_probs), beams)
    extended = dataclasses.replace(
        search,
        position=search.position + 1,
        last=_pick(last, best),
        ids=_pick(ids, best),
        log_probs=log_probs,
        answers=answers,
        scores=scores,
        done=search.done | ~(log_probs[:, 0] / divisor > scores[:, -1]),
    )
    return extended, _pick(parents, best)


def beam_search(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    config: DecodeConfig,
    *,
    length: int,
    prompt_mask: Bool[Array, "B P"] | None = None,
    encoded: Encoded | None = None,
) -> tuple[Int[Array, "B R U"], Float[Array, "B R"]]:
    """The best answers that `num_beams` beams find, until those of every row are final.

    Args:
        model: The T5.
        params: With or without a prompt.
        inputs: Token ids, 0 where padded.
        config: `num_beams`, `num_results` and `length_penalty`.
        length: Most tokens to write, U, EOS included. Beams that reach it count as ended.
        prompt_mask: See `forward.prepend`.
        encoded: Result of `forward.encode` for these arguments, if it is known already.

    Returns:
        Ids, 0 after EOS, and scores, best first. Where there are fewer answers than results, as for
        a row of padding alone, the rest is all 0 at -inf.
    """
    states, mask = encoded or encode(model, params, inputs, prompt_mask=prompt_mask)
    batch, beams = inputs.shape[0], config.num_beams
    dtype = wide(model.dtype)
    cache = apply_t5(model, params, states, length, beams, method="start_cache")

    def running(search: _Search):
        # Room is left, and the answers of some row are not final.
        return (search.position < length) & ~jnp.all(search.done)

    def write_one(search: _Search):
        embedded = apply_t5(model, params, search.last, method="embed")
        now = dataclasses.replace(cache, past=search.past)
        logits, after = apply_t5(
            model, params, embedded, now, search.position, mask, method="decode_step"
        )
        extended, parents = _extend(search, jax.nn.log_softmax(logits), config)
        ancestors = _pick(after.past.ancestors, parents)
        past = dataclasses.replace(after.past, ancestors=ancestors)
        return dataclasses.replace(extended, past=past)

    start = _Search(
        position=jnp.int32(0),
        last=jnp.full((batch, beams), START_ID, jnp.int32),
        ids=jnp.zeros((batch, beams, length), jnp.int32),
        # One beam to start with: more would write the same.
        log_probs=jnp.full((batch, beams), -jnp.inf, dtype).at[:, 0].set(0),
        answers=jnp.zeros((batch, beams, length), jnp.int32),
        scores=jnp.full((batch, beams), -jnp.inf, dtype),
        done=~jnp.any(inputs > 0, axis=1),  # rows of padding alone have nothing to say
        past=cache.past,
    )
    end = jax.lax.while_loop(running, write_one, start)
    return end.answers[:, : config.num_results], end.scores[:, : config.num_results]
