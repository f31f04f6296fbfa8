"""What transformers makes of a folder is what we make of it: logits and token ids.

The oracle is the model that transformers itself loads from the folder. Every weight is random,
norms and position biases included.
"""

import functools
import json
import random
import shutil

import numpy as np
import pytest

pytest.importorskip("torch", reason="pip install -e '.[parity]' brings torch")

import flax.serialization
import torch
import transformers
from parity.cases import quick_jit, random_ids, relative_difference
from support.checkpoints import tokenizer_parts, write_t5x
from transformers import AutoModelForSeq2SeqLM, MT5ForConditionalGeneration
from transformers import T5ForConditionalGeneration as TorchT5

from spt_jax.forward import forward
from spt_jax.models.backbone import load_backbone
from spt_jax.models.formats.torch_file import open_torch
from spt_jax.pytree import named_leaves
from spt_jax.t5 import T5Config
from spt_jax.tokenizers.published import load_tokenizer

torch.set_num_threads(1)

SIZES = dict(
    vocab_size=128, d_model=16, d_kv=6, d_ff=24, num_heads=3, num_layers=3, num_decoder_layers=2
)
# name: (model class, config, whether the head is saved as a tensor of its own)
T5_1_0 = (TorchT5, {"feed_forward_proj": "relu"}, False)
T5_1_1 = (TorchT5, {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True)
FAMILIES = {
    "t5 1.0": T5_1_0,
    "t5 1.1": T5_1_1,  # LM-adapted and Flan-T5 are T5 1.1 on disk
    # transformers 5 ties the head of a T5 1.1 that it makes from a config, and does not scale it
    "t5 1.1 tied": (TorchT5, T5_1_1[1], False),
    "mt5": (MT5ForConditionalGeneration, {}, True),
    "mt5 tied": (MT5ForConditionalGeneration, {}, False),
    "byt5": (TorchT5, {**T5_1_1[1], "vocab_size": 384, "tokenizer_class": "ByT5Tokenizer"}, True),
}


def save_family(name, folder, *, dtype=torch.float32, **options):
    """A random model of a family as transformers saves it, with a tokenizer."""
    kind, changes, own_head = FAMILIES[name]
    torch.manual_seed(0)
    config = kind.config_class(**{**SIZES, **changes, "decoder_start_token_id": 0})
    model = kind(config)
    if own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if weight.ndim == 1:  # the scale of a norm
                weight.normal_(mean=1.0, std=0.3)
            elif "shared" in path or "relative_attention_bias" in path:
                weight.normal_()
            else:  # larger ones amplify rounding, on both sides, beyond the tolerance
                weight.normal_(std=weight.shape[-1] ** -0.5)
    model.to(dtype).save_pretrained(folder, **options)
    if name == "byt5":
        transformers.ByT5Tokenizer().save_pretrained(folder)
    else:
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer_parts()))
    return folder


def their_logits(folder, inputs, targets, **options):
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager", **options)
    ids, targets = torch.tensor(inputs).long(), torch.tensor(targets).long()
    shifted = torch.nn.functional.pad(targets, (1, -1))
    with torch.no_grad():
        return (
            model.float()
            .eval()(input_ids=ids, attention_mask=(ids > 0).long(), decoder_input_ids=shifted)
            .logits.numpy()
        )


@functools.cache
def jitted(model):
    return quick_jit(functools.partial(forward, model))


def our_logits(backbone, inputs, targets):
    return np.asarray(jitted(backbone.model)({"t5": backbone.params}, inputs, targets))


def assert_equal_logits(folder, **options):
    backbone = load_backbone(str(folder))
    inputs = random_ids(backbone.model.config, [40, 9], 40, seed=1)
    targets = random_ids(backbone.model.config, [12, 30], 30, seed=2)
    theirs = their_logits(folder, inputs, targets, **options)
    assert theirs.std() > 0.1
    assert relative_difference(our_logits(backbone, inputs, targets), theirs) <= 1e-5
    return backbone


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family(name, tmp_path):
    backbone = assert_equal_logits(save_family(name, tmp_path))
    assert backbone.model.config.tied_head == (name == "t5 1.0")
    assert backbone.model.config.mlp == ("relu" if name == "t5 1.0" else "gated_gelu")


