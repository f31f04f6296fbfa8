"""Turn a base config and what varies into the named runs of a study.

The points of a study are all combinations of the values in `vary`, each combined with every entry
of `runs`. Every point is trained once for each seed.

Invariant: the name of a run depends on its own options alone, so a study that gets more values
keeps the folders of the runs that it had.
"""

import functools
import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spt_jax.config.fields import config_class, convert, field_types, from_dict, show
from spt_jax.config.train import TrainConfig
from spt_jax.errors import require, suggest

Options = Mapping[str, Any]
"""Options of a run by their dotted names, such as {"prompt.length": 20}."""

WITHOUT_EFFECT = ("log", "mesh", "remat", "attention", "eval.batch_size", "eval.baselines")
"""Options, and sections of them, that change nothing in what a run learns."""

RESULTS_FILE = "results.json"
"""File in the folder of a sweep that says what became of each run."""

PARTS = ("vary", "runs", "seeds", "sample")
"""Keys of a study file beside the options of its base."""

NAME = "name"
"""Key of an entry of `runs` that names it. It is no option of a run."""

_MOST_BYTES = 200
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,39}")
_OWN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+=,-]{0,99}")


class StudyRun(NamedTuple):
    """One run of a study.

    Args:
        name: Name of its folder, such as `prompt.length=20,seed=1`.
        point: The name without the seed. Runs of one point differ in their seed alone.
        config: Its config.
    """

    name: str
    point: str
    config: TrainConfig


@dataclass(frozen=True)
class Study:
    """A base config and what varies.

    Args:
        base: Options that all runs share. An option that is missing has its default.
        vary: Values of each option that varies. The value of a section, such as `task`, is null or
            a mapping of options below it.
        runs: Options of each of several runs, with a `name` for the folder if it has one.
        seeds: Seeds of every point; without one, the seed of the base alone.
        sample: Number of points that are drawn at random, by the seed of the base; null for all.
    """

    base: Options
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    runs: Sequence[Options] = ()
    seeds: Sequence[int] = ()
    sample: int | None = None


def expand(study: Study) -> list[StudyRun]:
    """Return the runs of a study, in the order in which they are trained.

    Raises:
        ValueError: An option is unknown or cannot vary, a value is wrong or stands twice, nothing
            varies, or two runs are the same or have the same folder.
    """
    _check(study)
    values = [[(name, value) for value in _values(name, study)] for name in study.vary]
    points = list(itertools.product(study.runs or ({},), *values))
    seeds: Sequence[int | None] = study.seeds or (None,)
    return _distinct(
        _make_run(study.base, entry, choice, seed)
        for entry, *choice in _draw(points, study)
        for seed in seeds
    )


def to_tree(study: Study) -> dict[str, Any]:
    """Return a study as the content of a study file, which gives the same study when it is read."""
    parts = {
        "vary": {name: list(values) for name, values in study.vary.items()},
        "runs": [dict(entry) for entry in study.runs],
        "seeds": list(study.seeds),
        "sample": study.sample,
    }
    return {**nest(study.base), **{name: part for name, part in parts.items() if part}}


