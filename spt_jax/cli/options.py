"""What the commands have in common: the parser with its usual flags, and where they print.

Nothing here imports jax, so that help and a mistyped option answer at once.
"""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from spt_jax.cache import keep_programs
from spt_jax.cli.parser import Parser, option_helps
from spt_jax.config.decode import DecodeConfig
from spt_jax.config.devices import DistributedConfig, MeshConfig
from spt_jax.config.fields import Config, field_types, to_dict
from spt_jax.errors import require, suggest

AnyParser = TypeVar("AnyParser", bound=Parser)
AnyConfig = TypeVar("AnyConfig", bound=Config)


def make_parser(
    command: Callable, config: type | None = None, kind: type[AnyParser] = Parser
) -> AnyParser:
    """Return a parser named and described as the function of its command.

    It has the flags --json and --debug.

    Args:
        command: The function.
        config: Dataclass whose fields are options.
        kind: Class of the parser.
    """
    parser = kind(command.__name__, command.__doc__ or "", config)
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON object on stdout, and everything else on stderr.",
    )
    parser.add_argument("--debug", action="store_true", help="Print the traceback of an error.")
    return parser


def run_action(
    command: str, actions: Mapping[str, Callable], usage: str, argv: Sequence[str]
) -> None:
    """Runs the action that the first argument names, or prints what there is.

    Args:
        command: `prompt` in `spt-jax prompt show`.
        actions: By name.
        usage: Their usage, a line each.
        argv: The arguments after the command.

    Raises:
        ValueError: There is no such action.
    """
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, actions)) + 2
        explained = "\n".join(f"  {name:<{width}}{run.__doc__}" for name, run in actions.items())
        return print(
            f"usage: {usage}\n\n{explained}\n\n"
            f"`spt-jax {command} {next(iter(actions))} --help` explains every option."
        )
    if argv[0] not in actions:
        raise ValueError(
            f"unknown action '{argv[0]}' of {command}; expected one of {', '.join(actions)}"
            f"{suggest(argv[0], actions)}"
        )
    actions[argv[0]](argv[1:])


def add_run(parser: Parser) -> None:
    """Adds the folder of one run."""
    parser.add_argument("run", help="Folder of a training run, such as runs/quickstart.")


def add_fetch_flag(parser: Parser) -> None:
    """Add the names that a run's config may have fetched from the network."""
    parser.add_argument(
        "--fetch",
        action="append",
        default=[],
        metavar="NAME",
        help="What the run's config names and the network has to give: its model, as an address or "
        "as a Hub id that is not in the Hub's cache, or an address of its rows. Nothing else is "
        "fetched, because a run may come from a stranger; may be given again.",
    )


def add_run_flags(parser: Parser) -> None:
    """Adds what the commands that make a run have in common."""
    parser.add_flag(
        "workdir",
        str | None,
        None,
        "Folder of the run or the sweep; runs/<name of the config or task> by default.",
        metavar="DIR",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Start over: delete what the folder holds."
    )


