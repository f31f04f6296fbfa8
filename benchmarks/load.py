"""Measure the peak memory of loading a frozen model, relative to the size of its weights.

    python benchmarks/load.py                      T5 1.1 XL, 2.85 billion parameters, 5.7 GB
    python benchmarks/load.py --shape t5-v1_1-small --format base

Random bfloat16 weights are written to disk as transformers shards them, and loaded into eight CPU
devices with every large matrix split over all of them. The exit code is 1 if the peak resident
memory of the loading process, jax included, is over 1.3 times the size of the weights.

The peak is VmHWM of a new process, which does not include its parent's. Files are read and not
mapped, so pages of the file cache do not count.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from command import say

DEVICES = 8
LIMIT = 1.3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="t5-v1_1-xl", help="A published T5 1.1.")
    parser.add_argument("--format", default="hf", choices=["hf", "base"], help="Loaded from.")
    parser.add_argument("--folder", type=Path, help="For the weights; temporary by default.")
    parser.add_argument("--limit", type=float, default=LIMIT, help="Of the peak over the weights.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="bench_load"))
    try:
        result = run(options.shape, options.format, folder)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)
    result["limit"] = options.limit
    if options.json:
        print(json.dumps(result))
    else:
        print(*(f"{name:<20}{value}" for name, value in result.items()), sep="\n")
    return int(result["peak_over_weights"] > options.limit)


def run(shape: str, kind: str, folder: Path) -> dict:
    """Write the weights if they are missing, and load them in another process."""
    source = folder / shape
    if not (source / "config.json").exists():
        say(f"writing {source}")
        child(write, shape, str(source))
    if kind == "base":
        base = folder / f"{shape}-base"
        if not base.exists():
            say(f"converting to {base}")
            converted = child(convert, str(source), str(base))
            say(f"converting took {converted['seconds']} s and {converted['peak_gb']} GB")
        source = base
    say(f"loading {source}")
    return {"shape": shape, "format": kind, **child(load, str(source))}


def child(function, *args: str) -> dict:
    """Call a function of this file in a new process and return its result."""
    settings = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, function.__name__, *args]
    done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{function.__name__} failed with code {done.returncode}")
    return json.loads(done.stdout or "{}")


def write(shape: str, folder: str) -> dict:
    """Write random bfloat16 weights, one shard for each layer."""
    import ml_dtypes
    from safetensors.numpy import save_file

    from spt_jax.models.names import TRANSFORMERS, leaf_shapes
    from spt_jax.t5 import PRESETS

    config, place = PRESETS[shape], Path(folder)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, leaf in leaf_shapes(config).items():
        if "/layers/" in name:
            for i in range(leaf[0]):
                shard = f"{name.split('/')[0]}-{i:02}"
                shards.setdefault(shard, {})[TRANSFORMERS[name].format(i=i)] = leaf[:0:-1]
        else:
            transposed = leaf if name == "token_embedder/embedding" else leaf[::-1]
            shards.setdefault(name.split("/")[0], {})[TRANSFORMERS[name]] = transposed
    place.mkdir(parents=True)
    rng, files = np.random.default_rng(0), {}
    for shard, shapes in shards.items():
        tensors = {}
        for name, size in shapes.items():
            # Random sign and mantissa, and the exponent of numbers near 1/32.
            bits = rng.integers(0, 1 << 16, size, np.uint16) & np.uint16(0x807F)
            tensors[name] = (bits | np.uint16(0x3D00)).view(ml_dtypes.bfloat16)
        files |= dict.fromkeys(tensors, f"model-{shard}.safetensors")
        save_file(tensors, place / f"model-{shard}.safetensors")
    index = {"weight_map": files}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    described = {
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "tokenizer_class": "ByT5Tokenizer",
    }
    (place / "config.json").write_text(json.dumps(described))
    return {}


def convert(source: str, dest: str) -> dict:
    """Write a base checkpoint in bfloat16."""
    from spt_jax.models.backbone import convert_backbone

    start = time.monotonic()
    convert_backbone(source, Path(dest), dtype="bfloat16")
    return {"seconds": round(time.monotonic() - start, 1), "peak_gb": round(memory() / 1e9, 2)}


def load(folder: str) -> dict:
    """Load into all devices; return seconds and memory."""
    import jax

    from spt_jax.config.devices import MeshConfig
    from spt_jax.models.backbone import load_backbone
    from spt_jax.pytree import count_params, nbytes

    jax.config.update("jax_num_cpu_devices", DEVICES)
    before, start = memory(), time.monotonic()
    backbone = load_backbone(
        folder,
        dtype="bfloat16",
        param_dtype="bfloat16",
        mesh=MeshConfig(data=1, fsdp=DEVICES),
    )
    jax.block_until_ready(backbone.params)
    seconds, peak, weights = time.monotonic() - start, memory(), nbytes(backbone.params)
    return {
        "params": count_params(backbone.params),
        "weights_gb": round(weights / 1e9, 3),
        "before_gb": round(before / 1e9, 3),
        "peak_gb": round(peak / 1e9, 3),
        "peak_over_weights": round(peak / weights, 3),
        "seconds": round(seconds, 1),
    }


def memory() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in ("write", "convert", "load"):
        print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
    else:
        sys.exit(main())
