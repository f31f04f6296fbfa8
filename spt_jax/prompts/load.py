"""Load trained prompts with their models: one run, several runs of one model, or a prompt alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from spt_jax.config.devices import MeshConfig
from spt_jax.config.fields import from_dict
from spt_jax.config.train import TrainConfig
from spt_jax.distributed.main_process import on_main
from spt_jax.models.backbone import Backbone, load_backbone
from spt_jax.prompts.bank import PromptBank, load_bank
from spt_jax.prompts.read import read_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import open_run
from spt_jax.typing import Params


def load_run(run: Path, *, mesh: MeshConfig | None = None) -> tuple[TrainConfig, Backbone, Params]:
    """Load a trained run: its config, its model, and the params of its best step.

    Args:
        run: Folder of the run, local or in a bucket.
        mesh: How the devices here share the work; they may differ from those of the training.

    Raises:
        FileNotFoundError: The folder holds no run, or one that has not been evaluated yet.
        ValueError: The model is not the one that the prompt was trained on.
    """
    with open_run(run, model=True) as place:
        folder = RunFolder(place)
        config = _read_config(place)
        tuned = config.tune == "model"
        backbone = _load_backbone(str(folder.model_folder) if tuned else config.model, config, mesh)
        params = {"t5": backbone.params}
        if config.prompt is not None:
            stored = on_main(lambda: read_prompt(folder.prompt_file))
            # The prompt of a tuned model keeps the fingerprint that the model had before.
            stored.require_backbone(backbone, width_only=tuned)
            params["prompt"] = jnp.asarray(stored.prompt)
        return config, backbone, params


def load_stored(
    path: Path, config: TrainConfig, *, mesh: MeshConfig | None = None
) -> tuple[Backbone, Params]:
    """Load a prompt that has no run, such as Google's or PEFT's, and the model of a config.

    Args:
        path: Path of the prompt; see `prompts.read.read_prompt`.
        config: Config with the model that the prompt was trained on.
        mesh: How the devices here share the work.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: It holds no prompt, or one of another model.
    """
    stored = on_main(lambda: read_prompt(path))
    backbone = _load_backbone(config.model, config, mesh)
    stored.require_backbone(backbone)
    return backbone, {"t5": backbone.params, "prompt": jnp.asarray(stored.prompt)}


def load_runs(
    runs: Sequence[Path], *, mesh: MeshConfig | None = None
) -> tuple[list[TrainConfig], Backbone, PromptBank]:
    """Load trained runs that share one frozen model: their configs, the model, and their prompts.

    Args:
        runs: Folders of the runs.
        mesh: How the devices here share the work.

    Returns:
        The configs, the model, and a bank in which each prompt is named by the path of its run.

    Raises:
        FileNotFoundError: A folder holds no run, or one that has not been evaluated yet.
        ValueError: There is no run, a run twice, or the runs have no model in common.
    """
    if not runs:
        raise ValueError("no run is given, expected the folders of one or more")
    configs = []
    for run in runs:
        with open_run(run) as place:
            configs.append(_read_config(place))
    for number, (run, config) in enumerate(zip(runs, configs)):
        if run in runs[:number]:
            raise ValueError(f"run '{run}' is given twice; give each run once")
        if config.tune == "model":
            raise ValueError(
                f"run '{run}' tuned the model, so it shares no frozen one; evaluate it alone"
            )
        for option, what in (("dtype", "computes"), ("param_dtype", "keeps its frozen weights")):
            own, first = getattr(config, option), getattr(configs[0], option)
            if own != first:
                raise ValueError(
                    f"run '{run}' {what} in {own} but '{runs[0]}' in {first}; evaluate them apart"
                )
    backbone = _load_backbone(configs[0].model, configs[0], mesh)
    return configs, backbone, load_bank(backbone, {str(run): run for run in runs})


def read_data_facts(run: Path) -> dict[str, Any]:
    """Return what the manifest of a run says of its data; empty where it has no manifest."""
    with open_run(run) as place:
        return on_main(RunFolder(place).read_manifest).get("data", {})


def _load_backbone(model: str, config: TrainConfig, mesh: MeshConfig | None) -> Backbone:
    return load_backbone(
        model,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        mesh=mesh,
        rows=config.eval.batch_size,
    )


def _read_config(run: Path) -> TrainConfig:
    return from_dict(TrainConfig, on_main(RunFolder(run).read_config), saved=True)
