"""Inputs that a stranger made: a bucket, an index, an adapter, a prompt, a checkpoint, rows.

Whatever they state, nothing is written outside of the target, nothing is fetched that the
caller did not name, and memory stays within twice the size that they have.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import re
import socket
import struct
import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import huggingface_hub
import msgpack
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import checkpoints
from support.gcs import NAMES_LEADING_OUT, fake_gcs

from spt_jax.config.train import TaskConfig
from spt_jax.data.tasks import load_task
from spt_jax.errors import BAD_INPUT, one_line
from spt_jax.models.load import Reader
from spt_jax.models.open import open_model
from spt_jax.prediction.given import read_rows
from spt_jax.prediction.inputs import form_of
from spt_jax.prompts.load import load_run
from spt_jax.prompts.peft import peft_files
from spt_jax.prompts.read import read_prompt
from spt_jax.prompts.words import show_prompt
from spt_jax.runs.mirror import INDEX
from spt_jax.runs.workdir import open_run

ADDRESS, KEY = "gs://bucket/stranger/run", "bucket/stranger/run"
SLACK = 24 << 20
"""Bytes that reading may take whatever its input is: the libraries' own."""


class World(NamedTuple):
    """What an input can reach.

    Args:
        target: The folder that holds the input; it may be written.
        bucket: A server of Google Cloud Storage.
        url: A web server that has nothing.
    """

    target: Path
    bucket: Any
    url: str


class Case(NamedTuple):
    """A hostile input.

    Args:
        make: Writes the input and returns its place.
        read: Reads it.
        ends: What its error says, or what is true of the result.
    """

    make: Callable[[World], Any]
    read: Callable[[Any], Any]
    ends: str | Callable[[Any], bool]


WRITTEN: dict[str, np.ndarray] = {}
"""The leaves of a T5X checkpoint that nobody has changed."""


@pytest.fixture(scope="module", autouse=True)
def _libraries(tmp_path_factory):
    """Load what the readers load on their first call, which counts as no memory of an input."""
    pyarrow.parquet.read_table(io.BytesIO(parquet(pyarrow.table({"text": ["a"]}))))
    WRITTEN.update(load_weights(checkpoints.write_t5x(tmp_path_factory.mktemp("t5x") / "model")))


