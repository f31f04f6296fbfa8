"""Strict surroundings for every test: CPU with 8 devices, no silent broadcasts, no network."""

import gc
import os
import socket
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".pytest_cache"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("SPT_JAX_CACHE", str(CACHE / "spt_jax"))
# Compiling is most of what these tests cost. Many runs of one tiny model share their programs, and
# processes that a test starts find them too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

# A third of the compiler's time goes into fusions that tiny programs do not need, and a quarter of
# the rest into splitting them for threads. XLA aborts on a flag that it does not know, so another
# jaxlib is asked first; workers find the answer in place.
_LESS_WORK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if "SPT_JAX_TESTS_XLA_FLAGS" not in os.environ:
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_LESS_WORK}".strip()
    asked = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
    )
    os.environ["SPT_JAX_TESTS_XLA_FLAGS"] = flags if asked.returncode == 0 else ""
if os.environ["SPT_JAX_TESTS_XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] = os.environ["SPT_JAX_TESTS_XLA_FLAGS"]

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook
from support import typecheck

# These rooms compute with arrays; here every call checks the shapes and dtypes in its annotations.
install_import_hook(
    [f"spt_jax.{room}" for room in ("forward", "losses", "step", "prompts", "decoding")],
    f"{typecheck.__name__}.check",
)

settings.register_profile("tests", max_examples=25, derandomize=True, deadline=None, database=None)
settings.load_profile("tests")

# Tracing makes many objects that live on. Python's garbage collector would look through all of them
# again and again, which took a tenth of the time.
gc.freeze()
gc.set_threshold(100_000, 10, 10)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


# The files that take longest. The workers begin with them, so that none waits for another one at
# the end. Without this, xdist begins with the files that have most tests.
LONGEST = (
    "train", "t5", "together", "hosts", "sharding", "parameterization", "interpret", "step",
    "configs", "evaluate", "pretrain", "generation", "golden", "mixed", "compile_cache",
    "checkpoint", "pipeline", "report", "predict", "engine", "predict_command", "forward",
    "storage", "beam", "sampling", "runs_together", "convert_errors", "statistics", "decode",
    "convert", "readme", "hostile", "cli", "paper_runs", "attention", "profiling", "optim",
    "argument_tasks", "prompt_exchange", "library", "preemption", "tfds_source", "flops",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Move the tests of the longest files to the front."""
    order = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """A connection to anywhere but this machine fails at once, with the address."""
    connect = socket.socket.connect

    def connect_locally(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        if not local:
            raise PermissionError(f"tests have no network: connection to {address} refused")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture
def data_dir() -> Path:
    """The folder of the paper's datasets (sst2/, trec/, agnews/, subj/), named by SPT_JAX_DATA."""
    folder = os.environ.get("SPT_JAX_DATA")
    if not folder:
        pytest.skip("SPT_JAX_DATA is not set; it names the folder that holds sst2/, trec/, ...")
    assert Path(folder).is_dir(), f"SPT_JAX_DATA is '{folder}', which is not a folder"
    return Path(folder)
