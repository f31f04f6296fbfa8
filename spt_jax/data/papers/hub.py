"""Rows of a dataset of the Hugging Face Hub, by the library `datasets` (an extra)."""

import importlib
from collections.abc import Mapping
from typing import Any

from spt_jax.data.papers.downloads import quiet_attempts
from spt_jax.data.records import Record
from spt_jax.errors import shorten


def hub_records(
    path: str, config: str | None, where: Mapping[str, str], split: str, task: str
) -> list[Record]:
    """The rows of a split, downloaded or from the cache of `datasets`.

    Args:
        path: The dataset, such as `nyu-mll/glue`.
        config: Its configuration.
        where: Column -> value; other rows are left out.
        split: As the dataset calls it.
        task: For messages.

    Raises:
        ValueError: `datasets` is not installed, the dataset cannot be had, or no row is left.
    """
    try:
        datasets = importlib.import_module("datasets")  # an extra, which type checkers may lack
    except ModuleNotFoundError:
        raise ValueError(
            f"task '{task}' with task.origin 'hub' needs the package datasets, which is not "
            "installed; pip install 'spt_jax[hub]'"
        ) from None
    name = "/".join([path, *([config] if config else [])])
    try:
        with quiet_attempts():
            rows = _load(datasets, path, config, split)
    except Exception as error:  # no network, no such dataset, and many more, each of another class
        raise ValueError(
            f"split '{split}' of dataset '{name}' cannot be loaded from the Hub "
            f"({type(error).__name__}: {shorten(str(error), 200)}); check the network and "
            "HF_TOKEN, or set task.origin to a folder of its files"
        ) from error
    records = [
        Record(row, f"{name} {split} row {number}")
        for number, row in enumerate(rows)
        if all(row.get(column) == value for column, value in where.items())
    ]
    if not records:
        wanted = "".join(f" with {column} '{value}'" for column, value in where.items())
        raise ValueError(f"split '{split}' of dataset '{name}' has no rows{wanted}")
    return records


def _load(datasets: Any, path: str, config: str | None, split: str) -> Any:
    try:
        return datasets.load_dataset(path, config, split=split)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
    # The Hub keeps what such a script makes as Parquet files, a folder for each configuration.
    return datasets.load_dataset(
        path, data_dir=config or "default", split=split, revision="refs/convert/parquet"
    )
