"""The child processes of `decode.py`: one that makes weights, and the two sides.

Each side loads the weights as its users do and offers `generate`. No side imports the framework of
the other.
"""

import functools
import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from step_sides import ROOT, TINY


def t5_config(shape: str) -> Any:
    """Return the config of a T5 1.1 shape, or of a toy."""
    from spt_jax.t5 import PRESETS, T5Config

    return T5Config(**TINY) if shape == "tiny" else PRESETS[f"t5-v1_1-{shape}"]


def prepare(job: dict) -> dict:
    """Write the same random weights for both sides to the job's folder.

    The end marker's column of the head is 0, so its logit is 0. The largest of thousands of other
    logits is far above, so no answer ends early.
    """
    import jax
    from safetensors.numpy import save_file

    from spt_jax.decoding.loop import EOS_ID
    from spt_jax.pytree import count_params, named_leaves
    from spt_jax.t5 import T5

    config, folder = t5_config(job["shape"]), Path(job["folder"])
    params = jax.jit(T5(config).init_params)(jax.random.key(0))
    head = params["decoder"]["logits_dense"]
    head["kernel"] = head["kernel"].at[:, EOS_ID].set(0)
    save_file(
        {name: np.asarray(leaf) for name, leaf in named_leaves(params)},
        folder / "ours.safetensors",
    )
    # The conversion that the parity tests prove. Saved as theirs, it is loaded as anyone loads it.
    sys.path.insert(0, str(ROOT / "tests"))
    oracle = importlib.import_module("parity.torch_t5")
    torch, transformers = map(importlib.import_module, ("torch", "transformers"))
    transformers.utils.logging.disable_progress_bar()
    oracle.torch_model(config, params, torch.float32).save_pretrained(folder / "theirs")
    return {"vocab_size": config.vocab_size, "parameters": count_params(params)}


def load_ours(job: dict) -> Any:
    """Load the weights as our parameters."""
    import flax.traverse_util
    import jax.numpy as jnp
    from safetensors.numpy import load_file

    arrays = load_file(Path(job["folder"]) / "ours.safetensors")
    leaves = {name: jnp.asarray(leaf) for name, leaf in arrays.items()}
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def load_theirs(job: dict) -> Any:
    """Load the weights as a T5 of transformers."""
    transformers = importlib.import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.T5ForConditionalGeneration.from_pretrained(Path(job["folder"]) / "theirs")
    return model.eval()


class Ours:
    """`spt_jax.decoding.generate.generate`, jitted."""

    facts: dict = {}

    def __init__(self, job: dict):
        import jax

        from spt_jax.decoding.generate import generate
        from spt_jax.t5 import T5

        self._params = {"t5": load_ours(job)}
        self._length, self._config = job["targets_length"], t5_config(job["shape"])
        run = functools.partial(generate, T5(self._config))
        self._generate = jax.jit(run, static_argnames=("config", "length"))

    def generate(self, inputs: np.ndarray, beams: int) -> dict:
        """The best answer to each row, from ids in memory to ids in memory."""
        from spt_jax.config.decode import DecodeConfig

        config = DecodeConfig(num_beams=beams)
        started, used = time.perf_counter(), time.process_time()
        ids, _ = self._generate(self._params, inputs, config=config, length=self._length)
        ids = np.asarray(ids)[:, 0]
        seconds, used = time.perf_counter() - started, time.process_time() - used
        return {"seconds": seconds, "processor_seconds": used, "ids": ids}

    def products(self, batch_size: int, inputs_length: int, beams: int) -> float:
        """Return the CPU seconds of only the matrix products, in a loop like decoding's."""
        import jax
        from products import encode_products, make_kernels, step_products

        from spt_jax.t5.model import TURNED_ROWS

        @jax.jit
        def run(kernels: dict, x: Any, y: Any) -> Any:
            y = y + encode_products(x, kernels).max()
            step = functools.partial(step_products, kernels=kernels, turned=turned)
            return jax.lax.fori_loop(0, self._length, lambda _, y: step(y), y)

        turned = batch_size * beams >= TURNED_ROWS
        kernels = make_kernels(self._config, turned=turned)
        x, y = (
            np.ones((rows, self._config.d_model), np.float32)
            for rows in (batch_size * inputs_length, batch_size * beams)
        )
        run(kernels, x, y).block_until_ready()
        used = time.process_time()
        run(kernels, x, y).block_until_ready()
        return time.process_time() - used


class Theirs:
    """`generate` of transformers' T5 in torch, with its cache and its own number of threads."""

    def __init__(self, job: dict):
        self._torch: Any = importlib.import_module("torch")
        self._model = load_theirs(job)
        self._length = job["targets_length"]
        self.facts = {
            "threads": self._torch.get_num_threads(),
            "attention": self._model.config._attn_implementation,
        }

    def generate(self, inputs: np.ndarray, beams: int) -> dict:
        """The best answer to each row, from ids in memory to ids in memory."""
        ids = self._torch.from_numpy(inputs.astype(np.int64))
        mask = self._torch.ones_like(ids)
        started = time.perf_counter()
        with self._torch.inference_mode():
            answers = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                num_beams=beams,
                max_new_tokens=self._length,
            )
        answers = answers[:, 1:].numpy()
        return {"seconds": time.perf_counter() - started, "ids": answers}


ROLES = {"spt_jax": Ours, "torch": Theirs}
