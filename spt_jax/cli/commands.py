"""The commands of `spt-jax`. A new one is a module of `spt_jax.cli` and a name here."""

from collections.abc import Callable, Sequence

from spt_jax.cli.convert import convert
from spt_jax.cli.data import data
from spt_jax.cli.evaluate import evaluate
from spt_jax.cli.inspect import inspect
from spt_jax.cli.interpret import interpret
from spt_jax.cli.nearest import nearest
from spt_jax.cli.plan import plan
from spt_jax.cli.predict import predict
from spt_jax.cli.pretrain import pretrain
from spt_jax.cli.prompt import prompt
from spt_jax.cli.report import report
from spt_jax.cli.serve import serve
from spt_jax.cli.sweep import sweep
from spt_jax.cli.train import train

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command
    for command in (
        train,
        sweep,
        report,
        evaluate,
        predict,
        nearest,
        interpret,
        inspect,
        data,
        pretrain,
        convert,
        prompt,
        plan,
        serve,
    )
}
"""Each in its module of `spt_jax.cli`; none of them imports jax before it runs."""
