"""A frozen model that is damaged, incomplete or no T5: one clear line each, never a wrong value."""

import json
import struct
import time

import flax.serialization
import jax
import numpy as np
import pytest
import tensorstore as ts
from support import checkpoints

from spt_jax.cli import main as cli
from spt_jax.models import t5x
from spt_jax.models.backbone import load_backbone
from spt_jax.models.formats.msgpack_file import unpack
from spt_jax.models.formats.safetensors_file import open_safetensors
from spt_jax.models.formats.zarr_array import open_zarr
from spt_jax.models.load import Reader
from spt_jax.models.open import open_model
from spt_jax.models.source import Tensor, require_finite
from spt_jax.pytree import fingerprint, named_leaves
from spt_jax.tokenizers.published import load_tokenizer


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def load_all(name):
    """Opens a model and reads every leaf."""
    reader = Reader(open_model(str(name)))
    leaves = dict(reader)
    return leaves, reader.fingerprint()


# transformers.


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def lengthen_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")


def absurd_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def rewrite(folder, **changes):
    from safetensors.numpy import save_file

    tensors = checkpoints.hf_tensors() | {
        name.replace("_d_", "."): x for name, x in changes.items()
    }
    save_file({n: x for n, x in tensors.items() if x is not None}, folder / "model.safetensors")


def holds(value):
    def change(folder):
        scale = np.ones(8, np.float32)
        scale[3] = value
        rewrite(folder, encoder_d_final_layer_norm_d_weight=scale)

    return change


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", lambda value: value.update(changes))


def larger_tokenizer(folder):
    def change(parts):
        parts["added_tokens"] += [
            {**parts["added_tokens"][0], "id": i, "content": f"<new_{i}>"} for i in range(118, 130)
        ]

    edit_json(folder / "tokenizer.json", change)


FOLDER = {
    "truncated": (
        cut_weights,
        "model.safetensors cannot be read: .* file not fully covered; expected a whole safetensors",
    ),
    "longer": (
        lengthen_weights,
        "model.safetensors cannot be read: .* file not fully covered; expected a whole safetensors",
    ),
    "empty": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "model.safetensors cannot be read: .* header too small; expected a whole safetensors file",
    ),
    "absurd header": (absurd_header, "cannot be read: .* header too large; expected a whole"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "no weights in .*; expected model.safetensors, model.safetensors.index.json, pytorch_model",
    ),
    "missing tensor": (
        lambda folder: rewrite(folder, encoder_d_final_layer_norm_d_weight=None),
        r"do not fit its config: missing encoder.final_layer_norm.weight \(8,\)$",
    ),
    "unknown tensor": (
        lambda folder: rewrite(folder, encoder_d_adapter=np.ones(3, np.float32)),
        r"do not fit its config: unexpected encoder.adapter \(3,\)$",
    ),
    "leftovers on both sides": (
        config(feed_forward_proj="relu"),
        r"missing decoder.block.0.layer.2.DenseReluDense.wi.weight \(10, 8\); .*"
        r"unexpected decoder.block.0.layer.2.DenseReluDense.wi_0.weight \(10, 8\)",
    ),
    "two tables": (
        lambda folder: rewrite(
            folder, encoder_d_embed_tokens_d_weight=np.ones((128, 8), np.float32)
        ),
        "encoder.embed_tokens.weight differs from shared.weight",
    ),
    "no table": (
        lambda folder: rewrite(folder, shared_d_weight=None),
        "have no shared.weight, the embedding table",
    ),
    "integers": (
        lambda folder: rewrite(folder, encoder_d_final_layer_norm_d_weight=np.ones(8, np.int8)),
        "encoder.final_layer_norm.weight has dtype I8, expected bfloat16, float16, float32",
    ),
    "NaN": (holds(np.nan), "tensor encoder.final_layer_norm.weight holds NaN, expected finite"),
    "inf": (holds(-np.inf), "tensor encoder.final_layer_norm.weight holds inf, expected finite"),
    "wider than the weights": (
        config(d_model=16),
        r"do not fit its config: .*.layer_norm.weight has shape \(8,\), expected \(16,\)",
    ),
    "more layers than the weights": (
        config(num_layers=4),
        r"missing encoder.block.3.layer.0.SelfAttention.k.weight \(6, 8\)",
    ),
    "head that may be scaled": (
        config(tie_word_embeddings=True),
        "lm_head.weight differs from shared.weight .* set tie_word_embeddings to false",
    ),
    "no whole number": (config(d_ff="10"), "config.json has '10' for d_ff, expected a whole"),
    "no size": (config(d_ff=None), "config.json has None for d_ff, expected a whole number"),
    "absurd layers": (config(num_layers=1 << 30), "has 1073741824 for num_layers, expected a whol"),
    "other MLP": (config(feed_forward_proj="gated-silu"), "feed_forward_proj 'gated-silu', expect"),
    "other end": (config(eos_token_id=2), "config.json has eos_token_id 2, expected 1"),
    "epsilon": (config(layer_norm_epsilon=0), "layer_norm_epsilon 0, expected such as 1e-6"),
    "UMT5": (config(model_type="umt5"), "'umt5', expected 't5' or 'mt5': every layer of UMT5 has"),
    "LongT5": (config(model_type="longt5"), "'longt5', expected .*: LongT5's encoder attends loc"),
    "BERT": (
        config(model_type="bert"),
        "describes a model of type 'bert', expected 't5' or 'mt5'$",
    ),
    "no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read .*; expected a JSON object",
    ),
    "larger tokenizer": (
        larger_tokenizer,
        "tokenizer of .* has 130 ids but the model has 128 embeddings",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "no tokenizer in .*; expected tokenizer.json or spiece.model",
    ),
}


