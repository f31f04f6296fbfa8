"""`spt-jax plan`: whether a model fits a TPU slice, and what bounds its speed there."""

from collections.abc import Sequence

from spt_jax.cache import keep_no_programs
from spt_jax.cli.options import make_parser, print_config, stdout_to_stderr_if
from spt_jax.cli.printing import print_result
from spt_jax.config.plan import PlanConfig


def plan(argv: Sequence[str]) -> None:
    """Compile a model's programs for a TPU slice without having one."""
    parser = make_parser(plan, PlanConfig)
    flags, config = parser.read(argv)
    if flags.print_config:
        return print_config(config)
    keep_no_programs()
    with stdout_to_stderr_if(flags.json):
        from spt_jax.planning.plan import plan as compile_plan

        result = compile_plan(config)
    print_result(result, flags.json)
    if not result["fits"]:
        raise ValueError(_does_not_fit(result))


def _does_not_fit(result: dict) -> str:
    parts = [result, *(result[name] for name in ("decode",) if name in result)]
    part = max(parts, key=lambda part: part["peak_bytes_per_device"])
    needed, limit = (part[f"{name}_bytes_per_device"] / 2**30 for name in ("peak", "limit"))
    found = result["would_fit"]
    return (
        f"{result['model']} does not fit {result['topology']}: it needs {needed:.2f} GiB on each "
        f"device, which has {limit:.2f}, {needed - limit:.2f} GiB too much; "
        + (f"this fits: {found}" if found else "nothing that was tried fits; take a larger slice")
    )