@pytest.fixture(scope="module")
def servers():
    """A bucket, and a web server that notes what it is asked."""
    asked: list[str] = []

    class Note(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_POST = do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with fake_gcs() as bucket, ThreadingHTTPServer(("127.0.0.1", 0), Note) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield bucket, f"http://127.0.0.1:{web.server_address[1]}", asked
        web.shutdown()


@pytest.fixture
def world(tmp_path, monkeypatch, servers):
    """A target among folders that nothing may write to, and a watch over the network.

    Leaving it fails the test if a file beside the target has changed, or if something was asked for
    that is not at `ADDRESS`.
    """
    bucket, url, asked = servers
    bucket.objects.clear()
    fetched: list[Any] = []
    for name in ("target", "outside", "home", "cwd", "tmp", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text(name)
    monkeypatch.chdir(tmp_path / "cwd")
    for name, folder in (("HOME", "home"), ("TMPDIR", "tmp"), ("SPT_JAX_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", bucket.url)

    def note(name, call):
        def noted(*args, **options):
            if not options.get("local_files_only"):
                fetched.append((name, args))
            return call(*args, **options)

        return noted

    for module, name in ((socket, "getaddrinfo"), (huggingface_hub, "snapshot_download")):
        monkeypatch.setattr(module, name, note(name, getattr(module, name)))
    monkeypatch.setattr(socket.socket, "connect", note("connect", socket.socket.connect))
    before = snapshot(tmp_path)
    bucket.requests.clear()
    asked.clear()
    yield World(tmp_path / "target", bucket, url)
    assert snapshot(tmp_path) == before
    assert (fetched, asked) == ([], [])
    allowed = ("GET bucket/", f"GET {KEY}/")
    assert [r for r in bucket.requests if r != allowed[0] and not r.startswith(allowed[1])] == []


def snapshot(root: Path) -> dict[str, bytes]:
    """The files and folders beside the target, with their contents."""
    paths = [path for path in root.rglob("*") if root / "target" not in (path, *path.parents)]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def status(field: str) -> int:
    """Bytes of this process by /proc; 0 on systems that have none."""
    path = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", path.read_text() if path.exists() else "")
    return int(found[1]) << 10 if found else 0


def taken(read: Callable[[], Any]) -> tuple[Any, int]:
    """The result of `read` or its error, and the bytes that this process grew at its largest."""
    forget = Path("/proc/self/clear_refs")  # Linux alone tells the peak since a moment
    if forget.exists():
        forget.write_text("5")
    before = status("VmHWM")
    try:
        return read(), status("VmHWM") - before
    except BAD_INPUT as error:
        return error, status("VmHWM") - before


def size(world: World) -> int:
    """Bytes of the input as it is stored; holes in files do not count."""
    files = [path.lstat().st_blocks * 512 for path in world.target.rglob("*")]
    return sum(files) + sum(map(len, world.bucket.objects.values()))


def check(case: Case, world: World) -> None:
    place = case.make(world)
    found, grown = taken(lambda: case.read(place))
    if isinstance(case.ends, str):
        assert isinstance(found, BAD_INPUT), found
        assert re.search(case.ends, str(found)), found
        assert one_line(found).isprintable()
    else:
        assert not isinstance(found, Exception), found
        assert case.ends(found)
    assert grown < 2 * size(world) + SLACK


# Buckets.


def in_bucket(name: str = "", data: bytes = b"steps: 1", **objects: bytes):
    """Objects of a run at `ADDRESS`, and one of any name."""

    def make(world):
        for key, value in ({name: data} if name else {}).items():
            world.bucket.put(f"{KEY}/{key}", value)
        for key, value in objects.items():
            world.bucket.put(f"{KEY}/{key.replace('_', '.')}", value)
        return Path(ADDRESS)

    return make


def index(*names):
    return in_bucket(INDEX, json.dumps({"files": names}).encode(), config_yaml=b"steps: 1")


def files_of(place):
    with open_run(place, model=True) as copy:
        return {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}


NO_RUN = f"^{ADDRESS} is not the address of a run: the name .*expected the name of a file inside"
OF_NO_PLACE = ("..", "../evil", "/evil", "//evil", "model/..", "gs://other/evil", ".lock", "a/b")
OF_OTHERS = b"task: {name: x}\nmodel: gs://other/x"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
LAUGHS += "task: {label_words: *a59}\n"
BUCKETS = {
    **{
        f"index {ascii(name)[:30]}": Case(index(name), files_of, NO_RUN)
        for name in NAMES_LEADING_OUT
    },
    **{
        f"index passed over {name}": Case(
            index("config.yaml", name), files_of, lambda found: found == {"config.yaml"}
        )
        for name in OF_NO_PLACE
    },
    **{
        f"listing {name}": Case(in_bucket(name), files_of, NO_RUN)
        for name in ("model/../../evil", "model/a\\b", "model/a\x1b[2J", "model/C:x")
    },
    **{
        f"index is {data[:12]!r}": Case(in_bucket(INDEX, data), files_of, "is damaged: expected a")
        for data in (b"", b"[]", b'{"files": "abc"}', b'{"files": [1]}', b"\xff", b"[" * 100_000)
    },
    "a file that is a folder too": Case(
        in_bucket("model/a", b"x", **{"model": b"x"}),
        files_of,
        "is not the address of a run: it has an object 'model' and others below it",
    ),
    "config of code": Case(
        in_bucket(config_yaml=b"task: !!python/object/apply:os.system ['touch evil']"),
        load_run,
        f"{ADDRESS}/config.yaml is damaged .could not determine a constructor",
    ),
    "config of aliases": Case(
        in_bucket(config_yaml=LAUGHS.encode()), load_run, "config.yaml is damaged .it has aliases"
    ),
    "config of brackets": Case(
        in_bucket(config_yaml=b"[" * 100_000), load_run, "config.yaml is damaged .while incr"
    ),
    "config of bytes": Case(
        in_bucket(config_yaml=b"\xff"), load_run, "config.yaml is damaged .'utf"
    ),
    "config of a number": Case(in_bucket(config_yaml=b"3"), load_run, "damaged .it is no mapping"),
    "manifest of brackets": Case(
        in_bucket(
            config_yaml=b"task: {name: x}\nmodel: gs://other/x", manifest_json=b"[" * 100_000
        ),
        load_run,
        "names 'gs://other/x', which is not on this machine",
    ),
}


# Folders of transformers with an index of shards.


def load_weights(folder):
    """Open a model and read every leaf."""
    return dict(Reader(open_model(str(folder))))


def shards(change, kind="model.safetensors"):
    """A model in shards, its folder changed by `change(folder, index)`."""

    def make(world):
        folder = checkpoints.write_shards(world.target / "model")
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        path.unlink()
        data = change(folder, index)
        (folder / f"{kind}.index.json").write_bytes(data or json.dumps(index).encode())
        return folder

    return make


def names_shard(name):
    return lambda folder, index: index["weight_map"].update({"shared.weight": name})


def first_shard(change):
    def edit(folder, index):
        path = min(folder.glob("*.safetensors"))
        data = path.read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header, tensors = change(json.loads(data[8 : 8 + length]), data[8 + length :])
        header = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + tensors)

    return edit


def enlarge(header, tensors):
    header[min(header.keys() - {"__metadata__"})]["shape"] = [1 << 40, 1 << 20]
    return header, tensors


def overlap(header, tensors):
    names = sorted(header.keys() - {"__metadata__"})
    for name in names:
        header[name] = header[names[0]]
    return header, tensors


def pipe_as_shard(folder, index):
    os.mkfifo(folder / "a-pipe")
    index["weight_map"]["shared.weight"] = "a-pipe"


def link_out(folder, index):
    """A folder of the model that is a link to one outside, with a shard there."""
    (folder / "out").symlink_to(folder.parents[1] / "outside")
    index["weight_map"]["shared.weight"] = "out/mine"


NOT_READ = "index.json names a shard that is not read: the name"
SHARD_NAMES = ("/etc/passwd", "../x", "a/../../x", "..", ".", "", "a\\b", "a\0b", "C:x", "x" * 300)
INDICES = {
    **{
        f"{kind} {ascii(name)[:20]}": Case(shards(names_shard(name), kind), load_weights, NOT_READ)
        for kind in ("model.safetensors", "pytorch_model.bin")
        for name in SHARD_NAMES
    },
    "address": Case(shards(names_shard("http://127.0.0.1/x")), load_weights, NOT_READ),
    "link": Case(shards(link_out), load_weights, f"{NOT_READ} 'out/mine' leads out of"),
    "pipe": Case(shards(pipe_as_shard), load_weights, "shard .*a-pipe does not exist, but"),
    "shard is the index": Case(
        shards(names_shard("model.safetensors.index.json")), load_weights, "also has shared.weight"
    ),
    "brackets": Case(shards(lambda *_: b"[" * 100_000), load_weights, "cannot be read"),
    "list": Case(shards(lambda *_: b"[]"), load_weights, "expected a JSON object"),
    "names are numbers": Case(shards(names_shard(3)), load_weights, "has no weight_map of tensor"),
    "header of exabytes": Case(
        shards(
            lambda folder, _: min(folder.glob("*.safetensors")).write_bytes(b"\xff" * 64) and None
        ),
        load_weights,
        "cannot be read: .*header",
    ),
    "shape of exabytes": Case(shards(first_shard(enlarge)), load_weights, "cannot be read"),
    "tensors in one place": Case(shards(first_shard(overlap)), load_weights, "cannot be read"),
    "header of brackets": Case(
        shards(first_shard(lambda _, tensors: (b"[" * 100_000, tensors))),
        load_weights,
        "cannot be read",
    ),
}


# Adapters of PEFT.

PROMPT = np.ones((4, 16), np.float32)


def adapter(config=None, tensors=None, base=None, raw=None):
    """An adapter with changed entries of its config, or other bytes of one of its files."""

    def make(world):
        folder = world.target / "adapter"
        folder.mkdir()
        for name, data in peft_files(PROMPT, {"task": "x"}, base).items():
            if name.endswith(".json") and config is not None:
                data = json.dumps(json.loads(data) | config).encode()
            data = tensors if tensors is not None and name.endswith(".safetensors") else data
            (folder / name).write_bytes((raw or {}).get(name, data))
        return folder

    return make


def pickled(world):
    folder = adapter()(world)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(evil_pickle(world))
    return folder


class Evil:
    """What a pickle of it does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def evil_pickle(world):
    return pickle.dumps(Evil(world.target.parent / "outside" / "evil"))


def shows(**metadata):
    """Whether what is shown of a prompt names a model that was not opened."""
    return lambda found: "rows" not in found and "no nearest words" in found["note"]


def header_of(entries, data=b""):
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


def states(shape, offsets, name="prompt", **metadata):
    """A safetensors file of 256 bytes that states a shape and offsets."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    return header_of({"__metadata__": metadata, name: entry}, PROMPT.tobytes())


EMBEDDINGS = "prompt_embeddings"
ADAPTERS = {
    **{
        f"base model {base[:12]}": Case(adapter(base=base), show_prompt, shows())
        for base in ("gs://stranger/t5x", "http://127.0.0.1:9/x", "file:///etc", "stranger/model")
    },
    "pickle": Case(pickled, read_prompt, "adapter_model.bin is a pickle, which is never loaded"),
    "pickle by the name of tensors": Case(
        lambda world: adapter(tensors=evil_pickle(world))(world), read_prompt, "cannot be read"
    ),
    "length of exabytes": Case(
        adapter(config={"num_virtual_tokens": 10**30}), read_prompt, "but adapter_config.json says"
    ),
    "shape of exabytes": Case(
        adapter(tensors=states([1 << 40, 16], [0, 256], EMBEDDINGS)), read_prompt, "cannot be read"
    ),
    "offsets beyond the file": Case(
        adapter(tensors=states([4, 16], [0, 1 << 60], EMBEDDINGS)), read_prompt, "cannot be read"
    ),
    "header of exabytes": Case(
        adapter(tensors=struct.pack("<Q", 1 << 60) + b"{}"), read_prompt, "cannot be read"
    ),
    "config of brackets": Case(
        adapter(raw={"adapter_config.json": b"[" * 100_000}), read_prompt, "cannot be read"
    ),
    "type with terminal codes": Case(
        adapter(config={"peft_type": "\x1b[2J"}), read_prompt, "has peft_type '.x1b"
    ),
}


# Prompt files.


def file(name, data):
    def make(world):
        path = world.target / name
        path.write_bytes(data(world) if callable(data) else data)
        return path

    return make


def npy(header, data=b"", version=1):
    """A .npy file with any header."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def of_npy(shape, dtype="<f4"):
    return {"descr": dtype, "fortran_order": False, "shape": shape}


def fill(template):
    """The input that a prompt with a template makes of a row, whoever wrote the template."""

    def read(path):
        return form_of(read_prompt(path).metadata).fill({"text": "a"})

    data = states([4, 16], [0, 256], template=template)
    return file("p.safetensors", data), read


PROMPTS = {
    **{
        f"model {model[:12]}": Case(
            file("p.safetensors", states([4, 16], [0, 256], model=model)), show_prompt, shows()
        )
        for model in ("gs://stranger/t5x", "http://127.0.0.1:9/x", "stranger/model", "../..")
    },
    "shape of exabytes": Case(
        file("p.safetensors", states([1 << 40, 1 << 20], [0, 256])), read_prompt, "not a whole"
    ),
    "negative shape": Case(
        file("p.safetensors", states([-4, -16], [0, 256])), read_prompt, "not a whole"
    ),
    "offsets beyond the file": Case(
        file("p.safetensors", states([4, 16], [0, 1 << 60])), read_prompt, "not a whole"
    ),
    "header of exabytes": Case(
        file("p.safetensors", struct.pack("<Q", 1 << 60) + b"{}"), read_prompt, "not a whole"
    ),
    "header of brackets": Case(
        file("p.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000),
        read_prompt,
        "not a whole",
    ),
    "pickle": Case(file("p.safetensors", evil_pickle), read_prompt, "not a whole"),
    "template with a format": Case(*fill("{text:>9999999999}"), "without a name or with a format"),
    "template with attributes": Case(*fill("{text.__class__}"), lambda text: text == "a"),
    "template with an address": Case(*fill("{text[__class__]}"), r"has no \[__class__\]"),
    "npy of objects": Case(
        file("p.npy", lambda world: npy(of_npy((1, 1), "|O"), evil_pickle(world))),
        read_prompt,
        "is not a whole .npy file",
    ),
    "npy of exabytes": Case(file("p.npy", npy(of_npy((1 << 40, 16)))), read_prompt, "not a whole"),
    "npy of a negative shape": Case(
        file("p.npy", npy(of_npy((-1, 16)))), read_prompt, "p.npy (is not|holds|has)"
    ),
    "npy header of code": Case(
        file("p.npy", npy(b"__import__('os').mkdir('evil')")), read_prompt, "not a whole .npy"
    ),
    "npy header of gigabytes": Case(
        file("p.npy", b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b"{}"), read_prompt, "not a whole .npy"
    ),
    "npy header of brackets": Case(
        file("p.npy", npy(b"[" * 60_000)), read_prompt, "not a whole .npy"
    ),
}


# Checkpoints of T5X.

LEAF = "target.encoder.layers_1.mlp.wo.kernel"


def t5x(change=None, *, zarray=None, chunk=None, checkpoint=None, **spec):
    """A checkpoint whose spec or array of one leaf is changed."""

    def make(world):
        folder = checkpoints.write_t5x(world.target / "model")
        root = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
        leaf = root["optimizer"]["target"]["encoder"]["layers_1"]["mlp"]["wo"]["kernel"]
        leaf.update(
            {key: value(world) if callable(value) else value for key, value in spec.items()}
        )
        if zarray is not None:
            leaf["metadata"] = {}
            path = folder / LEAF / ".zarray"
            path.write_text(json.dumps(json.loads(path.read_text()) | zarray))
        data = flax.serialization.msgpack_serialize(root)
        (folder / "checkpoint").write_bytes(checkpoint or data)
        if chunk is not None:
            (folder / LEAF / "1.0").write_bytes(chunk)
        if change is not None:
            change(folder)
        return folder

    return make


def as_written(leaves):
    """Whether the leaves are those in the folder, whatever place the checkpoint names."""
    assert leaves.keys() == WRITTEN.keys()
    return all(np.array_equal(leaves[name], leaf) for name, leaf in WRITTEN.items())


def zeros(mebibytes, compress):
    """A compressed file of zeros: the same stream again and again."""
    return compress(bytes(1 << 20)) * mebibytes


def one_gzip(mebibytes):
    """Zeros as a single stream of gzip."""
    stream = zlib.compressobj(9, wbits=31)
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(mebibytes)) + stream.flush()


def ext_array(shape, raw=b""):
    """An array of Flax's MessagePack that states a shape, as the leaf of a whole checkpoint."""
    packed = msgpack.packb((shape, "float32", raw))
    leaf = msgpack.ExtType(1, packed)
    return msgpack.packb({"version": 3, "optimizer": {"target": {"a": leaf}}})


CANNOT = "leaf encoder/layers_1/mlp/wo/kernel of .* cannot be read"
NO_CHECKPOINT = "checkpoint cannot be read"
ELSEWHERE = {
    "path of the machine that wrote it": {"driver": "file", "path": f"/root/x/{LEAF}/"},
    "bucket": {"driver": "gcs", "bucket": "other", "path": f"secret/{LEAF}"},
    "address as path": {"driver": "file", "path": f"http://127.0.0.1:9/{LEAF}"},
    "parent": {"driver": "file", "path": f"../../{LEAF}"},
}
LEAF_NAMES = {
    "..": "has the part '..'",
    "a/..": "has the part '..'",
    "/": "is empty",
    "a\\b": "holds a backslash",
    "a\0b": "holds a backslash or a control character",
    "C:x": "starts with a drive letter",
    "x" * 300: "has a part of 300 bytes, more than 255",
}
T5XS = {
    **{
        name: Case(t5x(kvstore=place), load_weights, as_written)
        for name, place in ELSEWHERE.items()
    },
    "address": Case(
        t5x(kvstore=lambda w: {"driver": "http", "base_url": w.url, "path": f"a/{LEAF}"}),
        load_weights,
        as_written,
    ),
    "other driver": Case(t5x(driver="n5"), load_weights, as_written),
    **{
        f"name {ascii(name)[:10]}": Case(
            t5x(kvstore={"driver": "file", "path": name}), load_weights, f"{CANNOT}.*{problem}"
        )
        for name, problem in LEAF_NAMES.items()
    },
    "no place": Case(t5x(kvstore="file:///etc/"), load_weights, CANNOT),
    "chunk of gzip zeros": Case(
        t5x(chunk=one_gzip(48)), load_weights, "/1.0 has more than 160 bytes; a T5X"
    ),
    "file with a hole": Case(
        t5x(lambda folder: os.truncate(folder / LEAF / "1.0", 1 << 33)),
        load_weights,
        f"{LEAF}/1.0 is larger than a chunk .5, 8. of <f4",
    ),
    "chunks of exabytes": Case(
        t5x(zarray={"chunks": [1 << 30, 1 << 30]}),
        load_weights,
        r"/.zarray has shape \(10, 8\) in chunks of \(1073741824, 1073741824\)",
    ),
    "array of exabytes": Case(
        t5x(zarray={"shape": [1 << 40, 8], "chunks": [1 << 40, 8]}), load_weights, "do not fit|than"
    ),
    "array of many chunks": Case(
        t5x(zarray={"shape": [1 << 40, 8], "chunks": [1, 8]}), load_weights, "do not fit|than"
    ),
    "embedding of exabytes": Case(
        lambda world: huge_table(world, [1 << 40, 8], [1 << 40, 8]), load_weights, "cannot be read"
    ),
    "embedding of many chunks": Case(
        lambda world: huge_table(world, [1 << 40, 8], [1, 8]), load_weights, "cannot be read"
    ),
    "array states exabytes": Case(
        t5x(checkpoint=ext_array((1 << 40, 1 << 20))), load_weights, NO_CHECKPOINT
    ),
    "array of a negative shape": Case(
        t5x(checkpoint=ext_array((-1, -1), bytes(4))), load_weights, NO_CHECKPOINT
    ),
    "list states gigabytes": Case(
        t5x(checkpoint=b"\xdd\xff\xff\xff\xff"), load_weights, NO_CHECKPOINT
    ),
    "nested lists": Case(t5x(checkpoint=b"\x91" * 100_000), load_weights, NO_CHECKPOINT),
    "pieces that do not fit": Case(
        t5x(
            checkpoint=msgpack.packb(
                {"__msgpack_chunked_array__": True, "shape": {"0": 1 << 50}, "chunks": {}}
            )
        ),
        load_weights,
        NO_CHECKPOINT,
    ),
    "tokenizer of brackets": Case(
        t5x(lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000) and None),
        load_weights,
        "tokenizer.json cannot be read",
    ),
}


def huge_table(world, shape, chunks):
    """A checkpoint whose embedding and head, of which the config is inferred, are huge."""
    folder = t5x()(world)
    root = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    target = root["optimizer"]["target"]
    for leaf, order in (
        (target["token_embedder"]["embedding"], 1),
        (target["decoder"]["logits_dense"]["kernel"], -1),
    ):
        leaf["metadata"] = {}
        path = folder / leaf["kvstore"]["path"].strip("/") / ".zarray"
        changed = {"shape": shape[::order], "chunks": chunks[::order]}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(root))
    return folder


