"""`spt-jax data`: what a task's rows are, and getting them."""

from collections.abc import Sequence
from typing import Any

from spt_jax.cli.options import make_parser, run_action, stdout_to_stderr_if
from spt_jax.cli.printing import print_json, print_result, print_table
from spt_jax.config.train import TrainConfig
from spt_jax.errors import suggest


def data(argv: Sequence[str]) -> None:
    """Show a task's examples and lengths, or prepare its dataset: data show|prepare TASK."""
    usage = (
        "spt-jax data show TASK [--n N] [--config FILE] [--OPTION=VALUE ...]\n"
        "       spt-jax data prepare TASK"
    )
    run_action("data", {"show": _show, "prepare": _prepare}, usage, argv)


def _show(argv: Sequence[str]) -> None:
    """Print examples of a task as text and tokens, and its lengths against the configured ones."""
    parser = make_parser(data, TrainConfig)
    parser.prog, parser.usage = "spt-jax data show", "%(prog)s TASK [--n N] [--OPTION=VALUE ...]"
    parser.description = _show.__doc__
    parser.add_flag("n", int, 3, "Examples of each split.")
    if argv and not argv[0].startswith("-"):
        argv = [*argv[1:], f"--task.name={argv[0]}"]
    flags, config = parser.read(argv)
    if flags.n < 0:
        raise ValueError(f"n is {flags.n} examples, expected 0 or more")
    with stdout_to_stderr_if(flags.json):
        from spt_jax.data.preview import preview
        from spt_jax.data.tasks import load_any, longest_input
        from spt_jax.models.open import find_tokenizer

        task = load_any(config.task)
        longest = {
            split: longest_input(config.task, config.data, split, config.eval.inputs_length)
            for split in task.splits
        }
        tokenizer = find_tokenizer(config.model)
        result = preview(task, tokenizer, config.data, flags.n, longest)
    if flags.json:
        return print_json(result)
    print(f"{result['task']}: {', '.join(result['metrics'])}", *result["notes"], sep="\n")
    for example in result["examples"]:
        print(f"\n{example['split']}\n  inputs   {example['inputs']!r}")
        print(f"           {' '.join(example['input_tokens'])}")
        print(f"  targets  {example['targets']!r}")
        print(f"           {' '.join(example['target_tokens'])}")
        if "answers" in example:
            print(f"  answers  {', '.join(map(repr, example['answers']))}")
    print(f"\ntokens with the end marker, by the tokenizer of {config.model}:")
    header = list(result["lengths"][0])
    print_table([*header[:-1], "cut"], [_cells(row) for row in result["lengths"]])


def _cells(row: dict[str, Any]) -> list[str]:
    shown = {name: "-" if value is None else str(value) for name, value in row.items()}
    return [*(shown | {"cut": f"{row['cut']:.1f}%"}).values()]


def _prepare(argv: Sequence[str]) -> None:
    """Download a task's dataset and keep it where training reads it, in TFDS_DATA_DIR."""
    parser = make_parser(data)
    parser.prog, parser.description = "spt-jax data prepare", _prepare.__doc__
    parser.add_argument("task", help="A task of the papers, such as glue/sst2.")
    flags, _ = parser.read(argv)
    with stdout_to_stderr_if(flags.json):
        from spt_jax.data.papers.splits import paper_task_names, tfds_names
        from spt_jax.data.papers.tfds import prepare_tfds

        if flags.task not in paper_task_names():
            raise ValueError(
                f"task '{flags.task}' has no dataset to prepare; those that have: "
                f"{', '.join(paper_task_names())}{suggest(flags.task, paper_task_names())}"
            )
        names = tfds_names(flags.task)
        if not names:
            raise ValueError(
                f"task '{flags.task}' is not in tensorflow-datasets as it is needed, and there is "
                "nothing to prepare; set task.origin to hub or to a folder of its files"
            )
        folders = {name: str(prepare_tfds(name, flags.task)) for name in names}
    print_result({"task": flags.task, **folders}, flags.json)
