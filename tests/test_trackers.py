"""W&B and trackio: what they are sent, by a new run and by a resumed one, and what if they fail."""

import importlib.machinery
import importlib.util
import json
import sys
import types
import warnings

import pytest
from support import tiny

from spt_jax.config.train import LogConfig
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.trackers import FINISH_SECONDS, open_listeners
from spt_jax.train import fit, fit_together

SERVICES = ("wandb", "trackio")


class Remote:
    """A run at a stand-in for a service, which notes what it is told."""

    def __init__(self, service, options):
        self.service, self.options, self.sent, self.finished = service, options, [], 0
        self.step_metric = None

    def define_metric(self, name, step_metric):
        self.step_metric = name, step_metric

    def log(self, numbers, **step):
        self.service.fail("log")
        step = {"step": numbers.pop("step")} if self.service.name == "wandb" else step
        self.sent.append((step["step"], numbers))

    def finish(self):
        self.finished += 1
        self.service.fail("finish")


class Service:
    """A stand-in for one of the packages, in `sys.modules`."""

    def __init__(self, name, monkeypatch):
        self.name, self.remotes, self.failing = name, [], None
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init = self.init
        monkeypatch.setitem(sys.modules, name, module)

    def fail(self, where):
        if self.failing == where:
            raise ConnectionError("the service\nis away")

    def init(self, **options):
        self.fail("init")
        print("a line of the service")
        self.remotes.append(Remote(self, options))
        return self.remotes[-1]


@pytest.fixture
def services(monkeypatch):
    return {name: Service(name, monkeypatch) for name in SERVICES}


def config(folder, **changes):
    log = LogConfig(every=1, wandb="seeds", trackio="plants")
    return tiny.train_config(folder, **{"log": log, "steps": 4, **changes})


def numbers_of_the_log(run):
    """What the services should get: (step, {"train/loss": ...}) of each line."""
    rows = []
    for line in (run / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        split, step = record.pop("split", "train"), record.pop("step")
        metrics = {f"metrics/{name}": v for name, v in record.pop("metrics", {}).items()}
        numbers = {k: v for k, v in {**record, **metrics}.items() if isinstance(v, (int, float))}
        rows.append((step, {f"{split}/{name}": value for name, value in numbers.items()}))
    return rows


def test_a_run_sends_its_config_and_every_number_of_its_log(services, tmp_path, capsys):
    fit(config(tmp_path), tmp_path / "runs" / "one")
    assert "a line of the service" not in capsys.readouterr().out  # which is the result's
    sent = numbers_of_the_log(tmp_path / "runs" / "one")
    assert {step for step, _ in sent} == {1, 2, 3, 4}
    assert {"train/loss", "dev/score", "dev/metrics/accuracy"} <= {k for _, n in sent for k in n}
    ids = json.loads((tmp_path / "runs" / "one" / "trackers.json").read_text())
    [ours], [theirs] = (services[name].remotes for name in SERVICES)
    for remote in (ours, theirs):
        assert remote.sent == sent and remote.finished == 1
        assert remote.options.pop("config")["prompt"]["length"] == config(tmp_path).prompt.length
    assert ours.step_metric == ("*", "step")
    assert ours.options == {
        "project": "seeds",
        "name": "runs/one",
        "id": ids["wandb"]["id"],
        "resume": "allow",
        "allow_val_change": True,
        "reinit": "create_new",
        "settings": {"finish_timeout": FINISH_SECONDS, "console": "off"},
    }
    assert theirs.options == {
        "project": "plants",
        "name": f"runs/one-{ids['trackio']['id']}",
        "resume": "allow",
    }


def names(services):
    """The project and the id (trackio: the name) of each remote run, the first one first."""
    return {
        name: [(r.options["project"], r.options.get("id", r.options["name"])) for r in s.remotes]
        for name, s in services.items()
    }


def test_a_resumed_run_goes_on_in_its_remote_run_and_another_one_has_its_own(services, tmp_path):
    run = tmp_path / "run"
    fit(config(tmp_path, steps=2), run)
    fit(config(tmp_path, steps=4), run)
    first, second = (services["wandb"].remotes[number].sent for number in (0, 1))
    assert [step for step, _ in first] == [1, 2, 2] and first + second == numbers_of_the_log(run)
    fit(config(tmp_path), run)  # it is finished: nothing is sent, and no remote run is opened
    fit(config(tmp_path), tmp_path / "other")
    fit(config(tmp_path), run, overwrite=True)
    other_project = LogConfig(every=1, wandb="others", trackio="plants")
    fit(config(tmp_path, log=other_project, steps=6), run)
    for service, found in names(services).items():
        assert len(found) == 5
        assert found[0] == found[1]  # resumed
        assert len({id for _, id in found[1:4]}) == 3  # another folder, and --overwrite
        assert (found[3] == found[4]) == (service == "trackio")  # whose project is the same


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"wandb": 3}', '{"wandb": {"id": 7}}'])
def test_a_damaged_file_of_ids_counts_as_none(services, tmp_path, damage):
    (tmp_path / "config.yaml").write_text("steps: 2")
    file = tmp_path / "trackers.json"
    for change in (None, damage, None):
        if change is not None:
            file.write_text(change)
        open_listeners(LogConfig(wandb="p", trackio="q"), RunFolder(tmp_path), 0)
        assert {*json.loads(file.read_text())} == {*SERVICES}
    for first, second, third in names(services).values():
        assert first != second == third