# Files of rows.


def parquet(*tables):
    """A Parquet file with a group of rows for each table."""
    data = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(data, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return data.getvalue()


def load(path):
    return load_task(TaskConfig(source=str(path), template="{text}", label="label"))


ROW = b'{"text": "a", "label": "b"}\n'
EQUAL_ROWS = pyarrow.table(
    {"text": np.zeros(1 << 20, np.int8), "label": np.zeros(1 << 20, np.int8)}
)


def numbered(line):
    return b"".join(line % number for number in range(40))


def with_pipe(world):
    """A pattern that a named pipe matches, which nobody writes to."""
    (world.target / "a.jsonl").write_bytes(ROW)
    os.mkfifo(world.target / "b.jsonl")
    return world.target / "*.jsonl"


ROWS = {
    "gzip of zeros": Case(
        file("a.jsonl.gz", lambda _: zeros(512, gzip.compress)), load, "cannot be unpacked .it has"
    ),
    "one stream of gzip": Case(
        file("a.csv.gz", lambda _: one_gzip(64)), load, "cannot be unpacked .it has"
    ),
    "bz2 of zeros": Case(
        file("a.tsv.bz2", lambda _: zeros(512, bz2.compress)), load, "cannot be unpacked .it has"
    ),
    "xz of zeros": Case(
        file("a.json.xz", lambda _: zeros(512, lzma.compress)), load, "cannot be unpacked .it has"
    ),
    "Parquet of equal rows": Case(
        file("a.parquet", lambda _: parquet(*[EQUAL_ROWS] * 16)), load, "cannot be read as Parquet"
    ),
    "Parquet cut short": Case(
        file("a.parquet", lambda _: parquet(EQUAL_ROWS)[:-9]), load, "cannot be read as Parquet"
    ),
    "brackets": Case(file("a.jsonl", b"[" * 100_000), load, "a.jsonl:1: not JSON"),
    "nested objects": Case(file("a.jsonl", b'{"a":' * 100_000), load, "a.jsonl:1: not JSON"),
    "array of brackets": Case(file("a.json", b"[" * 100_000), load, "a.json:1: "),
    "number of digits": Case(
        file("a.jsonl", b'{"text": 1' + b"0" * 100_000 + b', "label": "b"}'), load, "a.jsonl:1: "
    ),
    "column with terminal codes": Case(
        file("a.csv", b"text,\x1b[2J\na,b\n"), load, "no field 'label' of task.label"
    ),
    "template from the row": Case(
        file("a.jsonl", numbered(b'{"text": "%d {label.__class__}", "label": "b"}\n')),
        load,
        lambda task: all(e.inputs.endswith(" {label.__class__}") for e in task.splits["train"]),
    ),
    "address in the row": Case(
        file(
            "a.jsonl", numbered(b'{"text": "gs://stranger/%d", "label": "http://127.0.0.1:9/"}\n')
        ),
        load,
        lambda task: task.label_words == ("http://127.0.0.1:9/",),
    ),
    "pipe": Case(with_pipe, load, "rows and none falls into"),
    "lines to be answered": Case(
        file("a.jsonl", b"[" * 100_000 + b"\n" + ROW + b'{"text": 1e999}\n\xef\xbf\xbf\n'),
        lambda path: read_rows(str(path)),
        lambda rows: [row.problem is None for row in rows] == [False, True, True, False],
    ),
}

KINDS = {
    "bucket": BUCKETS,
    "index": INDICES,
    "adapter": ADAPTERS,
    "prompt": PROMPTS,
    "T5X": T5XS,
    "rows": ROWS,
}
CASES = {f"{kind}: {name}": case for kind, cases in KINDS.items() for name, case in cases.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_reaches_nothing(name, world):
    check(CASES[name], world)


def test_there_are_enough_of_each_kind():
    assert min(map(len, KINDS.values())) >= 8 and len(CASES) >= 40
