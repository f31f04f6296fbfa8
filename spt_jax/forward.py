"""The forward pass: put the prompt in front of the embedded input, then run T5.

    encoder input   [p_1 ... p_P, e_1 ... e_T]        positions 0 .. P + T - 1

The prompt vectors and the text all attend to each other; the decoder has no prompt (Lester et al.
2021, section 2). `prepend` is the only function of the project that joins prompt and text.
"""

from typing import Any

import jax
import jax.numpy as jnp

from spt_jax.t5 import T5, Segments
from spt_jax.t5.attention import padded_length
from spt_jax.typing import Array, Bool, Float, Int, Key, Params

START_ID = 0
"""The id that decoding starts from; T5 uses its padding id."""


def apply_t5(model: T5, params: Params, *args, **kwargs) -> Any:
    """Call `model.apply` with the T5 leaves of a params tree."""
    return model.apply({"params": params["t5"]}, *args, **kwargs)


def shift_right(
    targets: Int[Array, "B U"], segments: Int[Array, "B U"] | None = None
) -> Int[Array, "B U"]:
    """Return the decoder's input for predicting `targets`: `START_ID`, then all but the last.

    Args:
        targets: Token ids.
        segments: Example of each target, if rows hold several; each example has a `START_ID`.
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
    """Return the embedded input with a prompt in front, and its mask.

    Args:
        prompt: One prompt [P, D] for all rows, or one per row [B, P, D].
        prompt_mask: True for the real vectors of each row's prompt; by default all are. A prompt
            shorter than P must be at the right end, next to the text, so that its distances to
            the text are those of its training.
        embedded: Embedded text.
        mask: True where a position of the text is no padding.

    Raises:
        ValueError: The width of the prompt is not that of the model.
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
    """Return the encoder's output and its mask, with the prompt of `params` if there is one.

    Args:
        model: The T5.
        params: `{"t5": ...}` and, for a prompt, `"prompt"`: [P, D] or one per row, [B, P, D].
        inputs: Token ids, 0 for padding.
        prompt_mask: As in `prepend`.
        segments: The example of each position, if rows hold several examples.
        dropout_key: Key of the dropout, which is off without one.

    Returns:
        Both with S = P + T positions; on TPU with padding to a multiple of 8, which the attention
        kernel needs.

    Raises:
        ValueError: Rows that hold several examples have a prompt, or the width of the prompt is
            not that of the model.
    """
    if segments is None:
        inputs = _pad(model, inputs, params["prompt"].shape[-2] if "prompt" in params else 0)
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


def _pad(model: T5, inputs: Int[Array, "B T"], prompt: int) -> Int[Array, "B t"]:
    """Return inputs with the padding that `padded_length` wants behind a prompt and them."""
    length = prompt + inputs.shape[1]
    more = padded_length(length, model.attention, model.mesh) - length
    return jnp.pad(inputs, ((0, 0), (0, more))) if more else inputs


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
    """Return the logits of every target, given those before it; `calls` is that of `T5.decode`."""
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
    """Return the logits of every target, in float32 or wider: `encode`, then `decode`."""
    encode_key = decode_key = None
    if dropout_key is not None:
        encode_key, decode_key = jax.random.split(dropout_key)
    encoded, mask = encode(
        model, params, inputs, prompt_mask=prompt_mask, segments=segments, dropout_key=encode_key
    )
    return decode(model, params, encoded, mask, targets, segments=segments, dropout_key=decode_key)