@pytest.mark.parametrize("name", ["t5 1.0", "t5 1.1"])
def test_logits_of_sharded_weights(name, tmp_path):
    save_family(name, tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal_logits(tmp_path)


def test_logits_of_bfloat16_weights_in_float32(tmp_path):
    assert_equal_logits(save_family("t5 1.1", tmp_path, dtype=torch.bfloat16))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["t5 1.0", "t5 1.1"])
def test_logits_of_a_pytorch_model_bin_with_every_alias(name, zipped, tmp_path):
    save_family(name, tmp_path)
    state = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).bfloat16().state_dict()
    assert {"encoder.embed_tokens.weight", "lm_head.weight"} <= state.keys()
    # A tensor that the files of T5 1.0 have and no version of transformers uses.
    dead = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    state[dead] = torch.ones(32, 3)
    oracle = tmp_path / "oracle"
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path).bfloat16().save_pretrained(oracle)
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    backbone = load_backbone(str(tmp_path))
    inputs = random_ids(backbone.model.config, [20], 20, seed=1)
    theirs = their_logits(oracle, inputs, inputs)
    assert relative_difference(our_logits(backbone, inputs, inputs), theirs) <= 1e-5
    assert backbone.model.config.tied_head == (name == "t5 1.0")


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    save_family("t5 1.0", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"shared.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read .*holds tensors only"):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_fuzzed_pytorch_model_bin(tmp_path):
    """Bytes flipped and cut in the zip file of torch.save, which has checksums."""
    file, rng = tmp_path / "pytorch_model.bin", np.random.default_rng(0)
    expected = {"a": torch.randn(4, 3), "b": torch.randn(5).bfloat16()}
    torch.save(expected, file)
    data, refused = file.read_bytes(), 0
    for case in range(300):
        copy = bytearray(data)
        if case % 3:
            copy[rng.integers(len(copy))] ^= 1 << rng.integers(8)
        else:
            del copy[rng.integers(len(copy)) :]
        file.write_bytes(copy)
        try:
            tensors = open_torch(file)
        except ValueError as error:
            assert "pytorch_model.bin cannot be read" in str(error)
            refused += 1
        else:
            for name, tensor in expected.items():
                np.testing.assert_array_equal(tensors[name].read(), tensor.float().numpy())
    assert refused > 150


# T5X.


def torch_from_t5x(leaves, **changes):
    """transformers' T5 with the arrays of a T5X checkpoint, set by hand."""
    config = transformers.T5Config(
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, **changes
    )
    model = TorchT5(config)
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    leaves = dict(leaves)

    def take(weight, name):
        with torch.no_grad():
            array = leaves.pop(name)
            weight.copy_(torch.tensor(array if name.endswith("embedder/embedding") else array.T))

    def take_attention(layer, norm, prefix, norm_name):
        for theirs, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            take(getattr(layer, theirs).weight, f"{prefix}/{name}/kernel")
        take(norm.weight, norm_name)

    take(model.shared.weight, "token_embedder/embedding")
    take(model.lm_head.weight, "decoder/logits_dense/kernel")
    for stack, cross in (("encoder", False), ("decoder", True)):
        torch_stack = getattr(model, stack)
        take(torch_stack.final_layer_norm.weight, f"{stack}/{stack}_norm/scale")
        first = torch_stack.block[0].layer[0].SelfAttention
        take(first.relative_attention_bias.weight, f"{stack}/relpos_bias/rel_embedding")
        for i, block in enumerate(torch_stack.block):
            at, own = f"{stack}/layers_{i}", "self_attention" if cross else "attention"
            layers = list(block.layer)
            norm = f"{at}/pre_{own}_layer_norm/scale"
            take_attention(layers[0].SelfAttention, layers[0].layer_norm, f"{at}/{own}", norm)
            if cross:
                norm = f"{at}/pre_cross_attention_layer_norm/scale"
                other = f"{at}/encoder_decoder_attention"
                take_attention(layers[1].EncDecAttention, layers[1].layer_norm, other, norm)
            take(layers[-1].layer_norm.weight, f"{at}/pre_mlp_layer_norm/scale")
            for name in ("wi_0", "wi_1", "wo"):
                weight = getattr(layers[-1].DenseReluDense, name).weight
                take(weight, f"{at}/mlp/{name}/kernel")
    assert not leaves, f"not used: {sorted(leaves)}"
    return model.eval()


