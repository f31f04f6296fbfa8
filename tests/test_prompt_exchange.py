"""Prompts in and out: what is written is what was read, and what is damaged is refused."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import runs, tiny

from spt_jax.cli import main as cli
from spt_jax.errors import RunError
from spt_jax.prompts import convert as transfer
from spt_jax.prompts import words
from spt_jax.prompts.convert import export_prompt, import_prompt
from spt_jax.prompts.file import load_prompt, save_prompt
from spt_jax.prompts.npy import npy_bytes
from spt_jax.prompts.read import read_prompt
from spt_jax.prompts.words import show_prompt

PROMPT = runs.random_prompt(4, seed=0)
ADAPTER = {
    "peft_type": "PROMPT_TUNING",
    "task_type": "SEQ_2_SEQ_LM",
    "num_virtual_tokens": 4,
    "num_transformer_submodules": 2,
    "token_dim": 16,
    "base_model_name_or_path": "google/t5-small-lm-adapt",
    "inference_mode": True,
}


def write_adapter(folder: Path, tensors=None, **config) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **config}))
    rows = np.concatenate([PROMPT, np.full_like(PROMPT, 7)])
    tensors = {"prompt_embeddings": rows} if tensors is None else tensors
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    return runs.write_run(folder / "run", tiny.train_config(folder), PROMPT)


# What is written and read.


@pytest.mark.parametrize("task", [0, 1])
def test_a_task_of_a_multitask_adapter_folds_into_a_prompt(tmp_path, task):
    write = multitask(task=f"#{task}")
    found = read_prompt(write(tmp_path))
    columns, rows = (write.tensors[f"prefix_task_{side}"][task] for side in ("cols", "rows"))
    np.testing.assert_allclose(found.prompt, PROMPT * (columns @ rows), rtol=1e-6)
    assert found.format == "peft"


def test_a_path_that_ends_like_a_task_is_a_path(tmp_path):
    path = npy(PROMPT)(tmp_path).rename(tmp_path / "p.npy#1")
    np.testing.assert_array_equal(read_prompt(path).prompt, PROMPT)


@pytest.mark.parametrize("format", ["peft", "npy", "safetensors"])
def test_a_prompt_comes_back_from_every_format(tmp_path, run, format):
    out, back = tmp_path / "deep/out", tmp_path / "back.safetensors"
    export_prompt(run, out, format=format)
    import_prompt(out, back)
    prompt, metadata = load_prompt(back)
    assert prompt.tobytes() == PROMPT.tobytes()
    _, kept = load_prompt(run / "prompt.safetensors")
    assert kept["fingerprint"]
    assert metadata.items() >= ({} if format == "npy" else kept).items()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []  # no drafts


def test_what_others_find_in_our_exports(tmp_path, run):
    export_prompt(run, tmp_path / "p.npy", format="npy")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy", allow_pickle=False), PROMPT)
    export_prompt(run, tmp_path / "peft", format="peft", base="google/t5-v1_1-base")
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    stated = {"num_virtual_tokens": 4, "num_transformer_submodules": 1, "token_dim": 16}
    assert config.items() >= stated.items()
    assert config["base_model_name_or_path"] == "google/t5-v1_1-base"
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    np.testing.assert_array_equal(tensors["prompt_embeddings"], PROMPT)


def test_a_pinned_revision_goes_out_and_comes_back(tmp_path, run):
    export_prompt(run, tmp_path / "a", format="peft", base="google/t5-v1_1-base@1a2b")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "google/t5-v1_1-base"
    assert config["revision"] == "1a2b"
    stored = read_prompt(write_adapter(tmp_path / "b", revision="1a2b"))
    assert stored.metadata == {"model": "google/t5-small-lm-adapt@1a2b"}


def test_the_half_that_peft_never_uses_is_left_out(tmp_path):
    stored = read_prompt(write_adapter(tmp_path / "a"))
    assert stored.prompt.tobytes() == PROMPT.tobytes()
    assert stored.metadata == {"model": "google/t5-small-lm-adapt"}


def test_half_precision_is_widened_exactly(tmp_path):
    half = PROMPT.astype(np.float16)
    folder = write_adapter(
        tmp_path / "a", {"prompt_embeddings": half}, num_transformer_submodules=None
    )
    np.testing.assert_array_equal(read_prompt(folder).prompt, half.astype(np.float32))


def test_a_fortran_array_keeps_its_rows(tmp_path):
    np.save(tmp_path / "p.npy", np.asfortranarray(PROMPT))
    assert b"'fortran_order': True" in (tmp_path / "p.npy").read_bytes()
    np.testing.assert_array_equal(read_prompt(tmp_path / "p.npy").prompt, PROMPT)


def test_import_takes_the_identity_of_the_model(tmp_path, run, capsys):
    np.save(tmp_path / "p.npy", PROMPT)
    source, dest, model = str(tmp_path / "p.npy"), str(tmp_path / "p.st"), str(run.parent / "tiny")
    assert cli.main(["prompt", "import", source, dest, f"--model={model}", "--task=sst2"]) == 0
    _, of_run = load_prompt(run / "prompt.safetensors")
    _, metadata = load_prompt(dest)
    assert metadata == {
        "model": of_run["model"],
        "fingerprint": of_run["fingerprint"],
        "task": "sst2",
        "length": "4",
        "imported_from": "npy",
    }
    other = tiny.write_backbone(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert cli.main(["prompt", "import", dest, f"{dest}2", f"--model={other}"]) == 2
    assert "was trained on model 'tiny-0' with fingerprint" in capsys.readouterr().err
    assert not Path(f"{dest}2").exists()


RELEASED = {  # mean, least and largest norm of a row, and the largest value
    "sst2": (1385, 344, 2177, 748),
    "mrpc": (868, 316, 1473, 225),
    "rte": (903, 235, 2004, 330),
}


@pytest.mark.parametrize("task", RELEASED)
def test_the_released_prompts(tmp_path, data_dir, task):
    source = data_dir / "t5/t5_1_1_lm100k_base" / f"{task}.npy"
    result = import_prompt(source, tmp_path / "p.safetensors", task=task)
    prompt, _ = load_prompt(tmp_path / "p.safetensors")
    assert (result["length"], result["d_model"]) == prompt.shape == (100, 768)
    np.testing.assert_array_equal(prompt, np.load(source))
    norm = result["norm"]
    found = (norm["mean"], norm["min"], norm["max"], result["largest"])
    assert tuple(round(float(value)) for value in found) == RELEASED[task]


# show.


def test_show_finds_the_words_that_a_prompt_is_made_of(tmp_path, run, capsys):
    from spt_jax.models.backbone import load_backbone

    backbone = load_backbone(str(run.parent / "tiny"))
    table = np.asarray(backbone.params["token_embedder"]["embedding"])
    save_prompt(tmp_path / "p", 3 * table[[40, 50]], {"task": "made", "score": 81.5})
    shown = show_prompt(tmp_path / "p", model=str(run.parent / "tiny"), k=1)
    assert (shown["task"], shown["score"], shown["length"]) == ("made", "81.5", 2)
    nearest = [row["cosine"][0][0] for row in shown["rows"]]
    assert nearest == [backbone.tokenizer.piece(40), backbone.tokenizer.piece(50)]
    norms = np.linalg.norm(3 * table[[40, 50]], axis=1)
    assert shown["norm"]["mean"] == pytest.approx(norms.mean(), rel=1e-6)

    assert cli.main(["prompt", "show", str(tmp_path / "p")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert ["score", "81.5"] in [line.split() for line in out]
    assert out[-1].split(maxsplit=1)[1].startswith("no nearest words: the file names no model")
    assert cli.main(["prompt", "show", str(tmp_path / "p"), f"--model={run.parent / 'tiny'}"]) == 0
    assert "by cosine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "model",
    ["gs://bucket/t5", "http://127.0.0.1:9/t5", "google/t5-small-lm-adapt", "../models", "nothing"],
)
def test_a_file_does_not_decide_what_is_fetched(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(words, "load_backbone", None)
    save_prompt(tmp_path / "p", PROMPT, {"model": model})
    shown = show_prompt(tmp_path / "p")
    assert shown["note"] == (
        f"no nearest words: the file's model '{model}' is no bundled one and no folder on this "
        "machine; give --model"
    )
    assert "rows" not in shown


def test_show_opens_a_local_model_and_goes_on_without_one(tmp_path, run):
    (tmp_path / "empty").mkdir()
    local = str(run.parent / "tiny")
    for model, note in {
        local: None,
        str(tmp_path / "empty"): "no nearest words: unknown model '.*empty'; .*; give --model",
        "x" * 5000: "no nearest words: .*File name too long; give --model",
    }.items():
        save_prompt(tmp_path / "p", PROMPT, {"model": model, "note": "forged", "rows": "forged"})
        shown = show_prompt(tmp_path / "p")
        assert ("rows" in shown) == (model == local)
        assert re.fullmatch(note, shown["note"]) if note else "note" not in shown
    with pytest.raises(ValueError, match="unknown model 'nor this one'"):
        show_prompt(tmp_path / "p", model="nor this one")


def test_metadata_sends_nothing_to_the_terminal(tmp_path, capsys):
    metadata = {"task": "a\x1b[2Jb\nscore  100", "t\x9bx": "\u202e\u2028"}
    save_prompt(tmp_path / "p", PROMPT, metadata)
    assert cli.main(["prompt", "show", str(tmp_path / "p"), "--k=0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines[1:3]] == [
        ["task", "a\\u001b[2Jb\\nscore  100"],
        ["t\\u009bx", "\\u202e\\u2028"],
    ]
    assert cli.main(["prompt", "show", str(tmp_path / "p"), "--k=0", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.strip().isprintable() and metadata.items() <= json.loads(out).items()


# What is refused.


def npy(array, **options):
    def write(folder):
        np.save(folder / "p.npy", array, **options)
        return folder / "p.npy"

    return write


def npy_bytes_and(extra):
    def write(folder):
        data = npy_bytes(PROMPT)
        (folder / "p.npy").write_bytes(data[:extra] if extra < 0 else data + bytes(extra))
        return folder / "p.npy"

    return write


def raw(name, data):
    def write(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return write


def adapter(tensors=None, **config):
    return lambda folder: write_adapter(folder / "a", tensors, **config)


def multitask(rows=4, task="", submodules=1):
    """An adapter of two tasks with rank 2."""
    rng = np.random.default_rng(3)
    tensors = {
        "prompt_embeddings": np.concatenate([PROMPT] * submodules),
        "prefix_task_cols": rng.standard_normal((2, rows, 2)).astype(np.float32),
        "prefix_task_rows": rng.standard_normal((2, 2, 16)).astype(np.float32),
    }

    def write(folder):
        settings = {"num_transformer_submodules": submodules, "num_virtual_tokens": 4}
        settings["peft_type"] = "MULTITASK_PROMPT_TUNING"
        made = write_adapter(folder / "a", tensors, **settings)
        return f"{made}{task}"

    write.tensors = tensors
    return write


def damaged(name, change):
    def write(folder):
        path = write_adapter(folder / "a") / name
        data = change(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)
        return path.parent

    return write


def pickled(folder):
    (write_adapter(folder / "a") / "adapter_model.safetensors").rename(
        folder / "a/adapter_model.bin"
    )
    return folder / "a"


def bad_value(value):
    array = PROMPT.copy()
    array[1, 2] = value
    return array


TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
WIDE = {"prompt_embeddings": np.ones((8, 24), np.float32)}
REFUSED = {
    "prefix tuning": (adapter(peft_type="PREFIX_TUNING"), "'PREFIX_TUNING', which puts keys and"),
    "LoRA": (adapter(peft_type="LORA"), "'LORA', which is no prompt; expected PROMPT_TUNING or P_"),
    "multitask without factors": (
        adapter(peft_type="MULTITASK_PROMPT_TUNING"),
        r"holds the tensors \['prompt_embeddings'\], expected 'prompt_embeddings and prefix_task_c",
    ),
    "multitask of another length": (
        multitask(rows=3),
        r"has prefix_task_cols \[2, 3, 2\] and prefix_task_rows \[2, 2, 16\], expected \[tasks, 4,",
    ),
    "multitask for the decoder too": (
        multitask(rows=8, task="#0", submodules=2),
        "a has vectors for the decoder too .*, which no prompt here has; expected one with num_tr",
    ),
    "multitask without a task": (
        multitask(),
        "has 2 tasks and no task is named; give one as '.*a#0' to '.*a#1'",
    ),
    "multitask beyond": (multitask(task="#2"), "has 2 tasks and task 2 is asked for; give one as"),
    "a task of one prompt": (
        lambda folder: f"{write_adapter(folder / 'a')}#0",
        "has one prompt, but task 0 of it is asked for; leave '#0' out",
    ),
    "a task of an array": (
        lambda folder: f"{npy(PROMPT)(folder)}#1",
        "p.npy#1' names a task, but '.*p.npy' is no PEFT adapter",
    ),
    "no type": (adapter(peft_type=None), "has peft_type None"),
    "decoder only": (adapter(task_type="CAUSAL_LM"), "'CAUSAL_LM', expected 'SEQ_2_SEQ_LM'"),
    "no length": (adapter(num_virtual_tokens=True), "num_virtual_tokens True, expected a whole"),
    "other width": (
        adapter(WIDE),
        "vectors of 24 numbers, but adapter_config.json says token_dim 16",
    ),
    "other length": (
        adapter(num_virtual_tokens=3),
        r"shape \[8, 16\], but .*tokens 3 .*\[3, D\] or \[6",
    ),
    "one of two": (adapter(num_transformer_submodules=1), r"shape \[8, 16\], but adapter_config"),
    "other weights": (
        adapter({"prompt_embeddings": PROMPT, "lm_head.weight": PROMPT}),
        r"holds the tensors \['lm_head.weight', 'prompt_embeddings'\], expected 'prompt_em",
    ),
    "float64 adapter": (
        adapter({"prompt_embeddings": PROMPT.astype(np.float64)}, num_transformer_submodules=1),
        r"holds float64 \[4, 16\], expected float32, bfloat16 or float16",
    ),
    "NaN in an adapter": (
        adapter({"prompt_embeddings": bad_value(np.nan)}, num_transformer_submodules=1),
        "has 1 of 64 values that are NaN or inf",
    ),
    "no tensors": (
        damaged(TENSORS, lambda data: None),
        "has no adapter_model.safetensors; expected",
    ),
    "pickle": (pickled, "adapter_model.bin is a pickle, which is never loaded; save the adapter"),
    "config cut": (damaged(CONFIG, lambda data: data[:40]), "adapter_config.json cannot be read"),
    "config is a list": (
        damaged(CONFIG, lambda data: b"[]"),
        "holds a list, expected a JSON object",
    ),
    "tensors cut": (
        damaged(TENSORS, lambda data: data[:-3]),
        "cannot be read: .* file not fully covered; expected a whole safetensors file, download",
    ),
    "absurd header": (
        damaged(TENSORS, lambda data: struct.pack("<Q", 1 << 60) + data[8:]),
        "cannot be read: .* header too large; expected a whole safetensors file, download",
    ),
    "absurd header of ours": (
        raw("p.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        "p.safetensors is not a whole safetensors file",
    ),
    "rank 1": (npy(PROMPT[0]), r"p.npy holds float32 \[16\]; expected a .npy file of float32 \[P"),
    "rank 3": (npy(PROMPT[None]), r"p.npy holds float32 \[1, 4, 16\]; expected"),
    "empty": (npy(PROMPT[:0]), r"p.npy holds float32 \[0, 16\]; expected"),
    "float64": (npy(PROMPT.astype(np.float64)), r"p.npy holds float64 \[4, 16\]; expected"),
    "big-endian": (npy(PROMPT.astype(">f4")), r"p.npy holds >f4 \[4, 16\]; expected"),
    "structure": (
        npy(np.zeros(3, [("a", "<f4")])),
        r"p.npy holds \[\('a', '<f4'\)\] \[3\]; expected",
    ),
    "objects": (
        npy(np.array([[None]]), allow_pickle=True),
        r"p.npy is not a whole .npy file \(.*Python objects in dtype",
    ),
    "NaN": (npy(bad_value(np.nan)), "has 1 of 64 values that are NaN or inf, expected finite ones"),
    "inf": (npy(bad_value(-np.inf)), "has 1 of 64 values that are NaN or inf"),
    "npy cut": (npy_bytes_and(-1), r"p.npy is not a whole .npy file \(mmap length is greater"),
    "npy and more": (npy_bytes_and(1), r"has 257 bytes of data, its shape \[4, 16\] takes 256"),
    "not npy": (raw("p.npy", b"hello"), r"p.npy is not a whole .npy file \(EOF: reading magic"),
    "npy header cut": (
        raw("p.npy", b"\x93NUMPY\x01\x00\xff\xff{"),
        r"p.npy is not a whole .npy file \(EOF: reading array header",
    ),
    "npy version": (
        raw("p", b"\x93NUMPY\x09\x00\x00\x00"),
        r"p is not a whole .npy file \(.*not \(9, 0\)",
    ),
    "a pickle": (raw("p.bin", b"\x80\x04."), "p.bin is not a whole safetensors file"),
    "nothing": (lambda folder: folder / "none", "none does not exist; expected a file"),
    "no npy": (
        lambda folder: folder / "p.npy",
        "prompt file .*p.npy does not exist; expected a",
    ),
    "an empty folder": (lambda folder: folder, "holds no prompt: expected prompt.safetensors"),
    "a file of a folder": (
        lambda folder: write_adapter(folder / "a") / TENSORS,
        "is a file of a PEFT adapter; give the folder",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_clear_line_and_nothing_written(tmp_path, capsys, case):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write, message = REFUSED[case]
    source = write(tmp_path / "in")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_prompt(source)
    for action in (["import"], ["export", "--format=peft"], ["export", "--format=npy"]):
        code = cli.main(["prompt", *action, str(source), str(tmp_path / "out/new")])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith("spt-jax: error: ") and err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("action", ["import", "peft", "npy", "safetensors"])
def test_an_output_that_exists_stays(tmp_path, run, capsys, action):
    (tmp_path / "out").write_text("mine")
    argv = ["import"] if action == "import" else ["export", f"--format={action}"]
    assert cli.main(["prompt", *argv, str(run), str(tmp_path / "out")]) == 2
    assert "out exists; name a new place" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_adapter_is_there_whole_or_not_at_all(tmp_path, run, monkeypatch):
    write = transfer.write_atomic

    def fail_at_the_second(path, data):
        if path.name == TENSORS:
            raise RunError("disk full")
        write(path, data)

    monkeypatch.setattr(transfer, "write_atomic", fail_at_the_second)
    with pytest.raises(RunError, match="disk full"):
        export_prompt(run, tmp_path / "out", format="peft")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_another_width(tmp_path, run, capsys):
    np.save(tmp_path / "p.npy", np.ones((4, 24), np.float32))
    argv = ["prompt", "import", str(tmp_path / "p.npy"), str(tmp_path / "out")]
    assert cli.main([*argv, f"--model={run.parent / 'tiny'}"]) == 2
    assert "has d_model 24 but" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tuned_model_has_no_prompt_for_others(tmp_path, run):
    config = tiny.train_config(run.parent, tune="model")
    tuned = runs.write_run(tmp_path / "tuned", config, PROMPT)
    with pytest.raises(ValueError, match="tuned the model, so its prompt serves no other model"):
        export_prompt(tuned, tmp_path / "out", format="npy")


COMMANDS = {
    "xport a b": r"unknown action 'xport' of prompt; .* \(did you mean 'export'\?\)",
    "export a b": "--format is not given, expected peft, npy or safetensors",
    "export a b --format=nyp": "format is 'nyp'",
    "export a b --format=npy --base=t5": "base is given, but the format npy does not keep it",
    "show a --k=-1": "k is -1 nearest words, expected 0 or more",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_wrong(capsys, command):
    assert cli.main(["prompt", *command.split()]) == 2
    assert re.search(COMMANDS[command], capsys.readouterr().err)


# Damage.


def damage(rng, data: bytes) -> bytes:
    """Bits flipped, mostly where the header is, and sometimes the file cut or a part repeated."""
    kind, end = rng.integers(10), len(data)
    if kind == 0:
        return data[: rng.integers(end)]
    if kind == 1:
        at, size = rng.integers(end), rng.integers(1, 9)
        return data[:at] + data[at : at + size] + data[at:]
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = rng.integers(min(end, 200) if kind < 8 else end)
        changed[at] ^= 1 << rng.integers(8) if kind % 2 else rng.integers(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("part", ["p.npy", "p.safetensors", f"a/{CONFIG}", f"a/{TENSORS}"])
def test_a_damaged_file_is_refused_or_loads_what_it_holds(tmp_path, part):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "p.npy", PROMPT)
    save_prompt(tmp_path / "p.safetensors", PROMPT, {"model": "tiny"})
    write_adapter(tmp_path / "a")
    file = tmp_path / part
    source, whole = (file.parent if part.startswith("a/") else file), file.read_bytes()
    loaded = refused = 0
    for _ in range(1000):
        data = damage(rng, whole)
        file.write_bytes(data)
        try:
            stored = read_prompt(source)
        except ValueError as error:
            assert str(file) in str(error) or str(source) in str(error)
            refused += 1
            continue
        loaded += 1
        held = (tmp_path / "a" / TENSORS).read_bytes() if part == f"a/{CONFIG}" else data
        # The vectors are the last bytes of the file; an adapter has twice as many as are used.
        rows = 2 if part.startswith("a/") else 1
        assert stored.prompt.shape == PROMPT.shape and stored.prompt.dtype == np.float32
        values = held[-rows * PROMPT.nbytes :][: PROMPT.nbytes]
        assert stored.prompt.tobytes() == values
    assert loaded > 20 and refused > 300
