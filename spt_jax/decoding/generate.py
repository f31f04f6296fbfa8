"""The answers of every row by the method of a `DecodeConfig`, with comparable scores.

With every method a score is the log-probability of the answer under the model, divided by its
number of tokens to the power `length_penalty`. Temperature, top-k and top-p do not change it.
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
    """Return the R = `num_results` answers of every row, and their scores, best first.

    The function is pure; jit it with `model`, `config` and `length` static. To sample several
    answers, map over keys: `jax.vmap(lambda key: generate(..., key=key))(jax.random.split(key,
    10))` encodes the inputs once.

    Args:
        model: The T5.
        params: Params, with or without a prompt.
        inputs: Token ids, 0 for padding.
        config: Method of decoding and its options.
        length: Maximum number U of tokens, EOS included.
        key: A `jax.random.key`, for sampling.
        row_numbers: Numbers of the rows, for sampling; by default places in the batch. The tokens
            that a row draws depend only on its inputs, the key and its number. Give each row its
            number in the file, so that it draws the same tokens in any batch.
        prompt_mask: As in `forward.prepend`.
        encoded: Result of `forward.encode` for these arguments, if it is known already.

    Returns:
        Ids, 0 after EOS, and scores. A missing answer has ids 0 and score -inf; a row of padding
        alone has no answers.

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
    ids, log_probs, _ = write(
        model, params, inputs, choose, length=length, prompt_mask=prompt_mask, encoded=encoded
    )
    ended = ids == EOS_ID
    tokens = jnp.where(jnp.any(ended, axis=1), jnp.argmax(ended, axis=1) + 1, length)
    scores = log_probs / tokens.astype(log_probs.dtype) ** config.length_penalty
    return ids[:, None], scores[:, None]
