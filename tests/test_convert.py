"""The same model in every format: equal weights, equal fingerprint, wherever they are placed.

What transformers itself makes of a folder is in parity/test_convert.py.
"""

import dataclasses
import functools
import http.server
import json
import mmap
import shutil
import subprocess
import sys
import threading
import tracemalloc

import flax.serialization as packing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints, tiny
from support.checkpoints import SHAPE

from spt_jax.cli import main as cli
from spt_jax.config.devices import MeshConfig
from spt_jax.models.backbone import convert_backbone, load_backbone, save_backbone
from spt_jax.models.formats.msgpack_file import unpack
from spt_jax.models.names import T5X, TRANSFORMERS, leaf_shapes
from spt_jax.models.open import find_tokenizer, open_model
from spt_jax.models.source import Tensor
from spt_jax.pytree import fingerprint, named_leaves
from spt_jax.sharding import param_shardings
from spt_jax.tokenizers.base import split_sentinels
from spt_jax.tokenizers.published import ByteTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def expected():
    return dict(named_leaves(tiny.random_params(SHAPE)))


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    return checkpoints.write_hf(tmp_path_factory.mktemp("hf") / "model")


def assert_same_leaves(backbone, expected):
    leaves = dict(named_leaves(backbone.params))
    assert leaves.keys() == expected.keys()
    for name, leaf in leaves.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[name]), name)
    assert backbone.fingerprint == fingerprint(expected)
    assert backbone.model.config == SHAPE


