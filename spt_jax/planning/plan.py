"""Report what a model needs on a TPU slice according to the compiler: `spt-jax plan`.

The programs of `programs.py` are compiled for the slice, on a machine that need not have a TPU.
Memory is what the compiler allocates. The compiler's FLOPs and bytes count the body of a loop once,
so they are multiplied by the factor that loops add. For FLOPs the factor is counted in the traced
program, for bytes in the compiled one (`hlo.py`). All figures are for one device.

The roofline is the longest of three times, which at best overlap: FLOPs at the chip's peak, bytes
at the bandwidth of its memory, and collectives at the bandwidth of all its links.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spt_jax.config.devices import MeshConfig
from spt_jax.config.plan import PlanConfig
from spt_jax.models.automesh import make_suited_mesh
from spt_jax.models.open import open_model
from spt_jax.planning import hlo
from spt_jax.planning.programs import abstract_params, lower_decoding, lower_train_step
from spt_jax.planning.topologies import CHIPS, Chip, load_topology
from spt_jax.sharding import require_rows, row_devices, spreadable_rows
from spt_jax.t5 import PRESETS, T5, T5Config

PROGRAMS = {"train": lower_train_step, "decode": lower_decoding}

FEW_ROWS = 8
"""Rows of an evaluation batch that are proposed where decoding does not fit."""


def plan(config: PlanConfig, *, suggest: bool = True) -> dict[str, Any]:
    """Compile the programs of a config and report what they need.

    Args:
        config: Model, slice and programs.
        suggest: Whether to look for a change that fits if the config does not. Each attempt
            compiles again.

    Returns:
        The result of `spt-jax plan --json`. The figures of the training step, or of decoding if
        only that is planned, are at the top: `fits`, `peak_bytes_per_device`,
        `limit_bytes_per_device`, `flops`, `bytes_accessed`, `compile_seconds`, `collectives`,
        `roofline_seconds`, ... `hbm_bytes` is the part of the traffic that leaves the chip, and
        `cycles` is the compiler's estimate without the `kernels`. `decode` contains those of
        decoding. If a program does not fit, its peak is the compiler's estimate, and `would_fit`
        has the options to change.

    Raises:
        ValueError: The topology or model is unknown, `libtpu` is missing, or the mesh does not
            divide the devices, the heads or the batch.
    """
    chip, devices = load_topology(config.topology)
    shape = PRESETS[config.model] if config.model in PRESETS else open_model(config.model).config
    mesh, reason = make_suited_mesh(
        config.mesh,
        shape,
        devices=devices,
        memory=chip.memory,
        weights=jnp.dtype(config.param_dtype),
        tune=config.tune,
        rows=config.together * config.batch_size // config.accumulate,
    )
    require_rows(mesh, config.batch_size // config.accumulate, "batch_size")
    names = list(PROGRAMS) if config.program == "both" else [config.program]
    reports = {name: _compile(name, config, shape, mesh, chip) for name in names}
    result = {
        "model": config.model,
        "topology": config.topology,
        "chip": chip.kind,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "mesh_reason": reason,
        **reports[names[0]],
        **{name: reports[name] for name in names[1:]},
        "assumptions": {
            "flops_per_second": chip.flops,
            "memory_bytes_per_second": chip.bandwidth,
            "link_bytes_per_second": chip.links,
        },
    }
    too_large = [name for name in names if not reports[name]["fits"]]
    result["fits"] = not too_large
    if too_large and suggest:
        result["would_fit"] = _would_fit(config, mesh, too_large)
    return result


def _compile(
    name: str, config: PlanConfig, shape: T5Config, mesh: Mesh, chip: Chip
) -> dict[str, Any]:
    """Return the report of one program."""
    model = T5(
        shape,
        dtype=jnp.dtype(config.dtype),
        dropout_rate=config.dropout_rate if name == "train" else 0.0,
        remat=config.remat,
        mesh=mesh,
        attention=config.attention,
    )
    started = time.perf_counter()
    traced, lowered = PROGRAMS[name](model, config)
    weights = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(abstract_params(model, config)))
    report = {"fits": True, "limit_bytes_per_device": chip.memory}
    report["weights_bytes_per_device"] = weights
    try:
        compiled: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed_bytes(str(error))
        if needed is None:
            raise
        return {
            **report,
            "fits": False,
            "peak_bytes_per_device": needed,
            "missing_bytes_per_device": needed - chip.memory,
            "flops": None,
            "bytes_accessed": None,
            "compile_seconds": time.perf_counter() - started,
        }
    seconds = time.perf_counter() - started
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    arguments = memory.argument_size_in_bytes
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = arguments + outputs + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    once, run = count_products(traced.jaxpr, config.targets_length)
    flops = cost["flops"] * run / once
    counts = _count(compiled, mesh, run / once)
    moved = cost["bytes accessed"] * counts.bytes_run / counts.bytes_once
    linked = sum(collectives.bytes for collectives in counts.collectives.values())
    times = {
        "flops_seconds": flops / chip.flops,
        "memory_seconds": moved / chip.bandwidth,
        "links_seconds": linked / chip.links,
    }
    return {
        **report,
        "fits": peak <= chip.memory,
        "peak_bytes_per_device": peak,
        "activations_bytes_per_device": memory.temp_size_in_bytes,
        "flops": flops,
        "bytes_accessed": moved,
        "bytes_estimated": counts.estimated,
        "hbm_bytes": None if counts.estimated else counts.hbm_run,
        "cycles": None if counts.estimated else counts.cycles,
        "kernels": dict(counts.kernels),
        "collectives": {
            kind: dataclasses.asdict(found) for kind, found in sorted(counts.collectives.items())
        },
        "roofline_seconds": max(times.values()),
        **times,
        "compile_seconds": seconds,
    }


def _count(compiled: Any, mesh: Mesh, growth: float) -> hlo.Counts:
    """Return the counts of a compiled program by its text.

    libtpu 0.0.52 cannot write some programs as text. On one device, which has no collectives, the
    bytes are then assumed to grow by the same factor as the products, `growth`.
    """
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:
        if mesh.size > 1:
            raise
        return hlo.Counts(bytes_once=1.0, bytes_run=growth, estimated=True)
    return hlo.count(text)


def _local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    sharding: Any = leaf.sharding
    return int(np.prod(sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize


def _needed_bytes(message: str) -> int | None:
    """Return the bytes that the compiler's error says are needed, or None for another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"(?:required|Used|Total hbm usage >=)[^.]*?\(?(\d[\d.]*)([KMGT])", message)
    return int(float(found[1]) * 1024 ** (" KMGT".index(found[2]))) if found else None


