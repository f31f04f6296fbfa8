"""Make the archive of this folder, which tests/test_golden.py reads with the code of today.

Run at c5df28d, the last commit before the modules moved, from the top of a checkout of it:

    git worktree add ../old c5df28d && cd ../old
    PYTHONPATH=. JAX_PLATFORMS=cpu python THIS_FOLDER/make_old_run.py THIS_FOLDER

The imports below name the modules of that commit, so the script does not run on a later one. Do not
make the files anew when a format changes: they stand for the runs that people have.

The archive c5df28d.tar.xz then holds

    rows.jsonl     160 rows that tell an animal from a plant
    book.txt       text to pretrain on
    model/         a T5 of 7,176 parameters as a backbone folder, tuned so that it writes labels
    adafactor/     the folder of a finished run of 12 steps; its one checkpoint is that of step 9
    adamw/         the same with AdamW, accumulation, clipping and a schedule
    pretrain/      the folder of a finished pretraining run of 6 steps; its checkpoint is of step 4
    base/          the pretrained model as a base checkpoint, as `spt-jax convert` writes one
    configs/       what `--print-config` printed for every bundled config
    options.json   every option of every command

All paths in the configs are relative to the folder that the archive is unpacked in.
"""

import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import jax
import numpy as np

from spt_jax import cli
from spt_jax.backbone import convert_backbone, save_backbone
from spt_jax.config import (
    DataConfig,
    EvalConfig,
    LogConfig,
    OptimizerConfig,
    PromptConfig,
    TaskConfig,
    TrainConfig,
)
from spt_jax.pretrain import pretrain
from spt_jax.pretrain_config import ArchitectureConfig, MixtureConfig, PretrainConfig
from spt_jax.t5 import T5, T5Config
from spt_jax.tokenizer import train_tokenizer
from spt_jax.train import fit

SHAPE = T5Config(
    vocab_size=300, d_model=8, d_kv=4, d_ff=16, num_heads=2, num_layers=2, num_decoder_layers=1
)
LABELS = {"animal": ("cat", "dog", "cow", "owl"), "plant": ("oak", "elm", "fern", "moss")}
PLACES = ("garden", "forest", "yard", "field", "river")
VERBS = ("likes", "meets", "sees", "finds")

WITHOUT_ACTION = ("train", "evaluate", "predict", "nearest", "inspect", "pretrain", "convert")
COMMANDS = (
    *((name,) for name in (*WITHOUT_ACTION, "plan")),
    *(("data", action) for action in ("show", "prepare")),
    *(("prompt", action) for action in ("show", "import", "export")),
)


def rows() -> list[dict[str, str]]:
    """160 rows, half of each label."""
    return [
        {"text": f"the {word} {verb} the {place}", "label": label}
        for place in PLACES
        for verb in VERBS
        for label, words in LABELS.items()
        for word in words
    ]


def book() -> str:
    """60 short documents of made-up sentences."""
    draw = random.Random(0)
    texts = [[draw.choice(rows())["text"] for _ in range(8)] for _ in range(60)]
    return "\f".join(". ".join(sentences).capitalize() + "." for sentences in texts)


def random_params() -> dict:
    """Random float32 parameters, drawn by numpy."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        scale = 1.0 if name == "embedding" else leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
        return np.float32((name == "scale") + scale * rng.standard_normal(leaf.shape))

    abstract = jax.eval_shape(T5(SHAPE).init_params, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, abstract)


def train_config(model: str, **changes) -> TrainConfig:
    """A prompt of 4 vectors, 12 steps, without dropout, whose draws other versions may change."""
    settings = {
        "dropout_rate": 0.0,
        "model": model,
        "task": TaskConfig(name="golden", source="rows.jsonl", template="{text}", label="label"),
        "prompt": PromptConfig(length=4, init="sampled_vocab"),
        "data": DataConfig(inputs_length=16, targets_length=4, batch_size=8, buckets=()),
        "eval": EvalConfig(every=4, batch_size=32),
        "log": LogConfig(every=3, checkpoint_every=3),
        "steps": 12,
    }
    return TrainConfig(**{**settings, **changes})


def tune_model() -> None:
    """Writes model/: random weights, tuned for the labels, but not until all answers are right."""
    texts = [f"{row['text']} {row['label']}" for row in rows()]
    save_backbone(
        Path("random"), "golden", SHAPE, random_params(), train_tokenizer(texts, SHAPE.vocab_size)
    )
    optimizer = OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.0)
    config = train_config("random", prompt=None, tune="model", optimizer=optimizer, steps=60)
    print(fit(config, Path("tuned")))
    shutil.copytree("tuned/model", "model")


def keep_one(run: str, step: int) -> None:
    """Deletes all checkpoints of a run but one, and the clock's log."""
    for folder in Path(run, "checkpoints").iterdir():
        if folder.name != str(step):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    Path(run, "timing.jsonl").unlink()


def write_configs(checkout: Path) -> None:
    """Writes configs/: every bundled config with all its options."""
    for file in sorted((checkout / "configs").rglob("*.yaml")):
        command = "pretrain" if file.stem.startswith("pretrain") else "train"
        written = Path("configs", command, f"{file.stem}.yaml")
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(printed([command, "--config", str(file), "--print-config"]))


def write_options() -> None:
    """Writes options.json: {command: its options}."""
    found = {}
    for words in COMMANDS:
        found[" ".join(words)] = sorted(
            set(re.findall(r"^  (?:-h, )?(--[\w.-]+)", printed([*words, "--help"]), re.MULTILINE))
        )
    Path("options.json").write_text(json.dumps(found, indent=1) + "\n")


def printed(arguments: list[str]) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main(arguments) == 0, arguments
    return out.getvalue()


def without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry of an archive without the user and the time."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main(target: Path) -> None:
    """Makes the files in a folder of its own, and the archive of them in `target`."""
    checkout = Path.cwd()
    os.chdir(tempfile.mkdtemp())
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    Path("book.txt").write_text(book())
    tune_model()
    print(fit(train_config("model"), Path("adafactor")))
    keep_one("adafactor", 9)
    adamw = OptimizerConfig(
        name="adamw",
        learning_rate=0.1,
        schedule="linear",
        warmup_steps=2,
        momentum=0.8,
        clip_norm=1.0,
        accumulate=2,
    )
    print(fit(train_config("model", optimizer=adamw, seed=1), Path("adamw")))
    keep_one("adamw", 9)
    pretraining = PretrainConfig(
        name="golden-pretrained",
        architecture=ArchitectureConfig(
            d_model=8,
            d_kv=4,
            d_ff=8,
            num_heads=2,
            num_layers=1,
            num_decoder_layers=1,
            vocab_size=280,
        ),
        mixture=MixtureConfig(
            inputs_length=64,
            long_targets_length=16,
            short_targets_length=8,
            batch_size=4,
            short_share=0.0,
            weights={"lm": 1.0},
        ),
        packages=(),
        text_files=("book.txt",),
        held_out_share=0.3,
        log=LogConfig(every=2, checkpoint_every=2),
        gap_every=3,
        steps=6,
    )
    print(pretrain(pretraining, Path("pretrain")))
    keep_one("pretrain", 4)
    convert_backbone("pretrain/model", Path("base"), dtype="bfloat16")
    write_configs(checkout)
    write_options()
    for name in ("random", "tuned"):
        shutil.rmtree(name)
    with tarfile.open(target / "c5df28d.tar.xz", "w:xz") as archive:
        for file in sorted(Path(".").iterdir()):
            archive.add(file, filter=without_owner)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # as the tests have
    main(Path(sys.argv[1]).absolute())
