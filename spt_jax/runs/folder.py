"""The folder of a run: its files, and the check that it belongs to the same run.

    config.yaml          the resolved config
    manifest.json        versions, device, command, and the identity of model and data
    log.jsonl            a line for each step and each evaluation; no times, so resuming repeats it
    timing.jsonl         steps and examples per second, utilisation, the wait for data
    events/              the numbers of log.jsonl for TensorBoard, if log.tensorboard is on
    trackers.json        ids of the run at W&B and trackio, if log.wandb or log.trackio is on
    profile/             a trace of a few steps, if --profile was given
    checkpoints/<step>/  see checkpoints.py
    prompt.safetensors   the best prompt      start.safetensors   the prompt before training
    result.json          what `train --json` prints

If the run is kept in a bucket, this is the local copy (`runs/workdir.py`). A folder belongs to one
config, model and dataset, and a run resumes only in its own folder.
Of several processes, all call what changes the folder, and process 0 alone does it.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import yaml

from spt_jax import __version__
from spt_jax.config.fields import Config, flatten, from_dict, to_dict
from spt_jax.config.train import TrainConfig
from spt_jax.distributed.main_process import main_only, main_process
from spt_jax.runs.log import lock_folder, read_log, write_atomic, write_json_atomic

RESUMABLE = (
    "eval.",
    "log.",
    "mesh",
    "remat",
    "attention",
    "task.encoding",
    "task.missing",
    "task.quoting",
)
"""Settings that may differ when a run is resumed, beside more `steps`.

