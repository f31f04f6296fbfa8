"""Rows of JSONL, answered by one frozen model and its prompts, from a file or stream to another.

One window of rows is held in memory at a time. A run from file to file that was killed continues
where it was, and its output is byte for byte that of an undisturbed run (`prediction/output.py`):
windows begin at the same lines and have the same batches, and a row samples by its line number.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

import jax

from spt_jax.config.decode import WINDOW, DecodeConfig
from spt_jax.config.devices import MeshConfig
from spt_jax.config.train import DataConfig
from spt_jax.data.files import read_records
from spt_jax.data.places import File
from spt_jax.data.text import as_text
from spt_jax.distributed.main_process import main_only, on_main
from spt_jax.errors import require
from spt_jax.models.backbone import load_backbone
from spt_jax.prediction.inputs import InputForm, form_of
from spt_jax.prediction.output import Identity, OutputFile, OutputStream, check_output
from spt_jax.prediction.predictor import Predictor, require_seed
from spt_jax.prediction.rows import RowPredictor, Window, answer_lines
from spt_jax.prompts.bank import PromptBank, load_prompts
from spt_jax.pytree import fingerprint
from spt_jax.runs.progress import Bar, say


def predict_file(
    model: str,
    prompts: Mapping[str, str | Path],
    source: Path | IO[bytes],
    output: Path | IO[bytes],
    *,
    data: DataConfig = DataConfig(),  # noqa: B008  it is frozen
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008
    seed: int = 0,
    dtype: str = "auto",
    param_dtype: str | None = None,
    mesh: MeshConfig | None = None,
    window: int = WINDOW,
    scores: bool = False,
    raw: bool = False,
    overwrite: bool = False,
) -> dict:
    """Answer every row of a file.

    A row is `{"prompt": name, "text": text}`, with any other fields. A row without `prompt` gets
    the only prompt if there are not several, and null is no prompt. If the run of a prompt has a
    template, the row has the template's fields instead of `text`; `text` stands for the field of a
    template with one. Other prompts, and rows without a prompt, take `text` as the finished input.

    The row is written with `output`, with `outputs` if `decode` asks for several results, and with
    `scores` if asked for. A line that cannot be answered goes to OUTPUT.errors.jsonl instead; blank
    lines are left out.

    Args:
        model: Name of the model; see `load_backbone`.
        prompts: Path of each prompt by its name; see `load_bank`.
        source: A file of JSONL, CSV, TSV, Parquet or a JSON array, maybe compressed, or a stream of
            JSONL; a killed run on a stream cannot be continued. The rows of a table or an array
            become lines of JSON before they are numbered.
        output: A file, or a stream; errors are then lines on stderr.
        data: Lengths, and rows of a batch.
        decode: How answers are generated.
        seed: Seed for sampling.
        dtype: Type of the activations; `auto` is bfloat16 on TPU and GPU, float32 on CPU.
        param_dtype: Type of the weights; None as in `load_backbone`.
        mesh: How devices share the work; `automesh` decides if None.
        window: Lines that are read, sorted by length and answered together.
        scores: Whether to add the scores.
        raw: Whether every `text` is a finished input, which no template is applied to.
        overwrite: Whether to delete what another run has left at `output`.

    Returns:
        Numbers of rows `answered` and `failed`; the files `output` and `errors`, or None.

    Raises:
        FileNotFoundError: There is no such file, or no folder for the output.
        IsADirectoryError: The input or the output is a folder.
        FileExistsError: The output is of another run.
        ValueError: There is no such model, a prompt does not fit it, or the seed has over 32 bits.
        RunError: The output cannot be written, or another process is writing it.
    """
    require(window >= 1, f"window is {window}, expected 1 or more")
    require_seed(seed)
    path = source if isinstance(source, Path) else None
    on_main(lambda: _check(path, output))
    backbone = load_backbone(
        model, dtype=dtype, param_dtype=param_dtype, mesh=mesh, rows=data.batch_size
    )
    stored = load_prompts(backbone, prompts)
    forms = {
        name: InputForm() if raw else form_of(prompt.metadata) for name, prompt in stored.items()
    }
    for name, form in forms.items():
        require(
            "prompt" not in form.fields,
            f"the template of prompt '{name}' has a field 'prompt', which here names the prompt of "
            "a row; answer by the run alone (spt-jax predict RUN --input FILE), or give raw inputs",
        )
    d_model = backbone.model.config.d_model
    bank = PromptBank.from_prompts({name: s.prompt for name, s in stored.items()}, d_model)
    predictor = Predictor(
        backbone,
        bank,
        inputs_length=data.inputs_length,
        targets_length=data.targets_length,
        batch_size=data.batch_size,
        decode=decode,
        seed=seed,
    )
    identity = {
        "model": backbone.fingerprint,
        **_prompt_fingerprints(bank),
        **{f"template {name}": form.template for name, form in forms.items() if form.template},
        **{
            f"missing {name}": form.missing
            for name, form in forms.items()
            if form.missing != "error"
        },
        "dtype": backbone.model.dtype.name,
        **(
            {"param_dtype": backbone.param_dtype}
            if backbone.param_dtype != backbone.model.dtype.name
            else {}
        ),
        "inputs_length": data.inputs_length,
        "targets_length": data.targets_length,
        "batch_size": data.batch_size,
        **dataclasses.asdict(decode),
        "seed": seed,
        "window": window,
        "scores": scores,
    }
    return answer_rows(
        predictor,
        forms,
        source,
        output,
        identity=identity,
        window=window,
        several=decode.num_results > 1,
        scores=scores,
        overwrite=overwrite,
    )


def answer_rows(
    predictor: RowPredictor,
    prompts: Mapping[str, InputForm],
    source: Path | IO[bytes],
    output: Path | IO[bytes],
    *,
    identity: Identity,
    window: int,
    several: bool,
    scores: bool,
    overwrite: bool,
) -> dict:
    """Do the work of `predict_file` after loading; the answers depend on `identity` alone."""
    with main_only(lambda: _open(source, output, identity, overwrite)) as files:
        done, finished = on_main(lambda: (files.sink.done, files.sink.finished))
        if finished:
            say(f"{output} is finished; the same run has written it")
        else:
            if done.lines:
                say(f"continuing {output} after line {done.lines} of {source}")
            windows = answer_lines(
                _lines(files, window),
                predictor,
                prompts,
                first=done.lines + 1,
                window=window,
                several=several,
                scores=scores,
            )
            for answered in windows:
                files.commit(answered)
            on_main(lambda: files.sink.finish())
        return on_main(lambda: files.result())


class _Files:
    """What process 0 reads and writes: the input, the output, and a progress bar if shown."""

    def __init__(self, source: IO[bytes], sink: OutputFile | OutputStream, bar: Bar | None):
        self.source, self.sink, self._bar = source, sink, bar

    def commit(self, answered: Window) -> None:
        self.sink.commit(answered)
        if self._bar:
            self._bar.update(self.sink.done.lines, {"failed": self.sink.done.failed})

    def result(self) -> dict:
        sink = self.sink
        return {
            "answered": sink.done.answered,
            "failed": sink.done.failed,
            "output": sink.path,
            "errors": sink.errors if sink.done.failed else None,
        }


@contextlib.contextmanager
def _open(
    source: Path | IO[bytes], output: Path | IO[bytes], identity: Identity, overwrite: bool
) -> Iterator[_Files]:
    with contextlib.ExitStack() as stack:
        packed = File(str(source), lambda: Path(str(source)).read_bytes())
        if not isinstance(source, Path):
            file = source
        elif packed.suffix in (".csv", ".tsv", ".parquet", ".json"):
            file = io.BytesIO(_table_lines(source))
        elif packed.unpacked != packed.place:
            file = io.BytesIO(packed.read())
        else:
            file = stack.enter_context(open(source, "rb"))
        digest, size, lines = None, None, None
        if isinstance(source, Path) and source.is_file():
            digest, size, lines = _measure(file)
        elif isinstance(output, Path):
            say("a stream cannot be read again: if this run is killed, it starts over")
        identity = {**identity, "input": digest, "input_bytes": size}
        if isinstance(output, Path):
            sink = stack.enter_context(OutputFile(output, identity, overwrite=overwrite))
        else:
            sink = OutputStream(output)
        if lines is not None:
            file.seek(sink.done.input_bytes)
        quiet = not isinstance(output, Path) and output.isatty()  # a bar among the rows
        bar = None
        if not quiet and not sink.finished:
            bar = stack.enter_context(Bar("predict", lines, sink.done.lines))
        yield _Files(file, sink, bar)


def _lines(files: _Files, window: int) -> Iterator[bytes]:
    """Yield the lines that process 0 reads, a window at a time, on every process."""
    while chunk := on_main(lambda: list(islice(files.source, window))):
        yield from chunk


def _table_lines(source: Path) -> bytes:
    """Return the rows of a table as JSONL; null where a number is missing (NaN).

    Raises:
        ValueError: A row has a value that JSON cannot hold, such as the bytes of an image; or see
            `read_records`.
    """
    lines = []
    for record in read_records(str(source)):
        row = {name: None if x != x else x for name, x in record.values.items()}
        try:
            lines.append(json.dumps(row, ensure_ascii=False, default=as_text) + "\n")
        except ValueError as error:
            raise ValueError(
                f"{record.place}: a value is {error}, which a line of the output cannot hold; "
                "leave its column out of the table"
            ) from None
    return "".join(lines).encode(errors="replace")


def _check(source: Path | None, output: Path | IO[bytes]) -> None:
    if source is not None and not source.exists():
        raise FileNotFoundError(f"input file {source} does not exist; expected a file of JSONL")
    if source is not None and source.is_dir():
        raise IsADirectoryError(f"input {source} is a folder; expected a file of JSONL")
    if isinstance(output, Path):
        check_output(output, source)


def _measure(file: IO[bytes]) -> tuple[str, int, int]:
    """Return the sha256 in hex, the size in bytes, and the number of lines of an open file."""
    digest, size, lines, last = hashlib.sha256(), 0, 0, b"\n"
    while block := file.read(1 << 20):
        digest.update(block)
        size, lines, last = size + len(block), lines + block.count(b"\n"), block[-1:]
    return digest.hexdigest(), size, lines + (last != b"\n")


def _prompt_fingerprints(bank: PromptBank) -> dict[str, str]:
    arrays = jax.device_get(bank.arrays)
    return {
        f"prompt {name}": fingerprint({"prompt": vectors[mask]})
        for name, vectors, mask in zip(bank.names, arrays.vectors[1:], arrays.mask[1:], strict=True)
        if name is not None
    }
