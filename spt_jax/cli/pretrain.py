"""`spt-jax pretrain`: a backbone from scratch."""

from collections.abc import Sequence

from spt_jax.cache import keep_programs
from spt_jax.cli.options import (
    add_run_flags,
    make_parser,
    print_config,
    stdout_to_stderr_if,
    workdir,
)
from spt_jax.cli.printing import print_result
from spt_jax.config.pretrain import PretrainConfig
from spt_jax.distributed.preemption import listening


def pretrain(argv: Sequence[str]) -> None:
    """Pretrain a small T5 from scratch, or continue a run."""
    parser = make_parser(pretrain, PretrainConfig)
    add_run_flags(parser)
    flags, config = parser.read(argv)
    if flags.print_config:
        return print_config(config)
    keep_programs()
    with listening(), stdout_to_stderr_if(flags.json):
        from spt_jax.pretraining.pretrain import pretrain as run

        result = run(
            config,
            workdir(flags, config.name),
            overwrite=flags.overwrite,
            command=["spt-jax", "pretrain", *argv],
        )
    print_result(result, flags.json)
