"""Rows of a dataset of TensorFlow Datasets, read from array_record files without TensorFlow.

Reading needs no TensorFlow and no code of the dataset: `TFDS_DATA_DIR/<name>/<config>/<version>`
describes itself. Preparing (download and conversion) is done once, by `spt-jax data prepare`, and
some builders import TensorFlow for it.
"""

import importlib
import os
import re
from importlib.util import find_spec
from typing import Any

from etils import epath

from spt_jax.data.papers.downloads import quiet_attempts
from spt_jax.data.records import Record
from spt_jax.errors import shorten

_ATTEMPTS = 4  # instead of 10, with which TFDS takes minutes to say that a host is not there
_NEED_TENSORFLOW = ("super_glue", "trec", "xsum", "cnn_dailymail")  # builders that import it
# Builders that TFDS registers only when TensorFlow is installed: name -> the module that does it.
_MODULES = {
    "glue": "tensorflow_datasets.text.glue",
    "super_glue": "tensorflow_datasets.text.super_glue",
    "mrqa": "tensorflow_datasets.text.mrqa",
    "xsum": "tensorflow_datasets.summarization.xsum",
    "cnn_dailymail": "tensorflow_datasets.summarization.cnn_dailymail",
}


def tfds_folder() -> epath.Path:
    """Where TFDS keeps its data: TFDS_DATA_DIR (a bucket too), or ~/tensorflow_datasets."""
    return epath.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def tfds_records(name: str, split: str, task: str) -> list[Record]:
    """The rows of a split that has been prepared.

    Args:
        name: Of the dataset with its config, such as `glue/sst2`.
        split: As the dataset calls it.
        task: For messages.

    Raises:
        ValueError: The dataset is not prepared, is not in array_record files, or has no such split.
    """
    folder = _newest_version(name, task)
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    splits = builder.info.splits
    if split not in splits:
        raise ValueError(
            f"dataset '{name}' in {folder} has no split '{split}' that task '{task}' needs; "
            f"it has {', '.join(splits)}"
        )
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"dataset '{name}' in {folder} is in {builder.info.file_format.value} files, which "
            f"only TensorFlow reads; delete that folder and run: spt-jax data prepare {task}"
        )
    rows = builder.as_data_source(split)
    read = rows.__getitems__(list(range(len(rows))))  # all at once is twice as fast as one by one
    return [Record(row, f"{name} {split} row {i}") for i, row in enumerate(read)]


def prepare_tfds(name: str, task: str) -> epath.Path:
    """Downloads a dataset and writes it as array_record files, unless that has been done.

    Returns:
        Its folder.

    Raises:
        ValueError: The builder needs TensorFlow, which is not installed, or preparing failed.
    """
    found = _versions(name)
    if found:
        return found[-1]
    if name.partition("/")[0] in _NEED_TENSORFLOW and find_spec("tensorflow") is None:
        raise ValueError(
            f"dataset '{name}' cannot be prepared without TensorFlow, which is not installed; "
            f"run: {_how_to_prepare(name, task)}"
        )
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = _ATTEMPTS
    try:
        if (module := _MODULES.get(name.partition("/")[0])) is not None:
            importlib.import_module(module)
        builder: Any = tfds.builder(name, data_dir=tfds_folder(), file_format="array_record")
        with quiet_attempts():
            builder.download_and_prepare()
    except Exception as error:  # no network, a changed checksum, and more, each of another class
        raise ValueError(
            f"dataset '{name}' of task '{task}' cannot be prepared "
            f"({type(error).__name__}: {shorten(str(error), 200)}); check the network and "
            f"{tfds_folder()}, or set task.origin to hub or to a folder of its files"
        ) from error
    return _versions(name)[-1]


def _newest_version(name: str, task: str) -> epath.Path:
    found = _versions(name)
    if found:
        return found[-1]
    raise ValueError(
        f"task '{task}' is read from tensorflow-datasets, and '{name}' is not prepared in "
        f"{tfds_folder()}; run: {_how_to_prepare(name, task)}; or set "
        "TFDS_DATA_DIR to where it is, or task.origin to hub or to a folder of its files"
    )


def _how_to_prepare(name: str, task: str) -> str:
    command = f"spt-jax data prepare {task}"
    if name.partition("/")[0] not in _NEED_TENSORFLOW:
        return command
    return (
        f"pip install 'spt_jax[tfds-prepare]' && {command} "
        "(preparing it needs TensorFlow, once; training does not)"
    )


def _versions(name: str) -> list[epath.Path]:
    """Folders of the prepared versions, the newest last."""
    folder = tfds_folder() / name
    if not folder.is_dir():
        return []

    prepared = [
        path
        for path in folder.iterdir()
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and (path / "dataset_info.json").exists()
    ]
    return sorted(prepared, key=lambda path: [int(part) for part in path.name.split(".")])