def nest(options: Options) -> dict[str, Any]:
    """Return options as nested mappings: {"prompt.length": 5} as {"prompt": {"length": 5}}."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *sections, leaf = name.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    return tree


def merge(base: Options, changes: Options) -> dict[str, Any]:
    """Return the options of `base` with those of `changes` over them.

    A section and the options below it replace each other: `prompt: null` removes `prompt.length`.
    """
    merged = dict(base)
    for name, value in changes.items():
        for old in list(merged):
            if old.startswith(f"{name}.") or name.startswith(f"{old}."):
                del merged[old]
        merged[name] = value
    return merged


@functools.cache
def _known() -> dict[str, Any]:
    """Return the annotation of each option and section of a training run, by its dotted name."""

    def walk(cls: type, prefix: str) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for name, hint in field_types(cls).items():
            known[prefix + name] = hint
            if (section := config_class(hint)) is not None:
                known |= walk(section, f"{prefix}{name}.")
        return known

    return walk(TrainConfig, "")


def _check(study: Study) -> None:
    """Raise ValueError if the study itself is wrong, whatever its runs."""
    for name in study.vary:
        _require_known(name)
        require(
            name != "seed" and not f"{name}.".startswith(tuple(f"{n}." for n in WITHOUT_EFFECT)),
            "the option 'seed' cannot vary; give its values as seeds"
            if name == "seed"
            else f"the option '{name}' cannot vary: it changes nothing in what a run learns",
        )
    for entry in study.runs:
        for name in entry:
            if name == NAME:
                continue
            _require_known(name)
            require(name != "seed", "the option 'seed' stands in runs; give its values as seeds")
            twice = [other for other in study.vary if f"{other}.".startswith(f"{name}.")]
            twice += [other for other in study.vary if name.startswith(f"{other}.")]
            require(
                not twice,
                f"the option '{name}' stands both in runs and in vary; leave it out of one of them",
            )
    several = [seed for seed in study.seeds if list(study.seeds).count(seed) > 1]
    require(not several, f"seeds has {several[0] if several else None} twice")
    require(
        bool(study.vary or study.runs or len(study.seeds) > 1),
        "nothing varies, so this is one run; give values of an option (vary), a list of runs, or "
        "several seeds",
    )


def _require_known(name: str) -> None:
    require(
        name in _known(),
        f"unknown option '{name}' of a training run{suggest(str(name), _known())}",
    )


def _values(name: str, study: Study) -> list[Any]:
    """Return the values of an option that varies, with the type of the option."""
    hint = _known()[name]
    is_section = config_class(hint) is not None
    given = study.vary[name]
    require(len(given) > 0, f"the grid is empty: '{name}' has no values")
    values = [value if is_section else convert(value, hint, name) for value in given]
    for position, value in enumerate(values):
        require(value not in values[:position], f"'{name}' has the value {show(value)} twice")
    return values


def _draw(points: list[Any], study: Study) -> list[Any]:
    """Return the points that are trained. A larger sample begins with the points of a smaller."""
    if study.sample is None:
        return points
    require(
        1 <= study.sample <= len(points),
        f"sample is {study.sample}, expected 1 to {len(points)}, the number of all points",
    )
    draw = random.Random(study.base.get("seed", TrainConfig.seed))
    return draw.sample(points, len(points))[: study.sample]


def _make_run(
    base: Options, entry: Options, choice: Sequence[tuple[str, Any]], seed: int | None
) -> StudyRun:
    own = {name: value for name, value in entry.items() if name != NAME}
    changes = functools.reduce(merge, (_below(name, value) for name, value in choice), own)
    parts = [f"{name}={_word(value)}" for name, value in choice]
    if NAME in entry:
        require(
            _OWN_NAME.fullmatch(str(entry[NAME])) is not None,
            f"the name of a run is {show(entry[NAME])}, expected at most 100 of letters, digits "
            "and _.+=,-",
        )
        parts.insert(0, entry[NAME])
    else:
        parts[:0] = [f"{name}={_word(value)}" for name, value in own.items()]
    point = _shorten(",".join(parts) or "base")
    name = point if seed is None else f"{point},seed={seed}" if parts else f"seed={seed}"
    options = merge(base, changes if seed is None else {**changes, "seed": seed})
    try:
        config = from_dict(TrainConfig, nest(options))
        require(
            "task.name" not in dict(choice) or config.task.source is None,
            "task.name varies, but task.source is set, for which it is only a title; vary 'task' "
            "with all of its options instead",
        )
    except ValueError as error:
        raise ValueError(f"run '{name}': {error}") from error
    return StudyRun(name, point, config)


def _below(name: str, value: Any) -> dict[str, Any]:
    """Return the options that one value of an option or of a section sets."""
    if config_class(_known()[name]) is None or value is None:
        return {name: value}
    require(
        isinstance(value, Mapping),
        f"'{name}' has the value {show(value)}, expected null or a mapping of options",
    )
    changes: dict[str, Any] = {}
    for inner, part in value.items():
        _require_known(f"{name}.{inner}")
        changes |= _below(f"{name}.{inner}", part)
    return changes


def _word(value: Any) -> str:
    """Return a value as a part of a folder's name."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if _PLAIN.fullmatch(text):
        return text
    return f"{re.sub('[^A-Za-z0-9_.+]+', '-', text)[:24].strip('-.')}~{_digest(text)}"


def _shorten(name: str) -> str:
    if len(name.encode()) <= _MOST_BYTES:
        return name
    return f"{name[: _MOST_BYTES - 20]}~{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _distinct(runs: Iterable[StudyRun]) -> list[StudyRun]:
    """Return the runs as a list, of which no two are the same or share a folder."""
    by_folder: dict[str, StudyRun] = {}
    by_config: dict[str, StudyRun] = {}
    for run in runs:
        for known, key in ((by_folder, run.name.casefold()), (by_config, repr(run.config))):
            other = known.setdefault(key, run)
            what = (
                f"two runs have the folder '{run.name}'; give one of them another name"
                if known is by_folder
                else f"the runs '{other.name}' and '{run.name}' are the same; leave one out"
            )
            require(other is run, what)
    return list(by_folder.values())
