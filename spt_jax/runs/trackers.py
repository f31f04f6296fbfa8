"""Send the numbers of a log to Weights & Biases and to trackio, two optional packages.

A resumed run goes on in the same remote run, whose id is kept in `trackers.json` in the run's
folder. Steps that were sent before the run was stopped, and that it repeats, are sent again: their
values are the same.

A service that fails does not end a run: one line says so, and nothing more is sent to it.
"""

import contextlib
import contextvars
import importlib
import importlib.util
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from spt_jax.config.train import LogConfig
from spt_jax.errors import require, shorten
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import Listener, write_json_atomic
from spt_jax.runs.progress import say
from spt_jax.runs.tensorboard import EventLog, numbers_of

FINISH_SECONDS = 60
"""Most seconds that the end of a run waits for W&B to have received everything."""

T = TypeVar("T")

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""The package of each option of `log`. The extra of spt_jax has the name of the option."""


def require_packages(log: LogConfig) -> None:
    """Raise ValueError if an option of `log` needs a package that is not installed."""
    for option, package in _PACKAGES.items():
        require(
            not getattr(log, option) or importlib.util.find_spec(package) is not None,
            f"log.{option} needs the package {package}, which is not installed; "
            f"pip install 'spt_jax[{option}]', or leave log.{option} out",
        )


def open_listeners(log: LogConfig, folder: RunFolder, step: int) -> list[Listener]:
    """Open what gets the records of a run's log, as its options say.

    Args:
        log: The options.
        folder: Folder of the run, with its config.
        step: Step that the run continues from, or 0 for a new run.

    Raises:
        RunError: A file in the folder could not be written.
    """
    listeners: list[Listener] = []
    if log.tensorboard:
        listeners.append(EventLog(folder.events_folder, step))
    for service, make in _SERVICES.items():
        if (project := getattr(log, service)) is not None:
            listeners.append(_Tracker(service, _start(make, folder, service, project)))
    return listeners


class _Remote(Protocol):
    """A run at a service."""

    def log(self, numbers: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


class _Wandb:
    """A run at Weights & Biases."""

    def __init__(self, project: str, name: str, id: str, config: Mapping[str, Any]):
        self._run = importlib.import_module("wandb").init(
            project=project,
            name=name,
            id=id,
            resume="allow",
            config=dict(config),
            allow_val_change=True,  # of options that may differ when a run is resumed
            reinit="create_new",  # runs that train together are open at the same time
            settings={"finish_timeout": FINISH_SECONDS, "console": "off"},  # sends no printed lines
        )
        # W&B's own step may not go back, as that of a resumed run does.
        self._run.define_metric("*", step_metric="step")

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def finish(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, which knows a run by its name."""

    def __init__(self, project: str, name: str, id: str, config: Mapping[str, Any]):
        # `init` ends the run of the current context, which may be one that trains together.
        self._run = contextvars.copy_context().run(
            importlib.import_module("trackio").init,
            project=project,
            name=f"{name}-{id}",
            resume="allow",
            config=dict(config),
        )

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def finish(self) -> None:
        self._run.finish()


_Make = Callable[[str, str, str, Mapping[str, Any]], _Remote]
_SERVICES: dict[str, _Make] = {"wandb": _Wandb, "trackio": _Trackio}


def _start(make: _Make, folder: RunFolder, service: str, project: str) -> Callable[[], _Remote]:
    """Return a function that starts or resumes the remote run of a folder."""
    name = "/".join(str(folder).split("/")[-2:])
    arguments = project, name, _remote_id(folder, service, project), folder.read_config()
    return lambda: make(*arguments)


def _remote_id(folder: RunFolder, service: str, project: str) -> str:
    """Return the id of the run at a service: the one in the folder, or else a new one.

    A file that cannot be read counts as none, because nothing of the run depends on it.
    """
    try:
        known = json.loads(folder.trackers_file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        known = None
    known = known if isinstance(known, dict) else {}
    match known.get(service):
        case {"project": str(of), "id": str(id)} if of == project:
            return id
    id = uuid.uuid4().hex[:12]
    write_json_atomic(folder.trackers_file, {**known, service: {"project": project, "id": id}})
    return id


class _Tracker:
    """A service that gets the numbers of a log until it fails.

    Args:
        service: Its name, which is that of its option.
        start: Starts the remote run.
    """

    def __init__(self, service: str, start: Callable[[], _Remote]):
        self._service = service
        self._remote: _Remote | None = self._try(start)

    def write(self, record: Mapping[str, Any]) -> None:
        """Send every number of a record of the log, as `train/loss` or `dev/score`."""
        if (remote := self._remote) is not None:
            self._try(lambda: remote.log(numbers_of(record), record["step"]))

    def close(self) -> None:
        """Finish the remote run. Closing again has no effect."""
        remote, self._remote = self._remote, None
        if remote is not None:
            self._try(remote.finish)

    def _try(self, act: Callable[[], T]) -> T | None:
        """Return what the service returns, or say that it failed, and give it up."""
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result of a command
                return act()
        except Exception as error:  # each service has its own classes, also for a lost network
            self._remote = None
            say(
                f"log.{self._service} has failed ({type(error).__name__}: "
                f"{shorten(str(error), 300)}); the run goes on without it"
            )
            return None
