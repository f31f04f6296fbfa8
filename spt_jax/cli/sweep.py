"""`spt-jax sweep`: many runs that differ in few options."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from spt_jax.cli.options import (
    add_distributed_flags,
    add_run_flags,
    connected,
    make_parser,
    read_seeds,
    stdout_to_stderr_if,
    workdir,
)
from spt_jax.cli.parser import Parser, Setting, read_tree
from spt_jax.cli.printing import print_result, print_table
from spt_jax.cli.yaml_text import load_text, show
from spt_jax.config.train import TrainConfig
from spt_jax.distributed.preemption import listening
from spt_jax.errors import RunError
from spt_jax.studies.grid import NAME, PARTS, Study, to_tree

BASE = "base"
"""Key of a study file that names the config it starts from."""


def sweep(argv: Sequence[str]) -> None:
    """Train runs that differ in few options: a grid, a sample of it, or a list."""
    flags, study = make_study_parser().read_study(argv)
    if flags.print_config:
        return _print_study(study)
    folder = workdir(flags, "sweep")
    command = ["spt-jax", "sweep", *argv]
    together = None if flags.together == "auto" else flags.together
    if together is not None and together < 1:
        raise ValueError(f"--together is {together}, expected 1 or more, or auto")
    with listening(), connected(flags, "sweep", argv):
        with stdout_to_stderr_if(flags.json):
            if flags.dry_run:
                from spt_jax.studies.cost import estimate

                result = estimate(study, folder, together)
            else:
                from spt_jax.studies.sweep import sweep as run

                result = run(
                    study,
                    folder,
                    together=together,
                    halve=flags.halve,
                    overwrite=flags.overwrite,
                    command=command,
                )
        _print(result, flags.json)
    failed = [record for record in result["runs"] if record["state"] == "failed"]
    if failed:
        reasons = "; ".join(f"{record['name']}: {record['reason']}" for record in failed)
        raise RunError(
            f"{len(failed)} of {len(result['runs'])} runs failed: {reasons}; the same command "
            "tries them again"
        )


def make_study_parser() -> "StudyParser":
    """Return the parser of `sweep`."""
    parser = make_parser(sweep, TrainConfig, StudyParser)
    add_run_flags(parser)
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="OPTION=V,V,...",
        help="Values of an option, such as prompt.length=1,5,20. Given several times, all "
        "combinations are trained. A value that has a comma stands in a YAML list: "
        "'data.buckets=[[8, 16], [32]]'.",
    )
    parser.add_flag(
        "seeds",
        str | None,
        None,
        "Train every combination once for each of these seeds, such as 0,1,2 or 0-4.",
        metavar="S,S,...",
    )
    parser.add_flag(
        "sample",
        int | None,
        None,
        "Train only so many of the combinations, drawn at random by --seed.",
        metavar="N",
    )
    parser.add_flag(
        "together",
        int | Literal["auto"],
        "auto",
        "Train so many runs in one program; auto chooses the number by memory. What can share a "
        "program: prompts of any length, task, rate, init and seed for one model.",
        metavar="N",
    )
    parser.add_argument(
        "--halve",
        action="store_true",
        help="At an eighth, a quarter and a half of the steps, end the half of the combinations "
        "that is worse on dev. --dry-run prints the cost without it.",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print what would be trained and what it would cost, and train nothing.",
    )
    add_distributed_flags(parser)
    return parser


class StudyParser(Parser):
    """The command line of `sweep`, whose config files may hold what varies beside the options."""

    def read_study(self, argv: Sequence[str]) -> tuple[Any, Study]:
        """Read a command line.

        Returns:
            The command's own flags, and the study.

        Raises:
            ValueError: An option is unknown, a value does not fit its option, or an option is given
                that varies.
            FileNotFoundError: A config file does not exist.
        """
        self._parts: dict[str, Any] = {}
        flags, base = self.read_values(argv)
        parts = self._parts
        vary = {**parts.get("vary", {}), **dict(self._read_vary(text) for text in flags.vary)}
        given = {setting.name for setting in self._split(argv)[0]}
        for name in vary:
            if fixed := [option for option in given if f"{option}.".startswith(f"{name}.")]:
                raise ValueError(
                    f"--{fixed[0]} is given, but {name} varies in this study; to train one of its "
                    f"values alone, give --vary {name}=VALUE"
                )
        seeds = parts.get("seeds", ()) if flags.seeds is None else read_seeds(flags.seeds)
        sample = parts.get("sample") if flags.sample is None else flags.sample
        return flags, Study(base, vary, parts.get("runs", ()), seeds, sample)

    def _read_file(self, name: str) -> list[Setting]:
        tree, where = read_tree(name)
        if not isinstance(tree, dict):
            return super()._read_file(name)
        settings: list[Setting] = []
        if BASE in tree:
            if not isinstance(tree[BASE], str):
                raise ValueError(
                    f"{where}base is {show(tree[BASE])}, expected the name of a config"
                )
            base, origin = read_tree(tree[BASE])
            settings += self.flatten("", base, origin)
        for part in PARTS:
            if part in tree:
                self._parts[part] = getattr(self, f"_read_{part}_part")(tree[part], where)
        rest = {key: value for key, value in tree.items() if key not in (BASE, *PARTS)}
        return [*settings, *self.flatten("", rest, where)]

    def _read_vary_part(self, tree: Any, where: str) -> dict[str, list[Any]]:
        if not isinstance(tree, dict):
            raise ValueError(f"{where}vary is {show(tree)}, expected a mapping of options to lists")
        for name, values in tree.items():
            if not isinstance(values, list):
                raise ValueError(
                    f"{where}vary has {name}: {show(values)}, expected a list of values; write an "
                    "option below a section with a dot, such as prompt.length: [1, 5]"
                )
        return {
            name: [self._value(name, value, where) for value in values]
            for name, values in tree.items()
        }

    def _read_runs_part(self, tree: Any, where: str) -> list[dict[str, Any]]:
        if not isinstance(tree, list) or not all(isinstance(entry, dict) for entry in tree):
            raise ValueError(f"{where}runs is {show(tree)}, expected a list of mappings of options")
        runs = []
        for entry in tree:
            options = {name: value for name, value in entry.items() if name != NAME}
            named = {NAME: entry[NAME]} if NAME in entry else {}
            runs.append({**named, **self._options(options, where)})
        return runs

    def _read_seeds_part(self, tree: Any, where: str) -> list[int]:
        text = ",".join(map(str, tree)) if isinstance(tree, list) else str(tree)
        try:
            return read_seeds(text)
        except ValueError as error:
            raise ValueError(f"{where}{str(error).removeprefix('--')}") from None

    def _read_sample_part(self, tree: Any, where: str) -> int:
        return self.typed(Setting("sample", tree, where))

    def _read_vary(self, text: str) -> tuple[str, list[Any]]:
        """Read a flag `--vary OPTION=V,V`."""
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(
                f"--vary is '{text}', expected OPTION=V,V such as prompt.length=1,5,20"
            )
        where = "--vary: "
        if values.lstrip().startswith("["):
            trees = load_text(values, f"--vary {name}: ")
        else:
            parts = values.split(",") if values else []
            trees = [load_text(part, where) if self.is_tree(name) else part for part in parts]
        return name, [self._value(name, tree, where) for tree in trees]

    def _value(self, name: str, tree: Any, where: str) -> Any:
        """Return one value of an option that varies; that of a section as a mapping of options."""
        options = self._options_of(name, tree, where)
        if name in options:
            return options[name]
        return {option.removeprefix(f"{name}."): value for option, value in options.items()}

    def _options_of(self, name: str, tree: Any, where: str) -> dict[str, Any]:
        return {s.name: self.typed(s) for s in self.flatten(name, tree, where)}

    def _options(self, tree: Mapping[str, Any], where: str) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for name, value in tree.items():
            options |= self._options_of(name, value, where)
        return options


def _print_study(study: Study) -> None:
    """Print a study as YAML, which `--config` reads."""
    import yaml

    print(yaml.safe_dump(to_tree(study), sort_keys=False, allow_unicode=True), end="")


def _print(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the result of a sweep, or of --dry-run, as JSON or as a table with its sums below."""
    if as_json:
        return print_result(result, as_json)
    runs = result["runs"]
    columns = list(dict.fromkeys(name for record in runs for name in record if name != "reason"))
    print_table(columns, [[_cell(record.get(name)) for name in columns] for record in runs])
    print()
    print_result({name: value for name, value in result.items() if name != "runs"}, as_json)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
