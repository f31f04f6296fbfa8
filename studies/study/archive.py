"""Keep the runs of the document in one file beside it: config, result, machine and date.

Run folders are large and get lost. This file has what a table or figure needs of them. An unpacked
run counts as finished. So a study can be made on several days and machines, and its document can be
written from the repository alone.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from spt_jax.runs.folder import RunFolder
from spt_jax.runs.log import read_log, write_atomic
from study import ensembles
from study.runs import Record

FILES = ("config.yaml", "manifest.json", "result.json", "measured.json", ensembles.FILE)


def pack(records: Sequence[Record], workdir: Path, file: Path) -> None:
    """Write the archive: a line for each finished run, in their order.

    Args:
        records: The runs.
        workdir: Folder of all runs, which their names are relative to.
        file: The archive, which is replaced.
    """
    lines = []
    for record in records:
        folder = record.run.folder
        files = {name: (folder / name).read_text() for name in FILES if (folder / name).is_file()}
        dev = [line for line in read_log(RunFolder(folder).log_file) if line.get("split") == "dev"]
        name = folder.relative_to(workdir).as_posix()
        lines.append(json.dumps({"run": name, "files": files, "log": dev}) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(lines).encode())


def unpack(file: Path, workdir: Path) -> None:
    """Make a folder for every archived run that has none. The archive may be missing.

    Raises:
        ValueError: A line of the archive is not one that `pack` wrote.
    """
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            archived = json.loads(line)
            folder, files, log = workdir / archived["run"], archived["files"], archived["log"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}, line {number} is no archived run ({type(error).__name__}: {error}); "
                "restore the file, or delete it to train all runs again"
            ) from None
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        RunFolder(folder).log_file.write_text("".join(json.dumps(entry) + "\n" for entry in log))
        for name, text in files.items():
            (folder / name).write_text(text)
