"""Prompts of many tasks on one frozen model in one array: `bank[task_ids]` is that of each row.

    task 0          no prompt: all vectors masked            rows of a batch without a prompt
    task 1 ... K    a prompt, padded on the left             next to the text, as it was trained
                    a free place: all vectors masked

Capacity and length are fixed when a bank is made. Adding and removing prompts changes values but no
shape, so nothing is compiled again. Names stay on the host, in `PromptBank`; jitted functions take
its `arrays`. A masked vector is 0.

    bank = load_bank(backbone, {"sst2": "runs/sst2", "trec": "runs/trec"})
    params, mask = bank.arrays.prompted({"t5": backbone.params}, bank.task_ids(["trec", None]))
    logits = forward(backbone.model, params, inputs, targets, prompt_mask=mask)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from spt_jax.distributed.main_process import on_main
from spt_jax.errors import require, suggest
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.read import StoredPrompt, read_prompt
from spt_jax.typing import Array, Bool, Float, Int, Params


@struct.dataclass
class BankArrays:
    """The pytree of a bank, an argument of jitted functions.

    Args:
        vectors: Prompts, float32 [1 + K, P, D]; 0 where masked.
        mask: Vectors that are part of a prompt, bool [1 + K, P].
    """

    vectors: Float[Array, "tasks P D"]
    mask: Bool[Array, "tasks P"]

    def __getitem__(
        self, task_ids: Int[Array, " B"]
    ) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
        """Return the prompt of each row and its mask, as `forward.prepend` takes them."""
        return self.vectors[task_ids], self.mask[task_ids]

    def prompted(
        self, params: Params, task_ids: Int[Array, " B"]
    ) -> tuple[Params, Bool[Array, "B P"]]:
        """Return `{"t5": ...}` with the prompt of each row, and the mask of these prompts."""
        prompts, mask = self[task_ids]
        return {"t5": params["t5"], "prompt": prompts}, mask


@jax.jit
def _set(
    arrays: BankArrays,
    task: Int[Array, ""],
    vectors: Float[Array, "P D"],
    mask: Bool[Array, " P"],
) -> BankArrays:
    return BankArrays(arrays.vectors.at[task].set(vectors), arrays.mask.at[task].set(mask))


@dataclass(frozen=True)
class PromptBank:
    """Prompts by name. A bank is immutable: `add` and `remove` return a new one.

    Args:
        names: Names of tasks 1 to K in order; None where a place is free.
        arrays: Arrays for jitted functions.
    """

    names: tuple[str | None, ...]
    arrays: BankArrays

    @classmethod
    def empty(cls, capacity: int, length: int, d_model: int) -> "PromptBank":
        """Return a bank without prompts.

        Args:
            capacity: Most prompts that it can hold, K.
            length: Vectors of the longest prompt that it can hold, P.
            d_model: Width of the model, D.

        Raises:
            ValueError: One of them is negative.
        """
        for name, value in (("capacity", capacity), ("length", length), ("d_model", d_model)):
            require(value >= 0, f"{name} of the bank is {value}, expected 0 or more")
        vectors = jnp.zeros((1 + capacity, length, d_model), jnp.float32)
        return cls((None,) * capacity, BankArrays(vectors, jnp.zeros(vectors.shape[:2], bool)))

    @classmethod
    def from_prompts(
        cls,
        prompts: Mapping[str, Float[Array, "p D"] | np.ndarray],
        d_model: int,
        *,
        capacity: int | None = None,
        length: int | None = None,
    ) -> "PromptBank":
        """Return a bank of prompts by name, by default with room for these alone.

        Raises:
            ValueError: See `empty` and `add`.
        """
        longest = max((len(prompt) for prompt in prompts.values()), default=0)
        bank = cls.empty(
            len(prompts) if capacity is None else capacity,
            longest if length is None else length,
            d_model,
        )
        for name, prompt in prompts.items():
            bank = bank.add(name, prompt)
        return bank

    @classmethod
    def of_params(cls, params: Params, d_model: int) -> "tuple[PromptBank, str | None]":
        """Return a bank of the prompt of params, and its name; None if there is no prompt."""
        prompts = {"prompt": params["prompt"]} if "prompt" in params else {}
        return cls.from_prompts(prompts, d_model), next(iter(prompts), None)

    def __contains__(self, name: str) -> bool:
        return name is not None and name in self.names

    def __getitem__(
        self, task_ids: Int[Array, " B"] | np.ndarray
    ) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
        """Return the prompt of each row and its mask, as `forward.prepend` takes them."""
        return self.arrays[jnp.asarray(task_ids)]

    def add(self, name: str, prompt: Float[Array, "p D"] | np.ndarray) -> "PromptBank":
        """Return the bank with one more prompt, of any length p up to that of the bank.

        Raises:
            ValueError: The name is taken or empty, no place is free, or the prompt is too long or
                not as wide as the model.
        """
        _, length, d_model = self.arrays.vectors.shape
        shape, taken = np.shape(prompt), self._taken()
        require(bool(name), f"the name of a prompt is {name!r}, expected some text")
        require(
            name not in self,
            f"the bank has a prompt '{name}' already; give the other one another name, "
            "or remove the first",
        )
        require(
            None in self.names,
            f"prompt '{name}' finds no place: the bank holds {len(taken)} prompts "
            f"({', '.join(taken) or 'none'}) and its capacity is {len(self.names)}; "
            "remove one, or make a bank of a larger capacity",
        )
        require(
            len(shape) == 2 and shape[0] > 0 and shape[1] == d_model,
            f"prompt '{name}' has shape {list(shape)}, expected [P, {d_model}]: vectors as wide "
            "as those of the model",
        )
        require(
            shape[0] <= length,
            f"prompt '{name}' has {shape[0]} vectors but the bank holds prompts of at most "
            f"{length}; make a bank of length {shape[0]} or more",
        )
        return self._put(self.names.index(None), name, prompt)

    def remove(self, name: str) -> "PromptBank":
        """Return the bank without a prompt; its place is free for another.

        Raises:
            ValueError: There is no prompt of this name.
        """
        task = int(self.task_ids([name])[0])
        require(task > 0, "name is None, which stands for no prompt; give the name of a prompt")
        return self._put(task - 1, None, None)

    def task_ids(self, names: Sequence[str | None]) -> np.ndarray:
        """Return the task of each name as int32[B]; 0 for None.

        Raises:
            ValueError: There is no prompt of a name.
        """
        for name in names:
            if problem := self.problem(name):
                raise ValueError(problem)
        tasks = {None: 0} | {name: task for task, name in enumerate(self.names, 1) if name}
        return np.array([tasks[name] for name in names], np.int32)

    def problem(self, name: str | None) -> str | None:
        """Return why there is no task of this name; None if there is one."""
        if name is None or name in self.names:
            return None
        known = self._taken()
        return (
            f"unknown prompt '{name}'; the bank has {', '.join(known) or 'none'}"
            f"{suggest(name, known)}"
        )

    def _taken(self) -> list[str]:
        return [name for name in self.names if name is not None]

    def _put(self, place: int, name: str | None, prompt: Any) -> "PromptBank":
        """Return the bank with another prompt [p, D], or None, at a place from 0."""
        _, length, d_model = self.arrays.vectors.shape
        vectors, mask = np.zeros((length, d_model), np.float32), np.zeros(length, bool)
        if name is not None:
            vectors[-len(prompt) :], mask[-len(prompt) :] = prompt, True
        names = (*self.names[:place], name, *self.names[place + 1 :])
        return PromptBank(names, _set(self.arrays, np.int32(place + 1), vectors, mask))


def load_prompts(backbone: Backbone, paths: Mapping[str, str | Path]) -> dict[str, StoredPrompt]:
    """Read the prompts of a bank with their metadata; raises as `load_bank`."""
    found = {name: on_main(lambda path=path: read_prompt(path)) for name, path in paths.items()}
    for stored in found.values():
        stored.require_backbone(backbone)
    return found


def load_bank(
    backbone: Backbone,
    paths: Mapping[str, str | Path],
    *,
    capacity: int | None = None,
    length: int | None = None,
) -> PromptBank:
    """Load prompts that were trained on one model.

    Args:
        backbone: The frozen model.
        paths: Path of each prompt by its name, in any format and place that `read_prompt` takes.
        capacity: Most prompts that the bank can hold; as many as there are paths by default.
        length: Vectors of the longest prompt that it can hold; those of the longest by default.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A prompt was trained on another model or with a model of its own, or it is
            refused by `PromptBank.add`.
    """
    prompts = {name: found.prompt for name, found in load_prompts(backbone, paths).items()}
    d_model = backbone.model.config.d_model
    return PromptBank.from_prompts(prompts, d_model, capacity=capacity, length=length)