def read_zarr_by_hand(folder, metadata):
    """Chunks of gzip are all there is to the arrays of T5X: no TensorStore here."""
    import gzip
    import itertools

    (rows, columns), chunks = metadata["shape"], metadata["chunks"]
    array = np.full((rows, columns), np.nan, np.float32)
    for i, j in itertools.product(range(-(-rows // chunks[0])), range(-(-columns // chunks[1]))):
        raw = gzip.decompress((folder / f"{i}.{j}").read_bytes())
        place = array[i * chunks[0] : (i + 1) * chunks[0], j * chunks[1] : (j + 1) * chunks[1]]
        place[:] = np.frombuffer(raw, "<f4").reshape(chunks)[: place.shape[0], : place.shape[1]]
    return array


def read_by_hand(folder):
    root = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    leaves = {}

    def walk(tree, prefix):
        for key, value in tree.items():
            if isinstance(value, dict) and "driver" not in value:
                walk(value, f"{prefix}{key}/")
            elif isinstance(value, dict):
                place = folder / value["kvstore"]["path"]
                leaves[prefix + key] = read_zarr_by_hand(place, value["metadata"])
            else:
                leaves[prefix + key] = value

    walk(root["optimizer"]["target"], "")
    return leaves


def test_the_official_t5x_checkpoint(data_dir, tmp_path):
    official = data_dir / "t5" / "test_t5_1_1_tiny" / "checkpoint_3"
    folder = shutil.copytree(official, tmp_path / "official", copy_function=shutil.copyfile)
    folder.chmod(0o755)
    sizes = dict(
        vocab_size=32128, d_model=4, d_kv=2, d_ff=8, num_heads=2, num_layers=2, num_decoder_layers=2
    )
    buckets = dict(relative_attention_num_buckets=4, relative_attention_max_distance=8)
    config = {**sizes, **buckets, "model_type": "t5", "feed_forward_proj": "gated-gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copyfile(data_dir / "t5" / "spiece.model", folder / "spiece.model")

    backbone = load_backbone(str(folder))
    leaves = read_by_hand(folder)
    assert len(leaves) == 2 * 9 + 2 * 14 + 6
    assert sum(leaf.size for leaf in leaves.values()) == sum(
        leaf.size for _, leaf in named_leaves(backbone.params)
    )
    table = np.load(data_dir / "t5" / "tiny_embeddings_32128x4.npy")
    embedding = np.asarray(backbone.params["token_embedder"]["embedding"])
    np.testing.assert_array_equal(embedding, table)

    oracle = torch_from_t5x(leaves, **sizes, **buckets)
    inputs = random_ids(backbone.model.config, [30, 7], 30, seed=1)
    targets = random_ids(backbone.model.config, [5, 12], 12, seed=2)
    ids = torch.tensor(inputs).long()
    shifted = torch.nn.functional.pad(torch.tensor(targets).long(), (1, -1))
    with torch.no_grad():
        theirs = oracle(input_ids=ids, attention_mask=(ids > 0).long(), decoder_input_ids=shifted)
    ours = our_logits(backbone, inputs, targets)
    assert relative_difference(ours, theirs.logits.numpy()) <= 1e-5


def test_t5x_and_transformers_agree_on_one_fingerprint(tmp_path):
    """A T5X checkpoint, the same arrays saved by transformers: one model, one fingerprint."""
    from support.checkpoints import SHAPE, t5x_leaves

    leaves = t5x_leaves()
    ours = load_backbone(str(write_t5x(tmp_path / "t5x", leaves)))
    sizes = {name: getattr(SHAPE, name) for name in SIZES}
    torch_from_t5x(leaves, **sizes).save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(tokenizer_parts()))
    theirs = load_backbone(str(tmp_path / "hf"))
    assert theirs.fingerprint == ours.fingerprint
    assert isinstance(theirs.model.config, T5Config)
    assert theirs.model.config == ours.model.config


# Tokenizers.


def texts(data_dir, count):
    """Lines of a corpus, and random characters of those that normalization is about."""
    rng = random.Random(0)
    lines = (data_dir / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[:count]
    alphabet = "ab c\u3000\u2028\t\n é☃ﬁ①'\"\u200b\u00a0\u00adß👍.,/-`Ⅷ½ﷺ"
    return lines + ["".join(rng.choices(alphabet, k=rng.randrange(25))) for _ in range(count)]


def test_ids_of_the_released_vocabulary(data_dir, tmp_path):
    pytest.importorskip("sentencepiece", reason="pip install -e '.[parity]' brings sentencepiece")
    file = shutil.copyfile(data_dir / "t5" / "spiece.model", tmp_path / "spiece.model")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    released, saved = load_tokenizer(file), load_tokenizer(tmp_path / "saved")
    lines = texts(data_dir, 500)
    expected = [ids[:-1] for ids in theirs(lines)["input_ids"]]  # they end it with EOS
    assert released.encode_batch(lines) == expected
    assert saved.encode_batch(lines) == expected
    assert released.vocab_size == saved.vocab_size == len(theirs)
    for ids in expected[::10]:
        known = [i for i in ids if i != 2]
        assert released.decode(ids) == theirs.decode(known, clean_up_tokenization_spaces=False)


def test_ids_of_added_tokens_and_sentinels(data_dir, tmp_path):
    """As transformers of today saves them, and as its slow tokenizers did."""
    shutil.copyfile(data_dir / "t5" / "spiece.model", tmp_path / "spiece.model")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    today = transformers.T5Tokenizer.from_pretrained(tmp_path)
    today.add_tokens(["<ent>", "covid19"])
    today.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    today.save_pretrained(tmp_path / "today")
    (tmp_path / "added_tokens.json").write_text('{"<ent>": 32100, "<sep>": 32101}')
    special = {"eos_token": "</s>", "additional_special_tokens": ["<sep>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    texts = ["a <sep> b", "a<sep>b", "the covid19 dog", "covid1999 x", "<ent>dog <extra_id_0>b"]
    texts += ["Premise: <extra_id_0>, x <extra_id_99>", "", " <sep>", "<extra_id_5><ent>"]
    for folder in (tmp_path / "today", tmp_path):
        theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
        expected = [ids[:-1] for ids in theirs(texts)["input_ids"]]
        assert ours.encode_batch(texts, sentinels=True) == expected
        assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_ids_of_a_vocabulary_that_sentencepiece_trains(byte_fallback, data_dir, tmp_path):
    """With bytes for unknown characters, as mT5 has, which T5's own vocabulary has not."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = texts(data_dir, 300)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:300]),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=600,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=byte_fallback,
        minloglevel=2,
        num_threads=1,
    )
    oracle = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    ours = load_tokenizer(tmp_path)
    assert ours.encode_batch(lines) == [oracle.encode(line) for line in lines]
    for ids in map(oracle.encode, lines):
        if 2 not in ids:  # which they write as ⁇, and we leave out
            assert ours.decode(ids) == oracle.decode(ids)


def test_ids_of_bytes(tmp_path):
    theirs = transformers.ByT5Tokenizer()
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in ("a cat", "é☃ \t\n👍", ""):
        assert [*ours.encode(text), 1] == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text
