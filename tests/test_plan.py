"""Plans of tiny models by the real compiler, and the counting that they rest on."""

import dataclasses
import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import tiny

from spt_jax.cli import main as cli
from spt_jax.config.devices import MeshConfig
from spt_jax.config.plan import PlanConfig
from spt_jax.config.train import DataConfig
from spt_jax.data.example import Example
from spt_jax.data.pipeline import tokenize_split
from spt_jax.evaluation.evaluate import evaluate
from spt_jax.evaluation.scores import encode_answers
from spt_jax.models.backbone import load_backbone
from spt_jax.planning import hlo, plan
from spt_jax.planning.programs import lower_decoding
from spt_jax.planning.topologies import CHIPS, GIB, load_topology
from spt_jax.prediction import predictor
from spt_jax.sharding import make_mesh
from spt_jax.t5 import PRESETS, attention_kernel, thresholds

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; pip install 'spt_jax[tpu-plan]'",
)
SMALL = dict(batch_size=8, inputs_length=24, targets_length=4, prompt_length=8)
SHAPE = dataclasses.replace(
    tiny.SHAPE, d_model=128, d_kv=32, d_ff=256, num_heads=4, num_layers=5, num_decoder_layers=5
)


@pytest.fixture
def tiny_preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", SHAPE)


def report(**changes):
    return plan.plan(PlanConfig(**{"model": "tiny", "topology": "v5e:1x1", **SMALL, **changes}))


@needs_libtpu
@pytest.mark.slow
def test_loops_count_as_often_as_they_run(tiny_preset, monkeypatch):
    monkeypatch.setattr(thresholds, "UNROLLED_ENCODER_ON_TPU", 4)
    scanned = report(program="train", dropout_rate=0.0)
    monkeypatch.setattr(thresholds, "UNROLLED", 5)
    monkeypatch.setattr(thresholds, "UNROLLED_ENCODER_ON_TPU", 5)
    unrolled = report(program="train", dropout_rate=0.0)
    assert scanned["flops"] == pytest.approx(unrolled["flops"], rel=0.1)
    assert scanned["bytes_accessed"] == pytest.approx(
        unrolled["bytes_accessed"], rel=0.5
    )  # a scan moves slices too


@needs_libtpu
@pytest.mark.slow
def test_prompts_that_train_together_are_planned_as_one_program(tiny_preset):
    alone = report(program="train", topology="v5e:2x2")
    together = report(program="train", topology="v5e:2x2", together=3)
    assert together["flops"] == pytest.approx(3 * alone["flops"], rel=0.02)
    assert together["activations_bytes_per_device"] > alone["activations_bytes_per_device"]
    assert together["bytes_accessed"] < 2.5 * alone["bytes_accessed"]  # the weights are read once


def test_whole_models_are_not_planned_together():
    with pytest.raises(ValueError, match="together is 2 with --tune=model, but only prompts train"):
        PlanConfig(model="tiny", topology="v5e:1x1", tune="model", prompt_length=0, together=2)