WRITERS = {
    "one file": checkpoints.write_hf,
    "shards": checkpoints.write_shards,
    "zarr": checkpoints.write_t5x,
    "MessagePack alone": lambda folder: checkpoints.write_t5x(folder, zarr=False),
    "scanned": lambda folder: checkpoints.write_t5x(folder, checkpoints.t5x_leaves(scanned=True)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_each_format_gives_the_same_leaves_and_fingerprint(kind, expected, tmp_path):
    folder = WRITERS[kind](tmp_path / "model")
    assert_same_leaves(load_backbone(str(folder)), expected)


def test_scanned_layers_may_repeat_the_position_bias_and_split_heads(expected, tmp_path):
    leaves = checkpoints.t5x_leaves(scanned=True)
    heads = SHAPE.num_heads, SHAPE.d_kv
    for name in list(leaves):
        if "rel_embedding" in name:
            table, layers = leaves.pop(name), 3 if name.startswith("encoder") else 2
            name = f"{name.split('/')[0]}/{name}"
            leaves[name] = np.repeat(table[:, None], layers, axis=1)
        elif "attention/out/" in name:
            leaves[name] = leaves[name].reshape(*heads, *leaves[name].shape[1:]).swapaxes(1, 2)
        elif "attention/" in name:
            leaves[name] = leaves[name].reshape(*leaves[name].shape[:2], *heads)
    backbone = load_backbone(str(checkpoints.write_t5x(tmp_path / "same", leaves)))
    assert_same_leaves(backbone, expected)
    leaves["encoder/encoder/relpos_bias/rel_embedding"][0, 1] += 1
    folder = checkpoints.write_t5x(tmp_path / "own", leaves)
    with pytest.raises(ValueError, match="rel_embedding of .* differs from layer to layer"):
        load_backbone(str(folder))


def test_t5_1_0_of_t5x_has_one_table_and_one_wi(tmp_path):
    shape = dataclasses.replace(SHAPE, mlp="relu", tied_head=True)
    params = tiny.random_params(shape)
    folder = checkpoints.write_t5x(tmp_path / "model", checkpoints.t5x_leaves(params=params))
    backbone = load_backbone(str(folder))
    assert backbone.model.config == shape
    assert backbone.fingerprint == fingerprint(dict(named_leaves(params)))


@pytest.mark.parametrize("version", [2, 3])
def test_bfloat16_of_both_versions_of_t5x(version, expected, tmp_path):
    """Version 2 has the bits of bfloat16 as uint16 in zarr, and bfloat16 in the MessagePack."""
    leaves = {name: leaf.astype(jnp.bfloat16) for name, leaf in checkpoints.t5x_leaves().items()}
    folder = checkpoints.write_t5x(tmp_path / "model", leaves, version=version)
    stored = {json.loads(path.read_text())["dtype"] for path in folder.glob("*/.zarray")}
    assert stored == {"<u2" if version == 2 else "bfloat16"}
    for name, leaf in named_leaves(load_backbone(str(folder)).params):
        rounded = np.asarray(expected[name].astype("bfloat16").astype("float32"))
        np.testing.assert_array_equal(np.asarray(leaf), rounded, name)


def test_weights_outlive_the_file_that_they_were_read_from(expected, tmp_path):
    folder = checkpoints.write_t5x(tmp_path / "model", zarr=False)
    backbone = load_backbone(str(folder))
    with open(folder / "checkpoint", "r+b") as file:
        file.write(bytes((folder / "checkpoint").stat().st_size))
    assert_same_leaves(backbone, expected)


def test_the_tables_name_every_leaf_once():
    v1_0 = leaf_shapes(SHAPE.__class__(**{**vars(SHAPE), "mlp": "relu", "tied_head": True}))
    for table in (TRANSFORMERS, T5X):
        assert table.keys() == leaf_shapes(SHAPE).keys() | v1_0.keys()
        assert len(set(table.values())) == len(table)


# Places.


def test_a_hub_id_downloads_one_kind_of_weights(monkeypatch, tmp_path, expected, capsys):
    """What is asked of the Hub; the answer is a folder on disk."""
    asked = []
    whole = checkpoints.write_hf(tmp_path / "cache" / "safetensors")

    def snapshot_download(repository, *, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(whole)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert_same_leaves(load_backbone("google/t5-tiny@main"), expected)
    ((repository, revision, patterns),) = asked
    assert (repository, revision) == ("google/t5-tiny", "main")
    assert "model-*.safetensors" in patterns and "spiece.model" in patterns
    assert not any("bin" in pattern or "*" == pattern for pattern in patterns)

    (whole / "model.safetensors").rename(whole / "pytorch_model.bin")
    asked.clear()
    with pytest.raises(ValueError, match="pytorch_model.bin"):  # no pickle of torch
        load_backbone("google/t5-tiny")
    assert [revision for _, revision, _ in asked] == [None, None]
    assert "pytorch_model-*.bin" in asked[1][2]
    asked.clear()
    assert find_tokenizer("google/t5-tiny").encode("the dog") == [4, 5]
    assert cli.main(["inspect", "google/t5-tiny", "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert (inspected["d_model"], inspected["tied_head"]) == (SHAPE.d_model, SHAPE.tied_head)
    assert [patterns for *_, patterns in asked if any("model-" in p for p in patterns)] == []


@pytest.fixture
def served(tmp_path):
    """A T5X checkpoint behind an HTTP server of this machine; its address."""
    checkpoints.write_t5x(tmp_path / "bucket" / "checkpoint_3")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "bucket"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_a_t5x_checkpoint_at_an_address(served, tmp_path, expected):
    folder = tmp_path / "bucket" / "checkpoint_3"
    assert_same_leaves(load_backbone(f"{served}/checkpoint_3"), expected)
    assert find_tokenizer(f"{served}/checkpoint_3/").encode("the dog") == [4, 5]
    (folder / "config.json").write_text(json.dumps(checkpoints.hf_config(d_kv=4)))
    with pytest.raises(ValueError, match=rf"^{served}/checkpoint_3/config.json contradicts the w"):
        load_backbone(f"{served}/checkpoint_3")
    (folder / "config.json").write_text(json.dumps(checkpoints.hf_config(layer_norm_epsilon=0.1)))
    assert open_model(f"{served}/checkpoint_3").config.layer_norm_epsilon == 0.1
    (folder / "config.json").unlink()

    tokenizer = str((folder / "tokenizer.json").rename(tmp_path / "tokenizer.json"))
    with pytest.raises(FileNotFoundError, match=f"T5X checkpoint {served}/checkpoint_3 holds no t"):
        load_backbone(f"{served}/checkpoint_3")
    for address in (f"{served}/checkpoint_3", f"file://{tmp_path}/bucket/checkpoint_3"):
        dest = tmp_path / address[:4]
        convert_backbone(address, dest, tokenizer=tokenizer)
        backbone = load_backbone(str(dest))
        assert_same_leaves(backbone, expected)
        assert backbone.name == address
    with pytest.raises(
        FileNotFoundError, match="http://.*/nothing/checkpoint does not exist; .* copy m"
    ):
        convert_backbone(f"{served}/nothing", tmp_path / "no", tokenizer=tokenizer)
    (folder / "target.encoder.layers_1.mlp.wo.kernel/.zarray").unlink()
    with pytest.raises(ValueError, match="leaf encoder/layers_1/mlp/wo/kernel of http.* cannot be"):
        convert_backbone(f"{served}/checkpoint_3", tmp_path / "no", tokenizer=tokenizer)


def test_a_backbone_that_is_saved_keeps_a_published_tokenizer(hf, tmp_path):
    """As after model tuning of a model from the Hub."""
    backbone = load_backbone(str(hf))
    tokenizer = backbone.tokenizer
    save_backbone(tmp_path, "tuned", SHAPE, backbone.params, tokenizer, dtype="float32")
    again = load_backbone(str(tmp_path))
    assert again.fingerprint == backbone.fingerprint
    assert again.tokenizer.fingerprint == tokenizer.fingerprint


def test_the_command_converts_and_inspects(hf, tmp_path, capsys):
    dest = str(tmp_path / "base")
    assert cli.main(["convert", str(hf), dest, "--dtype=bfloat16", "--json"]) == 0
    converted = json.loads(capsys.readouterr().out)
    assert cli.main(["inspect", dest, "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert inspected["fingerprint"] == converted["fingerprint"] and len(converted["t5"]) == 12
    assert (inspected["d_model"], converted["dtype"]) == (8, "bfloat16")


# Base checkpoints.


@pytest.fixture(scope="module")
def bases(hf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    for dtype in ("float32", "bfloat16"):
        described = convert_backbone(str(hf), folder / dtype, dtype=dtype)
        assert described["dtype"] == dtype
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_checkpoint_has_the_fingerprint_of_its_source(dtype, bases, expected):
    backbone = load_backbone(str(bases / dtype))
    assert backbone.fingerprint == fingerprint(expected)
    assert backbone.name == json.loads((bases / dtype / "config.json").read_text())["name"]
    assert backbone.tokenizer.encode("the dog") == [4, 5]
    for name, leaf in named_leaves(backbone.params):
        assert leaf.dtype == jnp.float32
        stored = np.asarray(expected[name].astype(dtype).astype("float32"))
        np.testing.assert_array_equal(np.asarray(leaf), stored, name)
    assert sorted(path.name for path in bases.iterdir()) == ["bfloat16", "float32"]


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["hf", "base"])
def test_leaves_go_straight_to_their_shardings(kind, param_dtype, hf, bases, expected):
    name = str(hf if kind == "hf" else bases / "float32")
    mesh = MeshConfig(data=1, fsdp=4, model=2)
    backbone = load_backbone(name, param_dtype=param_dtype, mesh=mesh)
    shardings = dict(named_leaves(jax.tree.map(lambda leaf: leaf.sharding, backbone.params)))
    assert shardings == dict(named_leaves(param_shardings(backbone.params, backbone.mesh)))
    for name, leaf in named_leaves(backbone.params):
        assert leaf.dtype == jnp.dtype(param_dtype)
        stored = np.asarray(expected[name].astype(param_dtype))
        np.testing.assert_array_equal(np.asarray(leaf), stored, name)


def test_a_failed_conversion_leaves_nothing_behind(tmp_path):
    tensors = checkpoints.hf_tensors()
    tensors["encoder.final_layer_norm.weight"][2] = np.nan
    folder = checkpoints.write_hf(tmp_path / "bad", tensors)
    with pytest.raises(ValueError, match="encoder.final_layer_norm.weight holds NaN"):
        convert_backbone(str(folder), tmp_path / "out" / "base")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_killed_conversion_never_looks_whole(hf, tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from spt_jax.models import base_checkpoint\n"
        "from spt_jax.models.backbone import convert_backbone\n"
        "base_checkpoint._sha256 = lambda path: os._exit(9)\n"
        "convert_backbone(sys.argv[1], Path(sys.argv[2]))"
    )
    dest = tmp_path / "out" / "base"
    assert subprocess.run([sys.executable, "-c", code, str(hf), str(dest)]).returncode == 9
    assert not dest.exists()
    convert_backbone(str(hf), dest)
    load_backbone(str(dest))


def test_an_existing_folder_is_not_overwritten(hf, bases):
    with pytest.raises(FileExistsError, match="float32 exists; name a new folder"):
        convert_backbone(str(hf), bases / "float32")


def test_a_base_checkpoint_is_not_converted_again(bases, tmp_path):
    with pytest.raises(ValueError, match="is a base checkpoint already"):
        convert_backbone(str(bases / "float32"), tmp_path / "again")


@pytest.mark.parametrize("change", ["flip", "cut", "remove", "add", "config"])
def test_a_base_checkpoint_that_was_changed_is_refused(change, bases, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(bases / "float32", folder)
    file = max((folder / "weights").rglob("*"), key=lambda path: path.stat().st_size)
    data = file.read_bytes()
    if change == "flip":
        file.write_bytes(data[:99] + bytes([data[99] ^ 4]) + data[100:])
    elif change == "cut":
        file.write_bytes(data[:-1])
    elif change == "remove":
        file.unlink()
    elif change == "config":
        config = folder / "config.json"
        config.write_text(config.read_text().replace('"relpos_max_distance": 128', '"a": 1'))
    else:
        (folder / "weights" / "d" / "extra").touch()
    reason = {"remove": "is missing", "add": "is not listed"}.get(change, "differs from its sha256")
    with pytest.raises(ValueError, match=f"base.* {reason}; copy it again, or write it again with"):
        load_backbone(str(folder))


# Tokenizers.


def test_ids_of_the_label_words_in_the_real_vocabulary(data_dir):
    tokenizer = load_tokenizer(data_dir / "t5" / "spiece.model")
    words = {
        "positive": [1465],
        "negative": [2841],
        "True": [10998],
        "equivalent": [7072],
        "duplicate": [19197],
        "neutral": [7163],
        "contradiction": [27252],
        "not_equivalent": [59, 834, 15, 1169, 15592],
    }
    assert {word: tokenizer.encode(word) for word in words} == words
    assert tokenizer.vocab_size == 32100
    assert (tokenizer.sentinel(0), tokenizer.sentinel(99)) == (32099, 32000)
    assert tokenizer.piece(1465) == "▁positive" and tokenizer.decode([59, 834, 15, 1, 0]) == "not_e"


@pytest.mark.parametrize("text", ["</s>", "<pad> a", "<extra_id_0>", "the </s> dog", " </s>"])
def test_text_never_becomes_a_special_id(text, data_dir):
    for place in (data_dir / "t5" / "spiece.model",):
        ids = load_tokenizer(place).encode(text)
        assert ids and all(1 < i < 32000 for i in ids)


def test_a_vocabulary_reads_back_what_it_saved(tmp_path, data_dir):
    released = load_tokenizer(data_dir / "t5" / "spiece.model")
    released.save(tmp_path / "tokenizer.json")
    again = find_tokenizer(str(tmp_path))
    assert again.fingerprint == released.fingerprint
    text = "A ﬁne①  day, isn't it? </s>"
    assert again.encode(text) == released.encode(text)
    assert again.encode_batch([text, ""]) == [released.encode(text), []]


def test_bytes_are_a_vocabulary_without_a_file(tmp_path):
    (tmp_path / "config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("aé</s>")[:3] == [100, 198, 172]
    assert tokenizer.decode([*tokenizer.encode("aé"), 1, 0, 258, 383]) == "aé"
    assert tokenizer.sentinel(0) == 258
    assert [tokenizer.piece(i) for i in (0, 100, 13)] == ["<pad>", "a", "<0x0A>"]
    tokenizer.save(tmp_path / "tokenizer.json")
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_tokens_that_a_user_added_are_read_from_text_and_keep_their_ids(tmp_path):
    parts = checkpoints.tokenizer_parts()
    token = {**parts["added_tokens"][0], "content": "{", "id": 118, "special": False}
    parts["added_tokens"] += [token, {**token, "content": "<sep>", "id": 119, "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.added_tokens == ("{", "<sep>") and tokenizer.vocab_size == 120
    assert tokenizer.encode("the {dog") == [4, 118, 5]
    assert tokenizer.encode("the<sep> dog</s>")[:3] == [4, 119, 5]
    assert not {0, 1} & set(tokenizer.encode("the <sep> </s><pad><extra_id_0>"))
    assert tokenizer.decode([4, 118, 119, 5]) == "the{ dog"
    assert tokenizer.piece(119) == "<sep>"
    tokenizer.save(tmp_path / "again.json")
    again = load_tokenizer(tmp_path / "again.json")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode("a <sep> { b") == tokenizer.encode("a <sep> { b")


def added_files(folder, kind):
    """A folder of T5 with two more tokens, as transformers of different years saves it."""
    checkpoints.write_hf(folder)
    if kind == "added_tokens.json":
        (folder / kind).write_text(json.dumps({"<ent>": 118, "<sep>": 119, "<extra_id_0>": 117}))
        special = {"eos_token": "</s>", "additional_special_tokens": ["<extra_id_0>", "<sep>"]}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
    else:
        token = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
        decoder = {
            "1": {"content": "</s>", "special": True, **token},
            "118": {"content": "<ent>", "special": False, **token},
            "119": {"content": "<sep>", "special": True, **token},
        }
        (folder / kind).write_text(json.dumps({"added_tokens_decoder": decoder}))
    return folder


@pytest.mark.parametrize("kind", ["added_tokens.json", "tokenizer_config.json"])
def test_files_beside_a_vocabulary_add_tokens(kind, tmp_path):
    plain = load_tokenizer(checkpoints.write_hf(tmp_path / "plain"))
    folder = added_files(tmp_path / "model", kind)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.added_tokens == ("<ent>", "<sep>") and tokenizer.vocab_size == 120
    assert tokenizer.encode("the <ent>dog <sep>") == [4, 118, 5, 119]
    assert tokenizer.decode([4, 118, 119, 5]) == "the<ent> dog"  # a special token is left out
    assert tokenizer.encode("the dog") == plain.encode("the dog")
    assert tokenizer.fingerprint != plain.fingerprint
    assert load_backbone(str(folder)).tokenizer.fingerprint == tokenizer.fingerprint
    # A file that is named by itself says nothing of those beside it.
    assert load_tokenizer(folder / "tokenizer.json").fingerprint == plain.fingerprint


def test_files_that_add_nothing_leave_the_fingerprint_alone(tmp_path):
    folder = checkpoints.write_hf(tmp_path / "model")
    before = load_tokenizer(folder)
    (folder / "added_tokens.json").write_text('{"<extra_id_99>": 18, "</s>": 1}')
    assert load_tokenizer(folder).fingerprint == before.fingerprint
    assert before.added_tokens == ()


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"<ent>": 5}, "added token '<ent>' has id 5, which is another token's"),
        ({"</s>": 118}, "added token '</s>' has id 118, which is another token's"),
        ({"<ent>": -1}, "added token '<ent>' has id -1, which is another token's"),
        ({"<ent>": 120}, "it has no piece at id 118"),
        ({"": 118}, r"added tokens in added_tokens.json or .* cannot be read .*token 118 is ''"),
        (
            {"<ent>": "x"},
            "added tokens in added_tokens.json .*; save the tokenizer again with tran",
        ),
        (
            {"<ent>": None},
            "added tokens in added_tokens.json or tokenizer_config.json of .* cannot",
        ),
    ],
)
def test_damaged_added_tokens_are_refused(added, message, tmp_path):
    folder = checkpoints.write_hf(tmp_path / "model")
    (folder / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


def sentinels_of(tokenizer):
    return [tokenizer.sentinel(i) for i in (0, 1, 99)]


TEMPLATE = "the <extra_id_0> dog<extra_id_1>a <extra_id_99>"


@pytest.mark.parametrize("kind", ["published", "trained", "bytes"])
def test_sentinels_are_ids_in_templates_and_text_in_data(kind, tmp_path):
    tokenizer = checkpoints.tokenizer_of(kind, tmp_path)
    zero, one, last = sentinels_of(tokenizer)
    the, dog, a = (tokenizer.encode(text) for text in ("the ", " dog", "a "))
    expected = [*the, zero, *dog, one, *a, last]
    assert tokenizer.encode(TEMPLATE, sentinels=True) == expected
    assert tokenizer.encode_batch([TEMPLATE, "the"], sentinels=True)[0] == expected
    assert not {zero, one, last} & set(tokenizer.encode(TEMPLATE))
    assert not {zero, one, last} & set(tokenizer.encode_batch([TEMPLATE])[0])
    # A field that is put between the parts of a template stays text, whatever it says.
    parts = split_sentinels("the <extra_id_0>")
    parts[0] = parts[0].replace("the", "<extra_id_1></s>")
    ids = tokenizer.encode_parts(parts)
    assert ids[-1] == zero and one not in ids and 1 not in ids
    assert tokenizer.encode_parts([]) == [] and tokenizer.encode_parts(["", 99]) == [last]
    assert tokenizer.encode("", sentinels=True) == []


def test_a_template_is_split_at_its_sentinels():
    assert split_sentinels("a <extra_id_0>b<extra_id_12>") == ["a ", 0, "b", 12, ""]
    assert split_sentinels("<extra_id_100> <extra_id_> <EXTRA_ID_0>") == [
        "<extra_id_100> <extra_id_> <EXTRA_ID_0>"
    ]


def test_a_sentinel_that_a_vocabulary_lacks_is_an_error(tmp_path):
    parts = checkpoints.tokenizer_parts()
    index = next(t["id"] for t in parts["added_tokens"] if t["content"] == "<extra_id_7>")
    parts["model"]["vocab"][index][0] = "x"
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["id"] != index]
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="this tokenizer has no '<extra_id_7>'"):
        load_tokenizer(tmp_path).encode("the <extra_id_7>", sentinels=True)


# MessagePack.


def opened(tree):
    return unpack(packing.msgpack_serialize(tree))


def test_a_tree_of_message_pack_is_opened_with_its_arrays_unread():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(300, jnp.bfloat16)}
    tree = {"t": arrays, "i": np.arange(70_000), "e": np.zeros((0, 4), np.float16)}
    tree |= {"n": [1, -1, 300, -300, 70000, 1 << 40, 2.5, True, None, "x" * 40, "é"]}
    found = opened(tree)
    assert found["n"] == tree["n"]
    for name, array in {**arrays, "i": tree["i"], "e": tree["e"]}.items():
        tensor = found["t"][name] if name in arrays else found[name]
        assert isinstance(tensor, Tensor)
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(tensor.read(), array)
        tensor.read()[:] = 0  # each reading has memory of its own
        np.testing.assert_array_equal(tensor.read(), array)


def test_opening_message_pack_holds_no_array(tmp_path):
    tree = {"optimizer": {str(i): np.ones(1 << 20, np.float32) for i in range(8)}}
    (tmp_path / "checkpoint").write_bytes(packing.msgpack_serialize(tree))
    with open(tmp_path / "checkpoint", "rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    tracemalloc.start()
    arrays = unpack(buffer)["optimizer"]
    opened, peak = tracemalloc.get_traced_memory()
    assert opened < 1 << 20 and peak < 9 << 20  # 32 MiB of arrays, of which msgpack copies one
    assert arrays["7"].read().sum() == 1 << 20
    assert tracemalloc.get_traced_memory()[1] < 9 << 20
    tracemalloc.stop()


def test_chunked_arrays_of_message_pack_are_joined(monkeypatch):
    monkeypatch.setattr(packing, "MAX_CHUNK_SIZE", 16)
    array = np.arange(30, dtype=np.float32).reshape(5, 6)
    found = opened({"a": array})["a"]
    assert found.shape == (5, 6)
    np.testing.assert_array_equal(found.read(), array)
