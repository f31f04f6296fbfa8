"""Load trained prompts with their models: one run, several runs of one model, or a prompt alone.

A folder of a run may come from a stranger, so its config does not decide what is fetched from the
network. A model or a file of rows at an address, and a model of the Hub that is not in the Hub's
cache, are fetched only if the caller names them too.
"""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from spt_jax.config.devices import MeshConfig
from spt_jax.config.fields import from_dict
from spt_jax.config.train import TrainConfig
from spt_jax.distributed.main_process import on_main
from spt_jax.models.backbone import Backbone, load_backbone
from spt_jax.models.open import is_fetched
from spt_jax.prompts.bank import PromptBank, load_bank
from spt_jax.prompts.read import read_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import find_address, open_run
from spt_jax.typing import Params

ROWS = ("source", "dev_source", "test_source", "origin")
"""The fields of `TaskConfig` that say where the rows of a task are."""


class LoadedRun(NamedTuple):
    """A trained run.

    Args:
        config: Its config.
        backbone: Its model.
        params: The params of its best step.
        data: What its manifest says of its data; empty if it has no manifest.
    """

    config: TrainConfig
    backbone: Backbone
    params: Params
    data: Mapping[str, Any]


class LoadedRuns(NamedTuple):
    """Trained runs that share one frozen model; the lists are in the order of the runs.

    Args:
        configs: Their configs.
        backbone: The model.
        bank: Their prompts, each named by the path of its run.
        data: What their manifests say of their data.
    """

    configs: Sequence[TrainConfig]
    backbone: Backbone
    bank: PromptBank
    data: Sequence[Mapping[str, Any]]


def load_run(
    run: Path,
    *,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> LoadedRun:
    """Load a trained run.

    Args:
        run: Folder of the run, local or in a bucket.
        mesh: How the devices here share the work; they may differ from those of the training.
        fetch: Names in the config that may be fetched from the network.
        rows: Which of `ROWS` the caller will read.

    Raises:
        FileNotFoundError: The folder holds no run, or one that has not been evaluated yet.
        ValueError: The model is not the one that the prompt was trained on, or the config names
            what would be fetched and is not in `fetch`.
    """
    with open_run(run, model=True) as place:
        folder = RunFolder(place)
        config, data = _read_config(place), _read_data_facts(place)
        tuned = config.tune == "model"
        _require_named(run, config, fetch, rows, model=not tuned)
        model = str(folder.model_folder) if tuned else config.model
        backbone = _load_backbone(model, config, mesh, fetch)
        params = {"t5": backbone.params}
        if config.prompt is not None:
            stored = on_main(lambda: read_prompt(folder.prompt_file))
            # The prompt of a tuned model keeps the fingerprint that the model had before.
            stored.require_backbone(backbone, width_only=tuned)
            params["prompt"] = jnp.asarray(stored.prompt)
        return LoadedRun(config, backbone, params, data)


def load_stored(
    path: Path, config: TrainConfig, *, mesh: MeshConfig | None = None
) -> tuple[Backbone, Params, Mapping[str, str]]:
    """Load a prompt that has no run, such as Google's or PEFT's, and the model of a config.

    Args:
        path: Path of the prompt; see `prompts.read.read_prompt`.
        config: Config of the caller, with the model that the prompt was trained on.
        mesh: How the devices here share the work.

    Returns:
        The model, its params with the prompt, and the metadata of the prompt.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: It holds no prompt, or one of another model.
    """
    stored = on_main(lambda: read_prompt(path))
    backbone = _load_backbone(config.model, config, mesh, fetch=[config.model])
    stored.require_backbone(backbone)
    params = {"t5": backbone.params, "prompt": jnp.asarray(stored.prompt)}
    return backbone, params, stored.metadata


def load_runs(
    runs: Sequence[Path],
    *,
    mesh: MeshConfig | None = None,
    fetch: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> LoadedRuns:
    """Load trained runs that share one frozen model. Each run is opened once.

    Args:
        runs: Folders of the runs.
        mesh: How the devices here share the work.
        fetch: As in `load_run`.
        rows: As in `load_run`.

    Raises:
        FileNotFoundError: A folder holds no run, or one that has not been evaluated yet.
        ValueError: There is no run, a run twice, the runs have no model in common, or a config
            names what would be fetched and is not in `fetch`.
    """
    if not runs:
        raise ValueError("no run is given, expected the folders of one or more")
    folders = [find_address(run) or str(Path(run).resolve()) for run in runs]
    for number, (run, folder) in enumerate(zip(runs, folders)):
        if folder in folders[:number]:
            raise ValueError(f"run '{run}' is given twice; give each run once")
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(open_run(run)) for run in runs]
        configs = [_read_config(place) for place in places]
        for run, config in zip(runs, configs):
            _require_alike(run, config, runs[0], configs[0])
            _require_named(run, config, fetch, rows, model=config is configs[0])
        backbone = _load_backbone(configs[0].model, configs[0], mesh, fetch)
        bank = load_bank(backbone, {str(run): place for run, place in zip(runs, places)})
        return LoadedRuns(configs, backbone, bank, [_read_data_facts(place) for place in places])


def _require_alike(run: Path, config: TrainConfig, first: Path, of_first: TrainConfig) -> None:
    """Raise ValueError if a run cannot share the frozen model of the first one."""
    if config.tune == "model":
        raise ValueError(
            f"run '{run}' tuned the model, so it shares no frozen one; evaluate it alone"
        )
    for option, what in (("dtype", "computes"), ("param_dtype", "keeps its frozen weights")):
        own, other = getattr(config, option), getattr(of_first, option)
        if own != other:
            raise ValueError(
                f"run '{run}' {what} in {own} but '{first}' in {other}; evaluate them apart"
            )


def _require_named(
    run: Path, config: TrainConfig, fetch: Sequence[str], rows: Sequence[str], *, model: bool
) -> None:
    """Raise ValueError if a config names what the network would have to give, and `fetch` does not.

    Args:
        run: The run, for the message.
        config: Its config.
        fetch: Names that may be fetched.
        rows: Which of `ROWS` will be read.
        model: Whether the model will be loaded by its name.
    """
    places = [getattr(config.task, name) for name in rows]
    names = [config.model] if model and is_fetched(config.model) else []
    names += dict.fromkeys(place for place in places if place and "://" in place)
    if missing := [name for name in names if name not in fetch]:
        raise ValueError(
            f"run '{run}' names {' and '.join(map(repr, missing))}, which is not on this machine; "
            "a run may come from a stranger, so nothing is fetched unless you name it too: "
            + " ".join(f"--fetch={shlex.quote(name)}" for name in missing)
        )


def _load_backbone(
    model: str, config: TrainConfig, mesh: MeshConfig | None, fetch: Sequence[str]
) -> Backbone:
    return load_backbone(
        model,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        attention=config.attention,
        mesh=mesh,
        rows=config.eval.batch_size,
        offline=model not in fetch,
    )


def _read_config(place: Path) -> TrainConfig:
    return from_dict(TrainConfig, on_main(RunFolder(place).read_config), saved=True)


def _read_data_facts(place: Path) -> Mapping[str, Any]:
    return on_main(RunFolder(place).read_manifest).get("data", {})