@needs_libtpu
def test_the_report_of_a_sharded_model(tiny_preset, capsys):
    line = ["--model=tiny", "--topology=v5e:2x4", "--mesh.data=2", "--mesh.fsdp=2"]
    line += ["--mesh.model=2", *(f"--{name}={value}" for name, value in SMALL.items())]
    assert cli.main(["plan", *line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["mesh"] == {"data": 2, "fsdp": 2, "model": 2}
    for part in (found, found["decode"]):
        assert 0 < part["weights_bytes_per_device"] < part["peak_bytes_per_device"]
        assert part["limit_bytes_per_device"] == CHIPS["v5e"].memory
        assert part["flops"] > 0 and part["bytes_accessed"] > 0 and part["compile_seconds"] > 0
        # Kernels are gathered over fsdp in the loop over layers; heads and features are summed.
        assert part["collectives"]["all-gather"]["count"] >= 5
        assert part["collectives"]["all-reduce"]["count"] >= 5
        assert part["roofline_seconds"] >= part["flops_seconds"]


@needs_libtpu
def test_a_mesh_axis_may_be_a_part_of_a_slices_own():
    _, devices = load_topology("v6e:4x4")
    mesh = make_mesh(MeshConfig(data=8, fsdp=2), devices)
    assert mesh.shape == {"data": 8, "fsdp": 2, "model": 1}
    assert len(set(mesh.devices.flat)) == 16


def needs_gib(sizes, decode=lambda config: 1):
    """A `_compile` that finds so many GiB by `remat`, and for decoding by its config."""

    def compiled(name, config, shape, mesh, chip):
        needed = (sizes[config.remat] if name == "train" else decode(config)) * GIB
        found = {"peak_bytes_per_device": needed, "limit_bytes_per_device": chip.memory}
        return {"fits": needed <= chip.memory, **found}

    return compiled


@needs_libtpu
def test_fewer_prompts_at_once_are_proposed_first(tiny_preset, monkeypatch):
    def compiled(name, config, shape, mesh, chip):
        return {"fits": config.together <= 4}

    monkeypatch.setattr(plan, "_compile", compiled)
    assert report(program="train", together=9)["would_fit"] == "--together=4"


@needs_libtpu
@pytest.mark.parametrize("program", ["train", "decode"])
def test_int8_weights_are_proposed_after_all_that_changes_no_result(
    tiny_preset, monkeypatch, program
):
    def compiled(name, config, shape, mesh, chip):
        return {"fits": config.param_dtype == "int8"}

    monkeypatch.setattr(plan, "_compile", compiled)
    fewer = "--remat=full --accumulate=8" if program == "train" else "--eval_batch_size=8"
    assert report(program=program)["would_fit"] == f"{fewer} --param_dtype=int8"
    assert "would_fit" not in report(program=program, param_dtype="int8")


@needs_libtpu
@pytest.mark.parametrize(
    "given, sizes, options",
    [
        ("none", {"none": 20, "light": 12, "full": 8}, "--remat=light"),
        ("minimal", {"minimal": 20, "light": 12, "full": 8}, "--remat=light"),
        ("light", {"light": 20, "full": 8}, "--remat=full"),
        ("minimal", {"minimal": 20, "light": 20, "full": 20}, None),
    ],
)
def test_the_first_change_that_fits_is_proposed(tiny_preset, monkeypatch, given, sizes, options):
    monkeypatch.setattr(plan, "_compile", needs_gib(sizes))
    assert report(remat=given)["would_fit"] == options


@needs_libtpu
@pytest.mark.parametrize(
    "sizes, options",
    [
        ({"none": 12}, "--eval_batch_size=8"),
        ({"none": 20, "light": 12}, "--eval_batch_size=8 --remat=light"),
    ],
)
def test_smaller_evaluation_batches_are_proposed(tiny_preset, monkeypatch, sizes, options):
    by_rows = needs_gib(sizes, decode=lambda config: config.eval_batch_size)
    monkeypatch.setattr(plan, "_compile", by_rows)
    assert report()["would_fit"] == options


@needs_libtpu
def test_what_does_not_fit_says_what_would(tiny_preset, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_compile", needs_gib({"none": 20, "light": 18, "full": 12}))
    line = ["--model=tiny", "--topology=v5e:1x1", "--json"]
    assert cli.main(["plan", *line]) == 2
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["fits"] is False and found["would_fit"] == "--remat=full"
    assert printed.err.strip().splitlines()[-1] == (
        "spt-jax: error: tiny does not fit v5e:1x1: it needs 20.00 GiB on each device, which has "
        "15.75, 4.25 GiB too much; this fits: --remat=full"
    )


BAD = {
    "unknown topology 'v5e:4x5'; slices of v5e have the shapes 1x1": {"topology": "v5e:4x5"},
    r"unknown topology 'v5e:3x3'; .* \(did you mean 'v5e:": {"topology": "v5e:3x3"},
    "mesh data=3 fsdp=1 model=1 needs 3 devices but": {"mesh": MeshConfig(data=3)},
    "batch_size 6 does not divide over data": {
        "batch_size": 6,
        "topology": "v5e:2x2",
        "mesh": MeshConfig(data=4),
    },
    r"mesh axis 'model' \(8\) does not divide heads": {
        "topology": "v5e:2x4",
        "mesh": MeshConfig(data=1, model=8),
    },
}


@needs_libtpu
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line(tiny_preset, message):
    with pytest.raises(ValueError, match=message):
        report(**BAD[message])


def test_unknown_generations_are_named():
    with pytest.raises(ValueError, match=r"unknown topology 'v9:2x2'; expected a generation of v2"):
        load_topology("v9:2x2")


def test_without_libtpu_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package libtpu, .* 'spt_jax\[tpu-plan\]'"):
        load_topology("v5e:1x1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs_length": 0}, "inputs_length is 0, expected 1 or more"),
        ({"prompt_length": 0}, "prompt_length is 0, expected 1 or more, or 0 with --tune=model"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0, expected 1 or more"),
        ({"label_words": -1}, "label_words is -1, expected 0 or more"),
        ({"accumulate": 3}, "accumulate 3 does not divide batch_size 32"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0, expected at least 0 and less than 1"),
    ],
)
def test_bad_options_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PlanConfig(model="t5-small", topology="v5e:1x1", **changes)


@pytest.mark.parametrize("words", [("animal", "plant"), None])
def test_the_planned_decoding_is_the_program_of_evaluation(tmp_path, monkeypatch, words):
    """The same function, shapes and shardings: the programs have the same text."""
    name, mesh = str(tiny.write_backbone(tmp_path / "tiny")), MeshConfig(data=2, fsdp=2, model=2)
    backbone = load_backbone(name, mesh=mesh)
    length = encode_answers(words or ("plant",), backbone.tokenizer, 8).shape[1]
    lowered, answer_batch = [], predictor.answer_batch

    def record(*args, **options):
        lowered.append(answer_batch.lower(*args, **options).as_text())
        return np.zeros((8, 1, length), np.int32), np.zeros((8, len(words or ())), np.float32)

    monkeypatch.setattr(predictor, "answer_batch", record)
    examples = [Example(text * 9, label) for text, label in tiny.sentences()[:6]]  # 2 of padding
    data = DataConfig(inputs_length=20, targets_length=length)
    split = tokenize_split(examples, backbone.tokenizer, data)
    params = {"t5": backbone.params, "prompt": jnp.ones((3, 16))}
    evaluate(backbone, params, split, data, label_words=words, batch_size=8)
    config = PlanConfig(
        model=name,
        topology="v5e:2x4",
        inputs_length=20,
        targets_length=length,
        prompt_length=3,
        dtype="float32",
        param_dtype="float32",
        eval_batch_size=6,  # rounded up to the devices that share the rows
        label_words=len(words or ()),
    )
    planned = lower_decoding(backbone.model, config)[1].as_text()
    assert lowered == [planned]


def test_products_are_counted_through_loops():
    def run(x):
        x, _ = jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x) @ x

    jaxpr = jax.make_jaxpr(run)(jnp.ones((4, 4)))
    once, run = plan.count_products(jaxpr, steps=3)
    assert (once, run) == (3 * 128, (7 + 3 + 1) * 128)


PROGRAM = """HloModule jit_step

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%sliced (s: f32[6,8,4], i: s32[]) -> f32[8,4] {
  %s = f32[6,8,4]{2,1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  ROOT %slice = f32[1,8,4]{2,1,0} dynamic-slice(%s, %i.1), dynamic_slice_sizes={1,8,4}
}

%body (p.1: (s32[], f32[6,8,4])) -> (s32[], f32[6,8,4]) {
  %p.1 = (s32[], f32[6,8,4]{2,1,0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.1), index=0
  %stack = f32[6,8,4]{2,1,0} get-tuple-element(%p.1), index=1
  %one = f32[8,4]{1,0} fusion(%stack, %i.2), kind=kLoop, calls=%sliced
  %whole = f32[16,4]{1,0} all-gather(%one), dimensions={0}
  ROOT %out = (s32[], f32[6,8,4]) tuple(%i.2, %stack)
}

ENTRY %main (x: f32[6,8,4]) -> f32[6,8,4] {
  %x = f32[6,8,4]{2,1,0} parameter(0)
  %loop = (s32[], f32[6,8,4]) while(%x), condition=%condition, body=%body
  %sum = (f32[8,4], f32[8,4]) all-reduce-start(%x), to_apply=%add
  ROOT %copy = f32[6,8,4]{2,1,0} copy(%x)
}
"""


def test_traffic_and_collectives_of_a_loop():
    found = hlo.count(PROGRAM)
    gather, reduce = found.collectives["all-gather"], found.collectives["all-reduce"]
    assert (gather.count, gather.bytes) == (6, 6 * 256)
    assert (reduce.count, reduce.bytes) == (1, 128)
    # The fusion reads one slice of the stack, a number, and writes a slice.
    body, entry = (128 + 4 + 128) + (128 + 256), 2 * 768
    assert found.bytes_run - found.bytes_once == 5 * body
    assert found.bytes_once >= body + entry


def test_a_kernel_counts_as_it_tells_the_compiler():
    q = jnp.ones((2, 8, 32))
    arrays = q, q, q, jnp.ones((2, 8, 8)), jnp.ones((2, 1, 8))
    attend = functools.partial(attention_kernel.forward, width=16, interpret=True)

    def run(arrays):
        return jax.lax.scan(lambda carry, _: (carry, attend(*arrays)), 0, length=3)[1]

    products = 2 * 2 * (2 * 2) * 8 * 8 * 16
    assert plan.count_products(jax.make_jaxpr(run)(arrays), 1) == (products, 3 * products)

    mesh = make_mesh(MeshConfig(data=2))
    rows = PartitionSpec("data")
    specs = (rows,) * 3 + (PartitionSpec(), rows)
    on_mesh = jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    assert plan.count_products(jax.make_jaxpr(on_mesh)(*arrays), 1) == (products, products)


PLACED = """HloModule jit_step

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %begin = (bf16[8,4]{1,0:T(8,128)(2,1)S(1)}, bf16[8,4]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %fast = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} copy-done(%begin)
  %twice = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} fusion(%fast, %x), BACKEND
  %t5_attention.2 = bf16[8,4]{1,0} custom-call(%twice, %x), custom_call_target="tpu_custom_call"
  ROOT %out = bf16[8,4]{1,0} copy(%t5_attention.2)
}
""".replace("BACKEND", 'backend_config={"estimated_cycles":"70"}')


def test_what_leaves_the_chip_is_counted_apart():
    found = hlo.count(PLACED)
    # Read by the copy, the fusion and the kernel; written by the kernel; the last copy does both.
    assert found.hbm_run == 6 * 64
    assert found.bytes_run == (2 + 3 + 3 + 2) * 64
    assert (found.cycles, found.kernels) == (70, {"t5_attention": 1})


SPLIT = """HloModule jit_step

%start (p: bf16[2,4]) -> (bf16[2,4], bf16[8,4]) {
  %p = bf16[2,4] parameter(0)
  %whole = bf16[8,4] all-gather(%p), channel_id=7, dimensions={0}
  ROOT %begin = (bf16[2,4], bf16[8,4]) custom-call(%whole)
}

%part (p.1: bf16[2,4], q: bf16[8,4], x: f32[16]) -> (f32[16], bf16[2,4], bf16[8,4]) {
  %p.1 = bf16[2,4] parameter(0)
  %q = bf16[8,4] parameter(1)
  %x = f32[16] parameter(2)
  %whole.1 = bf16[8,4] all-gather(%p.1), channel_id=7, dimensions={0}
  %twice = f32[16] add(%x, %x)
  ROOT %out = (f32[16], bf16[2,4], bf16[8,4]) tuple(%twice, %p.1, %whole.1)
}

ENTRY %main (a: bf16[2,4], b: f32[16]) -> f32[16] {
  %a = bf16[2,4] parameter(0)
  %b = f32[16] parameter(1)
  %s = (bf16[2,4], bf16[8,4]) fusion(%a), calls=%start, output_to_operand_aliasing={{0}: (0, {})}
  %a.1 = bf16[2,4] get-tuple-element(%s), index=0
  %g = bf16[8,4] get-tuple-element(%s), index=1
  %f = (f32[16], bf16[2,4], bf16[8,4]) fusion(%a.1, %g, %b), ALIASING, calls=%part
  ROOT %r = f32[16] get-tuple-element(%f), index=0
}
""".replace("ALIASING", "output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}")


def test_a_collective_that_runs_in_parts_counts_once():
    found = hlo.count(SPLIT)
    gather = found.collectives["all-gather"]
    assert (gather.count, gather.bytes) == (1, 64)
    # The start writes the gathered array; the part reads and writes its own array alone.
    assert found.bytes_run == 64 + 2 * 64


def test_what_a_program_needs_is_read_from_the_error():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (400.00G) exceeds available HBM (15.75G)."
    )
    assert plan._needed_bytes(message) == 400 * GIB
    assert plan._needed_bytes("INTERNAL: something else") is None


class _Unreadable:
    def as_text(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")


def test_a_program_that_cannot_be_written_as_text_is_planned_on_one_device_only():
    one, two = (jax.make_mesh((n,), ("data",), devices=jax.devices()[:n]) for n in (1, 2))
    counts = plan._count(_Unreadable(), one, growth=7.0)
    assert (counts.bytes_run / counts.bytes_once, counts.collectives) == (7.0, {})
    assert counts.estimated
    with pytest.raises(jax.errors.JaxRuntimeError):
        plan._count(_Unreadable(), two, growth=7.0)
