"""The child processes of `mixed.py`: the two sides, with the weights of `decode.py`.

Each side answers the same rows in its own way. No side imports the framework of the other.
"""

import importlib
import time
from typing import Any

import numpy as np
from decode_sides import load_ours, load_theirs, prepare, t5_config

__all__ = ["ROLES", "prepare"]


def make_prompts(tasks: int, job: dict, d_model: int) -> np.ndarray:
    """Return the prompts of both sides, float32[tasks, P, D]. Fewer tasks use the first ones."""
    shape = tasks, job["length"], d_model
    return np.random.default_rng(2).standard_normal(shape, np.float32)


def by_task(task_ids: np.ndarray) -> dict[int, np.ndarray]:
    """Return the rows of each task in the order of arrival."""
    return {int(task): np.flatnonzero(task_ids == task) for task in np.unique(task_ids)}


def padded_size(rows: int, batch_size: int) -> int:
    """Return the smallest power of 2, up to the batch size, that is at least `rows`."""
    return min(1 << (rows - 1).bit_length(), batch_size)


class Ours:
    """spt_jax: mixed batches from a prompt bank, and batches of one task each."""

    def __init__(self, job: dict):
        import jax

        from spt_jax.decoding.generate import generate
        from spt_jax.prediction.predictor import answer_batch
        from spt_jax.t5 import T5

        self._job, self._params = job, {"t5": load_ours(job)}
        self._model = T5(t5_config(job["shape"]))
        self._banks: dict[int, Any] = {}
        self._mixed = answer_batch
        self._generate = jax.jit(generate, static_argnames=("model", "config", "length"))
        self.facts = {"prompt_bytes": 4 * job["length"] * self._model.config.d_model}

    def _bank(self, tasks: int) -> Any:
        from spt_jax.prompts.bank import PromptBank

        if tasks not in self._banks:
            prompts = make_prompts(tasks, self._job, self._model.config.d_model)
            bank = PromptBank.empty(tasks, *prompts.shape[1:])
            for number, prompt in enumerate(prompts):
                bank = bank.add(f"task {number}", prompt)
            self._banks[tasks] = bank
        return self._banks[tasks]

    def mixed(self, inputs: np.ndarray, arrivals: dict[int, np.ndarray]) -> dict[int, dict]:
        """Answer in batches of the order of arrival, regardless of the tasks of their rows.

        Each batch is answered for every number of tasks in turn, so that a slow moment of the
        machine affects all numbers equally.
        """
        from spt_jax.config.decode import DecodeConfig

        size, order = self._job["batch_size"], list(arrivals)
        banks = {tasks: self._bank(tasks) for tasks in order}
        seconds, ids = dict.fromkeys(order, 0.0), {tasks: [] for tasks in order}
        for first in range(0, len(inputs), size):
            rows = slice(first, first + size)
            for tasks in order:
                started = time.perf_counter()
                written, _ = self._mixed(
                    self._model,
                    self._params,
                    banks[tasks].arrays,
                    arrivals[tasks][rows] + np.int32(1),  # 0 is a row without a prompt
                    inputs[rows],
                    DecodeConfig(),
                    length=self._job["targets_length"],
                )
                ids[tasks].append(np.asarray(written)[:, 0])
                seconds[tasks] += time.perf_counter() - started
            order.reverse()
        return {
            tasks: {"seconds": seconds[tasks], "ids": np.concatenate(ids[tasks])} for tasks in order
        }

    def one_task(self, inputs: np.ndarray, task_ids: np.ndarray, tasks: int) -> dict:
        """Answer in batches of one task, each padded to a power of 2 of rows."""
        from spt_jax.config.decode import DecodeConfig

        prompts, size = self._bank(tasks).arrays.vectors, self._job["batch_size"]
        params = {task: {**self._params, "prompt": prompts[task + 1]} for task in range(tasks)}
        answers = np.zeros((len(inputs), self._job["targets_length"]), np.int32)
        started = time.perf_counter()
        for task, rows in by_task(task_ids).items():
            for first in range(0, len(rows), size):
                places = rows[first : first + size]
                padding = padded_size(len(places), size) - len(places)
                ids, _ = self._generate(
                    self._model,
                    params[task],
                    np.pad(inputs[places], ((0, padding), (0, 0))),
                    DecodeConfig(),
                    length=self._job["targets_length"],
                )
                answers[places] = np.asarray(ids)[: len(places), 0]
        return {"seconds": time.perf_counter() - started, "ids": answers}

    def compile_sizes(self, inputs: np.ndarray, tasks: int) -> None:
        """Run `one_task` once for every number of rows that a batch may have."""
        size = 1
        while size < 2 * self._job["batch_size"]:
            rows = np.resize(inputs, (min(size, self._job["batch_size"]), inputs.shape[1]))
            self.one_task(rows, np.zeros(len(rows), np.int32), tasks)
            size *= 2


class Peft:
    """PEFT's prompt tuning adapters on transformers' T5, of which one is active at a time."""

    def __init__(self, job: dict):
        self._torch, self._peft = map(importlib.import_module, ("torch", "peft"))
        base = load_theirs(job)
        self._job, most = job, max(job["tasks"])
        config = self._peft.PromptTuningConfig(
            task_type="SEQ_2_SEQ_LM",
            num_virtual_tokens=job["length"],
            num_transformer_submodules=1,  # its default, 2, adds rows that nothing reads
            inference_mode=True,
        )
        model = self._peft.get_peft_model(base, config, adapter_name="task 0")
        for number, prompt in enumerate(make_prompts(most, job, base.config.d_model)):
            name = f"task {number}"
            if number:
                model.add_adapter(name, config)
            weight = model.prompt_encoder[name].embedding.weight
            weight.data.copy_(self._torch.from_numpy(prompt))
        self._model: Any = model.eval()
        self.facts = {
            "threads": self._torch.get_num_threads(),
            "attention": base.config._attn_implementation,
        }

    def switching(self, inputs: np.ndarray, task_ids: np.ndarray, tasks: int) -> dict:
        """Answer in unpadded batches of one task, after switching to its adapter."""
        size = self._job["batch_size"]
        ids = self._torch.from_numpy(inputs.astype(np.int64))
        answers = np.zeros((len(inputs), self._job["targets_length"]), np.int32)
        started = time.perf_counter()
        for task, rows in by_task(task_ids).items():
            self._model.set_adapter(f"task {task}", inference_mode=True)
            for first in range(0, len(rows), size):
                places = rows[first : first + size]
                with self._torch.inference_mode():
                    written = self._model.generate(
                        input_ids=ids[places],
                        attention_mask=self._torch.ones_like(ids[places]),
                        do_sample=False,
                        max_new_tokens=self._job["targets_length"],
                    )
                answers[places] = written[:, 1:].numpy()
        return {"seconds": time.perf_counter() - started, "ids": answers}


ROLES = {"spt_jax": Ours, "peft": Peft}
