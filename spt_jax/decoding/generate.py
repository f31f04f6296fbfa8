"""Answers of every row by the method that a `DecodeConfig` asks for, with scores that compare.

Whatever the method, a score is the log-probability under the model, not under what was drawn from,
divided by the answer's tokens to the power `length_penalty`.
"""

import jax.numpy as jnp

from spt_jax.config.decode import DecodeConfig
from spt_jax.decoding.beam import beam_search
from spt_jax.decoding.loop import EOS_ID, Encoded, likeliest, write
from spt_jax.decoding.sampling import make_sampler
from spt_jax.t5 import T5
from spt_jax.typing import Array, Bool, Float, Int, Key, Params


def generate(
    model: T5,
    params: Params,
    inputs: Int[Array, "B T"],
    config: DecodeConfig,
    *,
    length: int,
    key: Key | None = None,
    row_numbers: Int[Array, " B"] | None = None,
    prompt_mask: Bool[Array, "B P"] | None = None,
    encoded: Encoded | None = None,
) -> tuple[Int[Array, "B R U"], Float[Array, "B R"]]:
    """The R = `num_results` answers of every row, and their scores, best first.

    It is pure and jits with `model`, `config` and `length` static. To sample several answers, map
    over keys: `jax.vmap(lambda key: generate(..., key=key))(jax.random.split(key, 10))` encodes
    the inputs once.

    Args:
        model: The T5.
        params: With or without a prompt.
        inputs: Token ids, 0 where padded.
        config: How to decode.
        length: Most tokens to write, U, EOS included.
        key: A `jax.random.key`, for sampling.
        row_numbers: For sampling. What a row draws depends on its inputs, on the key and on its
            number, and on no other row of the batch: give each row its number in the file and it
            draws the same however the rows are batched. Its place in the batch by default.
        prompt_mask: See `forward.prepend`.
        encoded: Result of `forward.encode` for these arguments, if it is known already.

    Returns:
        Ids, 0 after EOS, and scores. Where there are fewer answers than results, as for a row of
        padding alone, the rest is all 0 at -inf.

    Raises:
        ValueError: `config.sample` without a key.
    """
    if config.num_beams > 1:
        return beam_search(
            model, params, inputs, config, length=length, prompt_mask=prompt_mask, encoded=encoded
        )
    choose = likeliest
    if config.sample:
        if key is None:
            raise ValueError("sampling needs a key but key is None; give key=jax.random.key(seed)")
        if row_numbers is None:
            row_numbers = jnp.arange(inputs.shape[0])
        choose = make_sampler(config, key, row_numbers)
    ids, log_probs = write(
        model, params, inputs, choose, length=length, prompt_mask=prompt_mask, encoded=encoded
    )
    ended = ids == EOS_ID
    tokens = jnp.where(jnp.any(ended, axis=1), jnp.argmax(ended, axis=1) + 1, length)
    scores = log_probs / tokens.astype(log_probs.dtype) ** config.length_penalty
    return ids[:, None], scores[:, None]