def test_runs_that_train_together_have_a_remote_run_each(services, tmp_path):
    configs = [config(tmp_path, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / "runs" / f"seed_{seed}" for seed in (0, 1)]
    fit_together(configs, folders)
    for service in services.values():
        assert [remote.sent for remote in service.remotes] == [*map(numbers_of_the_log, folders)]
        assert [remote.finished for remote in service.remotes] == [1, 1]


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_the_run_goes_on_where_a_service_fails(services, tmp_path, capsys, where):
    services["wandb"].failing = where
    result = fit(config(tmp_path), tmp_path / "run")
    assert result["steps_done"] == 4 and (tmp_path / "run" / "result.json").is_file()
    said = [line for line in capsys.readouterr().err.splitlines() if "log.wandb" in line]
    assert said == [
        "log.wandb has failed (ConnectionError: the service is away); the run goes on without it"
    ]
    assert services["trackio"].remotes[0].sent == numbers_of_the_log(tmp_path / "run")


@pytest.mark.parametrize("service", SERVICES)
def test_without_the_package_the_run_does_not_start(tmp_path, monkeypatch, service):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    log = LogConfig(**{service: "p"})
    message = (
        rf"^log.{service} needs the package {service}, which is not installed; "
        rf"pip install 'spt_jax\[{service}\]', or leave log.{service} out$"
    )
    with pytest.raises(ValueError, match=message):
        fit(tiny.train_config(tmp_path, log=log), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_the_options_nothing_is_opened(services, tmp_path):
    fit(tiny.train_config(tmp_path, steps=2), tmp_path / "run")
    assert names(services) == {"wandb": [], "trackio": []}
    assert not (tmp_path / "run" / "trackers.json").exists()


@pytest.mark.slow
def test_the_packages_themselves(tmp_path, monkeypatch):
    """Both as they are installed, without a network."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which is read on import
    pytest.importorskip("wandb")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():  # of their own, which are theirs to mend
        warnings.simplefilter("ignore")
        fit(config(tmp_path, steps=2), tmp_path / "run")
        fit(config(tmp_path, steps=4), tmp_path / "run")
    ids = json.loads((tmp_path / "run" / "trackers.json").read_text())
    sessions = [path.name for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")]
    assert sessions == [f"run-{ids['wandb']['id']}.wandb"] * 2
    [name] = [run for run in storage.get_runs("plants") if ids["trackio"]["id"] in run]
    sent = [
        (row["step"], {k: v for k, v in row.items() if "/" in k})
        for row in storage.get_logs("plants", name)
    ]
    assert sent == numbers_of_the_log(tmp_path / "run")
