"""`spt-jax serve`: one model and its prompts behind an address."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spt_jax.cache import keep_programs
from spt_jax.cli.options import (
    add_config_flags,
    add_dtype_flags,
    add_mesh_flags,
    add_prompt_flag,
    make_parser,
    read_config_flags,
    read_mesh_flags,
    read_prompt_flag,
)
from spt_jax.config.serve import EngineConfig, ServeConfig
from spt_jax.errors import require

KEY = "SPT_JAX_API_KEY"
"""The variable that may hold the key, because other users of a machine see command lines."""

_USAGE = "spt-jax serve --model M [--prompt NAME=PATH ...] [OPTIONS]"

_DETAILS = """The server speaks OpenAI's form: GET /v1/models, POST /v1/completions with the name of
a prompt, of an ensemble or of the model as "model", and POST /v1/classify for label words with
their probabilities. docs/serving.md describes all routes. Standard output has a line of JSON for
each request and event. SIGTERM and Ctrl-C end the server after the requests that it accepted."""


def serve(argv: Sequence[str]) -> None:
    """Serve a model and its prompts over HTTP, in OpenAI's form."""
    parser = make_parser(serve)
    parser.usage, parser.epilog = _USAGE, _DETAILS
    parser.add_flag(
        "model", str | None, None, "Frozen model, as `spt-jax train --model` takes it.", metavar="M"
    )
    add_prompt_flag(parser)
    parser.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="NAME=A,B",
        help="Name of an ensemble of prompts of one task: completions are their votes, and "
        "classify averages their log-probabilities; may be given again.",
    )
    parser.add_argument(
        "--prompts-dir",
        metavar="DIR",
        help="Folder of prompts that requests may load by name, with --allow-load.",
    )
    parser.add_argument(
        "--allow-load", action="store_true", help="Let requests load and unload prompts."
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"Key that every request must have; the variable {KEY} by default. Without either, "
        "whoever reaches the address may use it.",
    )
    parser.add_argument(
        "--log-texts", action="store_true", help="Write texts and answers to the access log too."
    )
    add_dtype_flags(parser)
    add_config_flags(parser, EngineConfig)
    add_config_flags(parser, ServeConfig)
    add_mesh_flags(parser)
    flags, _ = parser.read(argv)
    require(flags.model is not None, "no --model is given; see spt-jax serve --help")
    require(
        not flags.allow_load or flags.prompts_dir is not None,
        "--allow-load is given without the folder to load from; set --prompts-dir",
    )
    _serve(flags)


def _serve(flags: Any) -> None:
    prompts, ensembles = read_prompt_flag(flags.prompt), _read_ensembles(flags.ensemble)
    config, limits = read_config_flags(flags, EngineConfig), read_config_flags(flags, ServeConfig)
    folder = Path(flags.prompts_dir) if flags.allow_load else None
    require(folder is None or folder.is_dir(), f"--prompts-dir {folder} is not a folder")
    key = flags.api_key if flags.api_key is not None else os.environ.get(KEY)
    require(key != "", "the API key is empty; give some text, or leave it out for no key")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"the server needs {error.name}, which is not installed; pip install 'spt_jax[serve]'"
        ) from error
    keep_programs()
    from spt_jax.models.backbone import load_backbone
    from spt_jax.serving import server as serving
    from spt_jax.serving.engine import Engine
    from spt_jax.serving.telemetry import Telemetry

    with serving.bind(limits) as listening:
        backbone = load_backbone(
            flags.model,
            dtype=flags.dtype,
            param_dtype=flags.param_dtype,
            mesh=read_mesh_flags(flags),
            rows=config.batch_size,
        )
        telemetry = Telemetry()
        engine = Engine(
            backbone,
            prompts,
            config,
            ensembles=ensembles,
            prompts_dir=folder,
            on_batch=telemetry.on_batch,
        )
        if key is None and limits.host not in ("127.0.0.1", "::1", "localhost"):
            print(
                f"spt-jax: warning: anyone who reaches {limits.host}:{limits.port} may use this "
                f"server; set {KEY} to a key",
                file=sys.stderr,
            )
        server = serving.make_server(
            engine,
            limits,
            telemetry=telemetry,
            api_key=key,
            allow_load=flags.allow_load,
            log=sys.stdout,
            log_texts=flags.log_texts,
        )
        serving.serve(server, listening)


def _read_ensembles(given: Sequence[str]) -> dict[str, list[str]]:
    ensembles: dict[str, list[str]] = {}
    for text in given:
        name, equals, members = text.partition("=")
        require(
            bool(name and equals and members),
            f"--ensemble is '{text}', expected NAME=A,B, such as vote=seed_0,seed_1",
        )
        require(name not in ensembles, f"two ensembles are named '{name}'; rename one of them")
        ensembles[name] = members.split(",")
    return ensembles
