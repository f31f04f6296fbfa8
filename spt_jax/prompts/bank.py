"""Many prompts for one frozen model, as one array: `bank[task_ids]` is the prompt of each row.

    task 0          no prompt: every vector masked           rows of a batch without a prompt
    task 1 ... K    a prompt, at the right end of its row    next to the text, as it was trained
                    a free place: every vector masked

Capacity and length are fixed when a bank is made, so adding and removing changes values and no
shape: what was compiled for a bank serves it for good. Names stay on the host, in `PromptBank`;
jitted functions take its `arrays`.

    bank = load_bank(backbone, {"sst2": "runs/sst2", "trec": "runs/trec"})
    params, mask = bank.arrays.prompted({"t5": backbone.params}, bank.task_ids(["trec", None]))
    logits = forward(backbone.model, params, inputs, targets, prompt_mask=mask)

One invariant: a vector that is masked is 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from spt_jax.distributed.main_process import on_main
from spt_jax.errors import require, suggest
from spt_jax.models.backbone import Backbone
from spt_jax.prompts.file import load_prompt, require_same_model
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import open_run
from spt_jax.typing import Array, Bool, Float, Int, Params


@struct.dataclass
class BankArrays:
    """The pytree of a bank, an argument of jitted functions.

    Args:
        vectors: The prompts, float32 [1 + K, P, D]; 0 where masked.
        mask: Which vectors are real [1 + K, P].
    """

    vectors: Float[Array, "tasks P D"]
    mask: Bool[Array, "tasks P"]

    def __getitem__(
        self, task_ids: Int[Array, " B"]
    ) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
        """The prompt of each row and its mask, as `forward.prepend` takes them."""
        return self.vectors[task_ids], self.mask[task_ids]

    def prompted(
        self, params: Params, task_ids: Int[Array, " B"]
    ) -> tuple[Params, Bool[Array, "B P"]]:
        """`{"t5": ...}` with the prompt of each row, and the mask of these prompts."""
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
    """Prompts by name. It is a value: `add` and `remove` give a new bank.

    Args:
        names: Of tasks 1 to K in order; None where a place is free.
        arrays: What jitted functions take.
    """

    names: tuple[str | None, ...]
    arrays: BankArrays

    @classmethod
    def empty(cls, capacity: int, length: int, d_model: int) -> "PromptBank":
        """A bank without prompts.

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
        """A bank of the given prompts, with room for these alone where nothing else is said.

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

    def __contains__(self, name: str) -> bool:
        return name is not None and name in self.names

    def __getitem__(
        self, task_ids: Int[Array, " B"] | np.ndarray
    ) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"]]:
        """The prompt of each row and its mask, as `forward.prepend` takes them."""
        return self.arrays[jnp.asarray(task_ids)]

    def add(self, name: str, prompt: Float[Array, "p D"] | np.ndarray) -> "PromptBank":
        """The bank with one prompt more, of any length p up to that of the bank.

        Raises:
            ValueError: The name is taken or empty, no place is free, or the prompt is too long or
                no prompt of this width.
        """
        _, length, d_model = self.arrays.vectors.shape
        shape = np.shape(prompt)
        taken = self._taken()
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
            len(shape) == 2 and shape[0] > 0,
            f"prompt '{name}' has shape {list(shape)}, expected [P, {d_model}]",
        )
        require(
            shape[1] == d_model,
            f"prompt '{name}' has d_model {shape[1]} but the bank is of a model with {d_model}; "
            "load the model that the prompt was trained on",
        )
        require(
            shape[0] <= length,
            f"prompt '{name}' has {shape[0]} vectors but the bank holds prompts of at most "
            f"{length}; make a bank of length {shape[0]} or more",
        )
        vectors, mask = np.zeros((length, d_model), np.float32), np.zeros(length, bool)
        vectors[length - shape[0] :], mask[length - shape[0] :] = prompt, True
        return self._replace(self.names.index(None), name, vectors, mask)

    def remove(self, name: str) -> "PromptBank":
        """The bank without a prompt; its place is free for another.

        Raises:
            ValueError: There is no prompt of this name.
        """
        task = int(self.task_ids([name])[0])
        require(task > 0, "name is None, which stands for no prompt; give the name of a prompt")
        _, length, d_model = self.arrays.vectors.shape
        vectors, mask = np.zeros((length, d_model), np.float32), np.zeros(length, bool)
        return self._replace(task - 1, None, vectors, mask)

    def task_ids(self, names: Sequence[str | None]) -> np.ndarray:
        """The task of each row as int32[B]: of the prompt with that name, or 0 for None.

        Raises:
            ValueError: There is no prompt of a name.
        """
        for name in names:
            if problem := self.problem(name):
                raise ValueError(problem)
        tasks = {None: 0} | {name: task for task, name in enumerate(self.names, 1) if name}
        return np.array([tasks[name] for name in names], np.int32)

    def problem(self, name: str | None) -> str | None:
        """Why there is no task of this name; None where there is one."""
        if name is None or name in self.names:
            return None
        known = self._taken()
        return (
            f"unknown prompt '{name}'; the bank has {', '.join(known) or 'none'}"
            f"{suggest(name, known)}"
        )

    def _taken(self) -> list[str]:
        return [name for name in self.names if name is not None]

    def _replace(
        self, place: int, name: str | None, vectors: np.ndarray, mask: np.ndarray
    ) -> "PromptBank":
        names = (*self.names[:place], name, *self.names[place + 1 :])
        arrays = _set(self.arrays, np.int32(place + 1), vectors, mask)
        return dataclasses.replace(self, names=names, arrays=arrays)


def load_bank(
    backbone: Backbone,
    paths: Mapping[str, str | Path],
    *,
    capacity: int | None = None,
    length: int | None = None,
) -> PromptBank:
    """A bank of prompts that were trained on one backbone.

    Args:
        backbone: The frozen model.
        paths: Of each prompt by its name: a prompt.safetensors or the folder of a run, each here or
            in a bucket.
        capacity: Most prompts; as many as there are paths by default.
        length: Of the longest prompt; of the longest that is loaded by default.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A prompt was trained on another model or with a model of its own, or it is
            refused by `PromptBank.add`.
    """
    prompts = {name: _load(backbone, Path(path)) for name, path in paths.items()}
    d_model = backbone.model.config.d_model
    return PromptBank.from_prompts(prompts, d_model, capacity=capacity, length=length)


def _load(backbone: Backbone, path: Path) -> np.ndarray:
    return on_main(lambda: _read(backbone, path))


def _read(backbone: Backbone, path: Path) -> np.ndarray:
    with open_run(path) as place:
        if place.is_dir():
            folder = RunFolder(place)
            if folder.config_file.is_file() and folder.read_config()["tune"] == "model":
                raise ValueError(
                    f"run '{place}' tuned the model, so its prompt serves no other model; "
                    "give runs that tuned a prompt alone"
                )
            place = folder.prompt_file
        prompt, metadata = load_prompt(place)
        require_same_model(metadata, backbone, place)
    return prompt