def read_seeds(text: str) -> list[int]:
    """Return the seeds of `--seeds`: numbers, and ranges such as 0-4.

    Raises:
        ValueError: The text is something else, or has a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch("([0-9]+)(?:-([0-9]+))?", part.strip())
        first, last = (int(n) for n in (found[1], found[2] or found[1])) if found else (0, -1)
        seeds += range(first, min(last, first + 9_999) + 1)
        if first > last or len({*seeds}) < len(seeds):
            raise ValueError(
                f"--seeds is '{text}', expected different whole numbers such as 0,1,2 or 0-4"
            )
    return seeds


def add_dtype_flags(parser: Parser) -> None:
    """Adds --dtype and --param_dtype, as `models.backbone.load_backbone` takes them."""
    parser.add_flag(
        "dtype",
        Literal["auto", "float32", "bfloat16"],
        "auto",
        "Of activations; auto is bfloat16 on TPU and GPU, float32 on CPU.",
    )
    parser.add_flag(
        "param_dtype",
        Literal["float32", "bfloat16", "int8"] | None,
        None,
        "Of weights, int8 for the matrices alone; by default that of --dtype, or int8 if the model "
        "is stored so.",
    )


def add_mesh_flags(parser: Parser) -> None:
    """Adds a flag for each field of `MeshConfig`, `--mesh.data` and so on."""
    helps = option_helps(MeshConfig)
    for field in dataclasses.fields(MeshConfig):
        help = f"{helps[field.name]} By model and devices where no axis is given."
        parser.add_flag(f"mesh.{field.name}", int | None, None, help, metavar="N")


def read_mesh_flags(flags: Any) -> MeshConfig | None:
    """The mesh of the flags; None where none is given.

    Raises:
        ValueError: Its axes contradict each other.
    """
    given = {field.name: flags[f"mesh.{field.name}"] for field in dataclasses.fields(MeshConfig)}
    given = {name: size for name, size in given.items() if size is not None}
    return MeshConfig(**given) if given else None


def add_prompt_flag(parser: Parser) -> None:
    """Add the prompts of a model, each with a name."""
    parser.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="A prompt of the model and the name by which rows ask for it: a run, a "
        "prompt.safetensors, a .npy file or the folder of a PEFT adapter; may be given again.",
    )


def read_prompt_flag(given: Sequence[str]) -> dict[str, str]:
    """Return the path of each prompt by its name.

    Raises:
        ValueError: A text is no NAME=PATH, or two prompts have one name.
    """
    prompts: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--prompt is '{text}', expected NAME=PATH, such as sst2=runs/sst2")
        if name in prompts:
            raise ValueError(
                f"two prompts are named '{name}', {prompts[name]} and {path}; "
                "give one of them another name"
            )
        prompts[name] = path
    return prompts


def add_distributed_flags(parser: Parser) -> None:
    """Adds a flag for each field of `DistributedConfig`, `--distributed.coordinator` and so on."""
    hints, helps = get_type_hints(DistributedConfig), option_helps(DistributedConfig)
    for field in dataclasses.fields(DistributedConfig):
        name = f"distributed.{field.name}"
        parser.add_flag(name, hints[field.name], field.default, helps[field.name])


@contextlib.contextmanager
def connected(flags: Any, command: str, argv: Sequence[str]) -> Iterator[None]:
    """Connects the processes of a command, as its flags or the machine say.

    See `distributed/connect.py`. What they compile is kept, see `cache.py`.

    Raises:
        ValueError: The flags contradict each other.
        RunError: The processes do not find each other.
    """
    fields = dataclasses.fields(DistributedConfig)
    config = DistributedConfig(**{f.name: flags[f"distributed.{f.name}"] for f in fields})
    keep_programs()
    from spt_jax.distributed.connect import session

    with session(config, [command, *argv]):
        yield


def add_decode_flags(parser: Parser) -> None:
    """Adds a flag for each field of `DecodeConfig`, explained by its docstring."""
    add_config_flags(parser, DecodeConfig)


def add_config_flags(parser: Parser, config: type) -> None:
    """Add a flag for each field of a config class, explained by its docstring."""
    hints, helps = get_type_hints(config), option_helps(config)
    for field in dataclasses.fields(config):
        name, help = field.name, helps[field.name]
        if hints[name] is bool:
            parser.add_argument(f"--{name}", action="store_true", help=help)
        else:
            parser.add_flag(name, hints[name], field.default, help)


def read_decode_flags(flags: Any) -> DecodeConfig:
    """What these flags say.

    Raises:
        ValueError: They contradict each other.
    """
    return read_config_flags(flags, DecodeConfig)


def read_config_flags(flags: Any, config: type[AnyConfig]) -> AnyConfig:
    """Return the config that these flags say.

    Raises:
        ValueError: A value is out of range, or they contradict each other.
    """
    return config(**{name: flags[name] for name in field_types(config)})


def workdir(flags: Any, name: str) -> Path:
    """Return the folder that was given, or runs/ with the config file's name, or else with `name`.

    Raises:
        ValueError: An empty one was given, as by an unset variable.
    """
    if flags.workdir is not None:
        require(bool(flags.workdir.strip()), "--workdir is '', expected the folder of the run")
        return Path(flags.workdir)
    name = Path(flags.config[-1]).stem if flags.config else name
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "unnamed")


def stdout_to_stderr_if(condition: bool) -> contextlib.AbstractContextManager:
    """While it lasts, what is printed goes to stderr, where the condition holds."""
    return contextlib.redirect_stdout(sys.stderr) if condition else contextlib.nullcontext()


def print_config(config: Any) -> None:
    """Prints a config as YAML."""
    import yaml

    print(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), end="")