@pytest.mark.parametrize("case", FOLDER)
def test_damaged_transformers_folder(case, tmp_path):
    damage, message = FOLDER[case]
    folder = checkpoints.write_hf(tmp_path / "model")
    load_all(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_all(folder)
    assert "\n" not in str(caught.value)


def drop_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def index(change):
    return lambda folder: edit_json(
        folder / "model.safetensors.index.json", lambda value: change(value["weight_map"])
    )


SHARDS = {
    "missing shard": (
        drop_shard,
        "shard .*model-00002-of-00003.safetensors does not exist, but mo",
    ),
    "index names an absent tensor": (
        index(lambda files: files.update({"encoder.gone": "model-00001-of-00003.safetensors"})),
        "shard .*model-00001-of-00003.safetensors lacks encoder.gone, against model.safetensors.in",
    ),
    "shard has more than the index": (
        index(lambda files: files.pop("shared.weight")),
        "shard .* also has shared.weight, against model.safetensors.index.json",
    ),
    "shard elsewhere": (
        index(lambda files: files.update({"shared.weight": "../model/x.safetensors"})),
        "index.json names a shard that is not read: the name '../model/x.safetensors' has the p",
    ),
    "no map": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
        "model.safetensors.index.json has no weight_map of tensor names to file names",
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_damaged_shards(case, tmp_path):
    damage, message = SHARDS[case]
    folder = checkpoints.write_shards(tmp_path / "model")
    load_all(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_all(folder)


def test_a_pickle_without_torch(tmp_path, monkeypatch):
    folder = checkpoints.write_hf(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ValueError, match=r"a pickle of torch, .* `pip install 'spt_jax\[torch\]'`"):
        load_all(folder)


# T5X.


def drop_zarr(folder):
    for path in (folder / "target.encoder.layers_1.mlp.wo.kernel").iterdir():
        path.unlink()


def drop_chunk(folder):
    (folder / "target.encoder.layers_1.mlp.wo.kernel" / "1.0").unlink()


def flip_chunk(folder):
    path = folder / "target.encoder.layers_1.mlp.wo.kernel" / "1.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def zarray(**changes):
    return lambda folder: edit_json(
        folder / "target.encoder.layers_1.mlp.wo.kernel" / ".zarray",
        lambda value: value.update(changes),
    )


def cut_checkpoint(folder):
    path = folder / "checkpoint"
    path.write_bytes(path.read_bytes()[:-5])


def contradict(folder):
    (folder / "config.json").write_text(json.dumps(checkpoints.hf_config(d_kv=4)))


T5X = {
    "no zarr": (drop_zarr, 'wo/kernel of .* cannot be read: .*wo.kernel/.zarray" does not exist'),
    "lost chunk": (drop_chunk, "cannot be read: target.*layers_1.mlp.wo.kernel/1.0 does not exist"),
    "changed chunk": (flip_chunk, "cannot be read: target.*.mlp.wo.kernel/1.0 is damaged ."),
    "other compressor": (
        zarray(compressor={"id": "blosc"}),
        ".zarray has order 'C' and compressor 'blosc', expected 'C' and 'gzip'",
    ),
    "other order": (zarray(order="F"), ".zarray has order 'F' and compressor 'gzip', expected 'C'"),
    "not a chunk": (zarray(chunks=[0, 8]), 'Error parsing object member "chunks"'),
    "other chunks": (zarray(chunks=[2, 8]), r'Expected "chunks" of \[5,8\] but received: \[2,8\]'),
    "other shape": (zarray(shape=[12, 8]), r'Expected "shape" of \[10,8\] but received: \[12,8\]'),
    "other byte order": (zarray(dtype=">f4"), 'Expected "dtype" of "<f4" but received: ">f4"'),
    "way out of the folder": (
        zarray(dimension_separator="/../../"),
        'Error parsing object member "dimension_separator"',
    ),
    "cut": (cut_checkpoint, "checkpoint cannot be read: .*; expected a whole checkpoint of T5X"),
    "empty": (
        lambda folder: (folder / "checkpoint").write_bytes(b""),
        "checkpoint cannot be read: cannot mmap an empty file",
    ),
    "config contradicts": (contradict, r"config.json contradicts the weights: d_kv 4 \(weights: 3"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "T5X checkpoint .* holds no tokenizer; copy spiece.model into its folder, or write a base",
    ),
}


@pytest.mark.parametrize("case", T5X)
def test_damaged_t5x_folder(case, tmp_path):
    damage, message = T5X[case]
    folder = checkpoints.write_t5x(tmp_path / "model")
    load_all(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_all(folder)
    assert "\n" not in str(caught.value) and "tensorstore_spec" not in str(caught.value)


def changed_leaves(**changes):
    leaves = checkpoints.t5x_leaves() | changes
    return {name: leaf for name, leaf in leaves.items() if leaf is not None}


LEAVES = {
    "unknown leaf": (
        {"encoder/prompt/prompt/prompt": np.ones((5, 8), np.float32)},
        r"do not fit its config: unexpected encoder/prompt/prompt/prompt \(5, 8\)",
    ),
    "missing leaf": (
        {"encoder/encoder_norm/scale": None},
        r"do not fit its config: missing encoder/encoder_norm/scale \(8,\)",
    ),
    "other shape": (
        {"decoder/decoder_norm/scale": np.ones(9, np.float32)},
        r"decoder/decoder_norm/scale has shape \(9,\), expected \(8,\)",
    ),
    "no T5": (
        {"token_embedder/embedding": None},
        "leaf token_embedder/embedding of .* is missing, expected 2 axes; this is no T5 of T5X",
    ),
    "few buckets": (
        {
            "encoder/relpos_bias/rel_embedding": np.ones((2, 4), np.float32),
            "decoder/relpos_bias/rel_embedding": np.ones((2, 4), np.float32),
        },
        "has 4 buckets, .* put a config.json of transformers with relative_attention_max_distance",
    ),
    "integers": (
        {"encoder/encoder_norm/scale": np.ones(8, np.int32)},
        "leaf encoder/encoder_norm/scale of .* cannot be read: it has dtype int32, expected floats",
    ),
    "NaN": (
        {"encoder/encoder_norm/scale": np.full(8, np.nan, np.float32)},
        "tensor encoder/encoder_norm/scale holds NaN",
    ),
}


@pytest.mark.parametrize("case", LEAVES)
def test_odd_leaves_of_t5x(case, tmp_path):
    changes, message = LEAVES[case]
    folder = checkpoints.write_t5x(tmp_path / "model", changed_leaves(**changes), zarr=False)
    with pytest.raises(ValueError, match=message):
        load_all(folder)


def test_a_shard_may_be_a_link_as_in_the_cache_of_the_hub(tmp_path):
    folder = checkpoints.write_shards(tmp_path / "model")
    expected = load_all(folder)[1]
    for file in folder.glob("*.safetensors"):
        file.symlink_to(file.rename(tmp_path / file.stem))
    assert load_all(folder)[1] == expected


def test_an_old_t5x_checkpoint_is_refused(tmp_path):
    folder = checkpoints.write_t5x(tmp_path / "model")
    root = {"version": 1, "optimizer": {"target": {}}}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(root))
    with pytest.raises(ValueError, match="checkpoint cannot be read: it has no version 2 or 3"):
        load_all(folder)


# Names that lead nowhere.


def test_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cli.main(["inspect", "nobody/nothing"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "spt-jax: error: model 'nobody/nothing' is neither a folder nor to be had from the Hugging "
        "Face Hub (LocalEntryNotFoundError"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hdfs://x/y", "TensorStore cannot open the address 'hdfs://x/y'"),
        ("nothing", r"unknown model 'nothing'; expected a bundled one \(.*spt-nano"),
    ],
)
def test_unknown_place(name, message, tmp_path):
    tokenizer = load_tokenizer(checkpoints.write_hf(tmp_path / "model"))
    with pytest.raises(ValueError, match=message):
        open_model(name, tokenizer)


def test_an_address_that_does_not_answer(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(t5x, "_CONTEXT", {"http_request_retries": {"max_retries": 1}})
    address = "http://127.0.0.1:9/checkpoint_3"
    assert cli.main(["convert", address, str(tmp_path / "base")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"spt-jax: error: {address}/config.json cannot be read: ")
    assert line.endswith("; check the address, the network and your credentials")
    assert list(tmp_path.iterdir()) == []


def test_convert_says_one_line_and_leaves_nothing(tmp_path, capsys):
    folder = checkpoints.write_hf(tmp_path / "model")
    cut_weights(folder)
    assert cli.main(["convert", str(folder), str(tmp_path / "base"), "--dtype=bfloat16"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# Fuzzing: bytes flipped and cut. A damaged input is refused with a ValueError or, where the damage
# does not matter or cannot be seen, read.


def damaged(data, count, seed):
    """Copies of `data` with bytes flipped, cut out or cut off."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        copy = bytearray(data)
        # Most damage goes where the structure is, at the start of each format.
        span = len(copy) if rng.random() < 0.3 else min(len(copy), 4000)
        match rng.integers(3):
            case 0:
                for place in rng.integers(span, size=rng.integers(1, 4)):
                    copy[place] ^= 1 << rng.integers(8)
            case 1:
                del copy[rng.integers(span) :]
            case 2:
                start = rng.integers(span)
                del copy[start : start + rng.integers(1, 9)]
        yield bytes(copy)


def outcomes(read, cases, tmp_path):
    """(read, refused) counts; any other exception, or a crash, fails the test."""
    read_count = refused = 0
    started = time.monotonic()
    for data in cases:
        path = tmp_path / "damaged"
        path.write_bytes(data)
        try:
            read(path)
            read_count += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(error)
            refused += 1
    assert time.monotonic() - started < 120
    return read_count, refused


def test_fuzzed_safetensors(tmp_path):
    data = (checkpoints.write_hf(tmp_path / "model") / "model.safetensors").read_bytes()
    original = {name: tensor.read() for name, tensor in open_safetensors_of(data, tmp_path).items()}

    def read(path):
        tensors = open_safetensors(path)
        for name, tensor in tensors.items():
            array = tensor.read()
            require_finite(array, name)
            assert array.shape == tensor.shape and array.dtype == tensor.dtype
        assert sum(tensor.read().nbytes for tensor in tensors.values()) <= len(data)

    read_count, refused = outcomes(read, damaged(data, 1500, 0), tmp_path)
    assert refused > 800 and read_count > 50  # a flipped bit of a weight is a weight
    assert original.keys() == checkpoints.hf_tensors().keys()


def open_safetensors_of(data, tmp_path):
    path = tmp_path / "whole"
    path.write_bytes(data)
    return open_safetensors(path)


def test_fuzzed_zarr_never_gives_other_weights(tmp_path):
    """Chunks have a checksum of gzip, and all else of an array stands in the checkpoint too."""
    folder = checkpoints.write_t5x(tmp_path / "model")
    name = "target.encoder.layers_0.mlp.wo.kernel"
    expected = checkpoints.t5x_leaves()["encoder/layers_0/mlp/wo/kernel"]
    store = ts.KvStore.open(f"file://{folder}/").result()
    stated = {"shape": [10, 8], "chunks": [5, 8], "dtype": "<f4"}

    for file in (".zarray", "0.0"):
        place = folder / name / file

        def read(path, place=place):
            place.write_bytes(path.read_bytes())
            np.testing.assert_array_equal(open_zarr(store, name, stated, "x").read(), expected)

        data = place.read_bytes()
        _, refused = outcomes(read, damaged(data, 300, 7), tmp_path)
        assert refused > 150
        place.write_bytes(data)


def test_fuzzed_message_pack(tmp_path):
    folder = checkpoints.write_t5x(tmp_path / "model", zarr=False)
    data = (folder / "checkpoint").read_bytes()

    def read(path):
        leaves = jax.tree.leaves(unpack(path.read_bytes()))
        assert sum(x.read().nbytes for x in leaves if isinstance(x, Tensor)) <= len(data)

    assert min(outcomes(read, damaged(data, 1500, 1), tmp_path)) > 100
    junk = np.random.default_rng(2)
    counts = outcomes(read, (junk.bytes(junk.integers(1, 40)) for _ in range(500)), tmp_path)
    assert counts[1] > 100


def test_fuzzed_spiece(tmp_path, data_dir):
    """The real vocabulary, with some of its pieces and its normalization table."""
    data = (data_dir / "t5" / "spiece.model").read_bytes()

    def read(path):
        load_tokenizer(path).encode("A ﬁne day, isn't it? </s>")

    small = small_spiece(data)
    cases = [*damaged(small, 200, 3)]
    # Half of the damage is to the table, which is most of the file.
    cases += [small[:5000] + tail for tail in damaged(small[5000:], 200, 6)]
    counts = outcomes(read, cases, tmp_path)
    assert min(counts) > 20


def small_spiece(data):
    """Every 200th piece, and all that is no piece: fields of a key, a length and the bytes."""
    at, number, kept = 0, 0, b""
    while at < len(data):
        end, length, shift = at + 1, 0, 0
        while True:
            byte = data[end]
            length, end, shift = length | (byte & 127) << shift, end + 1, shift + 7
            if byte < 128:
                break
        end += length
        if data[at] != 0x0A or number < 3 or number % 200 == 0:
            kept += data[at:end]
        at, number = end, number + 1
    return kept


def test_fuzzed_tokenizer_json(tmp_path):
    data = json.dumps(checkpoints.tokenizer_parts()).encode()

    def read(path):
        tokenizer = load_tokenizer(path.rename(path.with_suffix(".json")))
        assert all(1 < i < tokenizer.vocab_size for i in tokenizer.encode("the </s> dog"))

    counts = outcomes(read, damaged(data, 600, 4), tmp_path)
    assert counts[1] > 100


def test_fuzzed_config_never_gives_other_weights(tmp_path):
    """Whatever config.json becomes, the weights are refused or those of the file."""
    folder = checkpoints.write_hf(tmp_path / "model")
    expected, _ = load_all(folder)
    data = (folder / "config.json").read_bytes()

    def read(path):
        (folder / "config.json").write_bytes(path.read_bytes())
        source = open_model(str(folder))
        leaves = dict(Reader(source))
        assert leaves.keys() == expected.keys()

    _, refused = outcomes(read, damaged(data, 150, 5), tmp_path)
    assert refused > 100


def test_a_backbone_whose_weights_changed_contradicts_its_fingerprint(tmp_path):
    from safetensors.numpy import load_file, save_file
    from support import tiny

    folder = tiny.write_backbone(tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    before = load_backbone(str(folder))
    assert before.fingerprint == fingerprint(weights)
    assert dict(named_leaves(before.params)).keys() == weights.keys()
    weights["encoder/encoder_norm/scale"][0] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"weights of .* have fingerprint .* but its config says"):
        load_backbone(str(folder))