How files of rows are read may differ because the data that comes of it may not: its fingerprint is
part of the identity of the run.
"""

FOLDERS = ("checkpoints", "model", "events", "profile")
"""Folders in the folder of a run."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader of libyaml where PyYAML was built with it, because it is ten times as fast."""

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class _Place:
    """Attribute of a RunFolder: the path of a file or folder in it."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, run: "RunFolder", kind: type) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Args:
        path: The folder, which need not exist yet.
        address: Address of the bucket that keeps it, if any; see `runs/workdir.py`.
        publish: Function that writes the folder to the bucket, or does nothing without one.
    """

    config_file = _Place("config.yaml")
    manifest_file = _Place("manifest.json")
    log_file = _Place("log.jsonl")
    timing_file = _Place("timing.jsonl")
    prompt_file = _Place("prompt.safetensors")
    start_file = _Place("start.safetensors")
    result_file = _Place("result.json")
    trackers_file = _Place("trackers.json")
    checkpoints = _Place("checkpoints")
    model_folder = _Place("model")  # the tuned or pretrained model, if the run trains one
    events_folder = _Place("events")
    profile_folder = _Place("profile")

    path: Path
    address: str | None = None
    publish: Callable[[], None] = lambda: None

    def __str__(self) -> str:
        return self.address or str(self.path)

    def read_config(self) -> dict:
        """Return the config that the run was started with.

        Raises:
            FileNotFoundError: The folder contains no run.
            ValueError: Its config.yaml is damaged, or has aliases, of which no run writes any: a
                few lines of them can stand for more text than any memory holds.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(
                f"'{self.path}' is not the folder of a run: it has no config.yaml"
            )
        problem = "it is no mapping"
        try:
            text = self.config_file.read_text("utf-8")
            config = yaml.load(text, _LOADER)
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
                config, problem = None, "it has aliases"
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            config, problem = None, " ".join(str(error).split())
        if not isinstance(config, dict):
            raise ValueError(
                f"{self.config_file} is damaged ({problem}); expected the options of a run, copy "
                "the folder again"
            )
        return config

    @main_process
    def finished(self, config: Config, *, overwrite: bool) -> dict | None:
        """Return the result if the run of this config is finished, else None.

        Args:
            config: The resolved config.
            overwrite: Whether an existing run will be deleted, so that None is returned.

        Raises:
            NotADirectoryError: The folder cannot be made, because it is below a file.
            ValueError: The folder contains a run that `config` does not continue.
        """
        self._check_place()
        if overwrite:
            return None
        values = to_dict(config)
        self.check_config(values, type(config))
        return self.read_result(values, type(config))

    def read_result(self, config: Mapping[str, Any], kind: type = TrainConfig) -> dict | None:
        """Return the result of a finished run of this config; None where more is to be done.

        More is to be done if there are more steps, if patience has stopped the run and is another
        one now, or if `eval` asks for scores that the result does not have.

        Args:
            config: The config of now, as `to_dict` gives it.
            kind: Its class.

        Raises:
            ValueError: The result is damaged.
        """
        if not self.result_file.is_file():
            return None
        old = self._read_saved(kind)
        try:
            result = json.loads(self.result_file.read_text("utf-8"))
        except (ValueError, RecursionError):
            result = None
        if not isinstance(result, dict):
            raise ValueError(
                f"{self.result_file} is damaged, expected what `train --json` prints; copy it "
                "again, or remove it, and the run makes it again from its last checkpoint"
            )
        then, now = old.get("eval", {}), config.get("eval", {})
        stopped = result.get("steps_done", config["steps"]) < config["steps"]
        if result.get("steps", old["steps"]) != config["steps"] or (
            stopped and then.get("patience") != now.get("patience")
        ):
            return None
        other_rows = any(then.get(name) != now.get(name) for name in ("max_rows", "inputs_length"))
        more_scores = any(
            now.get(name) and then.get(name) != now[name] for name in ("baselines", "hard_prompt")
        )
        return None if other_rows or more_scores else result

    def _check_place(self) -> None:
        """Raise NotADirectoryError if the folder cannot be made, because it is below a file."""
        for place in (self.path, *self.path.parents):
            if place.exists():
                if place.is_dir():
                    return
                raise NotADirectoryError(
                    f"workdir '{self.path}' cannot be made: '{place}' is a file; "
                    "give another --workdir"
                )

    def check_config(self, config: Mapping[str, Any], kind: type = TrainConfig) -> None:
        """Raise ValueError if the folder holds a run that `config` does not continue.

        An option that the run's config lacks, because it was written by an older version, has its
        default there.

        Args:
            config: The config of now, as `to_dict` gives it.
            kind: Its class.
        """
        if self.config_file.exists():
            self._require_continued(f"workdir '{self.path}'", self._read_saved(kind), config)
        elif self._newest_step():
            # A kill while --overwrite deletes can leave this.
            raise ValueError(
                f"workdir '{self.path}' holds checkpoints but no config.yaml that says what run "
                "they are of; copy it from that run, give another --workdir, or --overwrite to "
                "delete that run"
            )

    @main_process
    def check_checkpoint(self, metadata: Mapping[str, Any], config: Config) -> None:
        """Raise ValueError if a checkpoint is of a run that `config` does not continue.

        `check_config` and `claim` compare the files beside the checkpoints, which may be of another
        run if someone has edited or copied them.

        Args:
            metadata: What was saved with the checkpoint: `config`, and the identity of the run.
            config: The config of now. The identity of now is that of the manifest.
        """
        what = f"a checkpoint in '{self.path}'"
        saved = to_dict(from_dict(type(config), metadata["config"], saved=True))
        self._require_continued(what, saved, to_dict(config))
        identity = self.read_manifest().get("identity", {})
        self._require_identity(what, {**identity, **metadata}, identity)

    def _read_saved(self, kind: type) -> dict[str, Any]:
        """Return the config that the run was started with, with the defaults of now."""
        try:
            return to_dict(from_dict(kind, self.read_config(), saved=True))
        except ValueError as error:
            raise ValueError(
                f"workdir '{self.path}' holds a run that this version cannot continue: {error}; "
                "give another --workdir, or --overwrite to delete that run"
            ) from error

    @staticmethod
    def _require_continued(what: str, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Raise ValueError if a run of `saved` cannot go on as one of `config`."""
        old, new = flatten(saved), flatten(config)
        changed = [
            f"{name} ({_show(old.get(name))} there, {_show(new.get(name))} now)"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
            and not name.startswith(RESUMABLE)
            and not (name == "steps" and new[name] > old[name])
        ]
        if changed:
            raise ValueError(
                f"{what} holds a run of another config: {', '.join(changed)}; "
                "give another --workdir, or --overwrite to delete that run"
            )

    @contextlib.contextmanager
    def claim(
        self,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
        command: Sequence[str],
        *,
        overwrite: bool,
    ) -> Iterator[None]:
        """Lock the folder for a run, and write its config and, the first time, its manifest.

        Args:
            config: The resolved config.
            identity: Values that must not change when the run is resumed, such as fingerprints.
            facts: Facts about the data, for people to read.
            command: The command line.
            overwrite: Whether to delete an existing run first.

        Raises:
            ValueError: The existing run has another identity.
            RunError: Another process holds the folder, or it cannot be written.
        """
        with main_only(lambda: lock_folder(self.path)):
            self._start(config, identity, facts, command, overwrite)
            yield

    @main_process
    def _start(
        self,
        config: Mapping[str, Any],
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
        command: Sequence[str],
        overwrite: bool,
    ) -> None:
        if overwrite:
            self.clear()
            self.publish()  # so that no step of that run is taken for one of this run
        self._check_identity(identity)
        self.result_file.unlink(missing_ok=True)  # it is the result of fewer steps
        if not self.manifest_file.exists():  # first, since it shows that the files are of a run
            write_json_atomic(self.manifest_file, _manifest(identity, facts, command))
        write_atomic(self.config_file, yaml.safe_dump(dict(config), sort_keys=False).encode())

    @main_process
    def checkpoint_bytes(self, step: int) -> int:
        """Return the bytes of a checkpoint on the disk, or 0 if it does not exist."""
        files = (self.checkpoints / str(step)).rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    @main_process
    def last_step(self) -> int:
        """Return the step of the newest checkpoint, or 0 if there is none."""
        return self._newest_step()

    def _newest_step(self) -> int:
        """On process 0: return what `last_step` does."""
        places = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        return max((int(place.name) for place in places if place.name.isdecimal()), default=0)

    @main_process
    def read_timing(self) -> list[dict]:
        """Return the records of timing.jsonl."""
        return read_log(self.timing_file)

    @main_process
    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the result, which makes the run a finished one.

        Raises:
            RunError: It could not be written.
        """
        write_json_atomic(self.result_file, result)

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        manifest = self.read_manifest()
        if not manifest and (self.manifest_file.exists() or self._newest_step()):
            raise ValueError(
                f"workdir '{self.path}' holds a run whose manifest.json is missing or damaged, so "
                "nothing says what model and data the run is of; copy it from that run, or give "
                "another --workdir"
            )
        if manifest:
            self._require_identity(f"workdir '{self.path}'", manifest["identity"], identity)

    @staticmethod
    def _require_identity(what: str, old: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        for name, value in identity.items():
            if old.get(name) != value:
                raise ValueError(
                    f"{what} holds a run with another {name.replace('_', ' ')} "
                    f"({_show(old.get(name))} there, {_show(value)} now); "
                    "give another --workdir, or --overwrite to delete that run"
                )

    def clear(self) -> None:
        """Delete the files and folders of a run, and nothing else.

        Raises:
            ValueError: Something has the name of a run's file or folder, but there is no manifest
                that shows it to be of a run.
        """
        names = [name for name, place in vars(RunFolder).items() if isinstance(place, _Place)]
        places = [getattr(self, name) for name in names]
        there = [p.name for p in places if p != self.manifest_file and os.path.lexists(p)]
        if there and not self.read_manifest():
            raise ValueError(
                f"'{self.path}' holds {', '.join(there)} but no manifest.json of a run, so "
                "--overwrite deletes nothing there; give another --workdir, or remove these "
                "yourself"
            )
        # The manifest last, so that what is left after a kill is still of a run.
        for place in sorted(places, key=lambda place: place == self.manifest_file):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, or an empty dict if there is none of a run."""
        try:
            manifest = json.loads(self.manifest_file.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        is_ours = isinstance(manifest, dict) and {"identity", "versions"} <= manifest.keys()
        return manifest if is_ours and isinstance(manifest["identity"], dict) else {}


def _manifest(
    identity: Mapping[str, Any], facts: Mapping[str, Any], command: Sequence[str]
) -> dict:
    device = jax.devices()[0]
    return {
        "command": list(command),
        "identity": dict(identity),
        "data": dict(facts),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": {
            "spt_jax": __version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