def count_products(jaxpr: Any, steps: int) -> tuple[float, float]:
    """Count the operations of all matrix products of a traced program, on all devices together.

    A Pallas kernel counts as many as it tells the compiler (`cost_estimate`).

    Args:
        jaxpr: The program.
        steps: Assumed iterations of a `while` loop.

    Returns:
        The operations with the body of each loop counted once, and counted as often as it runs.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    once = run = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = float(np.prod([left[axis] for axis in contracted]))
            product = 2 * depth * float(np.prod(equation.outvars[0].aval.shape))
            once, run = once + product, run + product
        if equation.primitive.name == "pallas_call":
            products = equation.params["cost_estimate"].flops
            once, run = once + products, run + products
            continue
        trips, compiled = 1, 1  # how often the body runs, and how often the program has it
        if equation.primitive.name == "while":
            trips = steps
        elif equation.primitive.name == "scan":
            trips, compiled = equation.params["length"], equation.params["unroll"]
        elif equation.primitive.name == "shard_map":  # the body has the part of one device
            trips = compiled = equation.params["mesh"].size
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            inner_once, inner_run = count_products(inner, steps)
            once, run = once + compiled * inner_once, run + trips * inner_run
    return once, run


def _would_fit(config: PlanConfig, mesh: Mesh, too_large: Sequence[str]) -> str | None:
    """Return the options of the first change that fits, or None if no change does."""
    for options, changed in _changes(config, mesh, too_large):
        try:
            found = plan(changed, suggest=False)
        except ValueError:  # the mesh does not divide the model
            continue
        if found["fits"]:
            return options
    return None


def _changes(
    config: PlanConfig, mesh: Mesh, too_large: Sequence[str]
) -> Iterator[tuple[str, PlanConfig]]:
    """Yield changes that need less memory, the fastest first, and then larger slices.

    Args:
        config: What does not fit.
        mesh: The mesh that it was compiled for.
        too_large: The programs that do not fit, names of `PROGRAMS`.
    """
    rows, words, given = config.batch_size // config.accumulate, [], config
    if mesh.shape["fsdp"] < mesh.size and rows % mesh.size == 0:
        config = dataclasses.replace(config, mesh=MeshConfig(data=1, fsdp=mesh.size))
        words.append(f"--mesh.data=1 --mesh.fsdp={mesh.size}")
        yield " ".join(words), config
    fewer = spreadable_rows(mesh, FEW_ROWS)
    if "decode" in too_large and config.eval_batch_size > fewer:
        config = dataclasses.replace(config, eval_batch_size=fewer)
        words.append(f"--eval_batch_size={fewer}")
        yield " ".join(words), config
    if "train" in too_large:
        if config.together > 1:
            config = dataclasses.replace(config, together=config.together // 2)
            words.append(f"--together={config.together}")
            yield " ".join(words), config
        if config.remat in ("none", "minimal"):
            light = dataclasses.replace(config, remat="light")
            yield " ".join([*words, "--remat=light"]), light
        if config.remat != "full":
            config = dataclasses.replace(config, remat="full")
            words.append("--remat=full")
            yield " ".join(words), config
        if rows > row_devices(mesh):
            config = dataclasses.replace(config, accumulate=config.batch_size // row_devices(mesh))
            words.append(f"--accumulate={config.accumulate}")
            yield " ".join(words), config
    if config.param_dtype != "int8" and config.tune == "prompt":
        int8 = dataclasses.replace(config, param_dtype="int8")
        yield " ".join([*words, "--param_dtype=int8"]), int8
    generation, _, shape = config.topology.partition(":")
    chips = math.prod(map(int, shape.split("x")))
    for larger in CHIPS[generation].shapes:
        if chips < math.prod(map(int, larger.split("x"))) <= 4 * chips:
            topology = f"{generation}:{larger}"
            changed = dataclasses.replace(given, topology=topology, mesh=None)
            yield f"--topology={topology}", changed
