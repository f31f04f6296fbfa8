"""Count the memory traffic and the collectives of a compiled program by parsing its text.

XLA's own counts include the body of a loop once. Here everything in a body is counted as often as
the bound in the loop's condition says.

    bytes of an instruction = its operands + its results; of a slice or an update, the slice

An array lies in the chip's main memory (HBM), or in its small fast memory (VMEM) if the compiler
says `S(1)` in the array's layout.

Programs of one and two layers, extrapolated to all layers, would need no parser. They are not used
because they would have to give every cell of the table in docs/tpu.md again, which takes hours.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4}
_SIZES |= {"u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_FREE = {"parameter", "bitcast", "get-tuple-element", "tuple", "constant", "while", "conditional"}
_FREE |= {"call", "optimization-barrier", "after-all", "partition-id", "custom-call"}


@dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str


@dataclass
class Collectives:
    """Number of all collectives of one kind, and the bytes of their results on one device."""

    count: int = 0
    bytes: int = 0


@dataclass
class Counts:
    """Counts for one device.

    Args:
        bytes_once: Memory traffic with the body of each loop counted once.
        bytes_run: Memory traffic with the body counted as often as it runs.
        hbm_run: Part of `bytes_run` from and to HBM.
        cycles: Clock cycles as the compiler estimates them, with the body of a loop counted as
            often as it runs. It has no estimate for Pallas kernels.
        kernels: Pallas kernels, and how often each runs.
        collectives: Collectives by kind.
        estimated: Whether the traffic is an estimate.
    """

    bytes_once: float = 0
    bytes_run: float = 0
    hbm_run: float = 0
    cycles: float = 0
    kernels: Counter[str] = field(default_factory=Counter)
    collectives: dict[str, Collectives] = field(default_factory=lambda: defaultdict(Collectives))
    estimated: bool = False


Program = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """Return the computations of a program by name, and the name of the first one."""
    program, entry, current = {}, "", None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
            current = program.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (match := re.match(r"\s+(?:ROOT )?%?(\S+) = (.*)", line)):
            current.append(_instruction(match[1], match[2]))
    return program, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    op, _, rest = text[end:].strip().partition("(")
    close = _closing(f"({rest}", 0) - 1
    operands = tuple(re.findall(r"%([^\s,()]+)", rest[:close]))
    if op in ("constant", "parameter"):
        operands = (rest[:close],)
    return Instruction(name, text[:end], op, operands, rest[close:])


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def nbytes(type: str) -> int:
    """Return the bytes of a type, or of all parts of a tuple."""
    return sum(size for size, _ in _arrays(type))


def hbm_bytes(type: str) -> int:
    """Return the bytes of the parts of a type that lie in HBM."""
    return sum(size for size, in_hbm in _arrays(type) if in_hbm)


def _arrays(type: str) -> list[tuple[int, bool]]:
    """Return of each array of a type its bytes, and whether it lies in HBM."""
    return [
        (
            _SIZES.get(kind, 0) * math.prod(int(size) for size in sizes.split(",") if size),
            re.search(r"S\([12]\)", layout) is None,
        )
        for kind, sizes, layout in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?", type)
    ]


def count(text: str) -> Counts:
    """Count the traffic and the collectives of a compiled program by its text."""
    program, entry = parse(text)
    counts, channels = Counts(), set[str]()
    for name, times, fused in _walk(program, entry, 1):
        types = {instruction.name: instruction.type for instruction in program[name]}
        for instruction in program[name]:
            kind = instruction.op.removesuffix("-start")
            if kind in COLLECTIVES and not _is_continued(instruction, channels):
                result = _result(instruction)
                counts.collectives[kind].count += times
                counts.collectives[kind].bytes += times * nbytes(result)
            if fused:
                continue
            cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            counts.cycles += times * int(cycles[1]) if cycles else 0
            kernel = _is_kernel(instruction)
            if kernel:
                counts.kernels[_kernel_name(instruction)] += times
            if kernel or (instruction.op not in _FREE and not instruction.op.endswith("-done")):
                moved = _traffic(program, instruction, types)
                counts.bytes_once += moved
                counts.bytes_run += times * moved
                counts.hbm_run += times * _hbm_traffic(program, instruction, types)
    return counts


def _is_kernel(instruction: Instruction) -> bool:
    return instruction.op == "custom-call" and '"tpu_custom_call"' in instruction.attributes


def _kernel_name(instruction: Instruction) -> str:
    """Return the name of a Pallas kernel, which the compiler numbers: `t5_attention.3`."""
    return instruction.name.partition(".")[0]


def _is_continued(instruction: Instruction, channels: set[str]) -> bool:
    """Return whether a collective of this channel was counted before, and add it to `channels`.

    The TPU compiler splits a collective into a start, parts that run inside other instructions, and
    an end. Each contains the whole collective with the same channel.
    """
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    if channel is None:
        return False
    known = channel[1] in channels
    channels.add(channel[1])
    return known


def _result(instruction: Instruction) -> str:
    # The type of an instruction that starts an operation contains its operands and its results.
    if instruction.op.endswith("-start") and instruction.type.startswith("(("):
        return instruction.type[_closing(instruction.type, 1) + 1 :]
    if instruction.op.endswith("-start") and instruction.type.startswith("("):
        return instruction.type.split(", ", 1)[-1]
    return instruction.type


def _walk(program: Program, name: str, times: int, fused: bool = False) -> Iterator[tuple]:
    """Yield (computation, times it runs, whether a fusion contains it), starting with `name`."""
    yield name, times, fused
    for instruction in program[name]:
        called = dict(
            re.findall(r"(body|condition|calls|to_apply)=%?([^\s,}]+)", instruction.attributes)
        )
        if instruction.op == "while":
            trips = _trips(program, called["condition"])
            yield from _walk(program, called["body"], times * trips, fused)
        elif instruction.op == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
            for branch in branches[1].replace("%", "").split(", ") if branches else ():
                yield from _walk(program, branch, times, fused)
        elif instruction.op == "call" and "to_apply" in called:
            yield from _walk(program, called["to_apply"], times, fused)
        elif "calls" in called:
            yield from _walk(program, called["calls"], times, True)


def _trips(program: Program, condition: str) -> int:
    """Return the bound in a condition such as `i < 24`. Loops of jax count up from 0."""
    bounds = [
        int(instruction.operands[0])
        for name, _, _ in _walk(program, condition, 1)
        for instruction in program[name]
        if instruction.op == "constant" and re.match(r"[su]32\[\]", instruction.type)
    ]
    return max(bounds, default=1)


def _hbm_traffic(program: Program, instruction: Instruction, types: dict[str, str]) -> int:
    """Return the bytes that an instruction reads from HBM and writes to it."""
    if instruction.op in ("copy-start", "slice-start"):  # of an array, or of a part, to another
        (size, in_hbm), (other, from_hbm), *_ = _arrays(instruction.type)
        return min(size, other) * (in_hbm + from_hbm)
    return _traffic(program, instruction, types, hbm_bytes)


def _traffic(
    program: Program,
    instruction: Instruction,
    types: dict[str, str],
    size: Callable[[str], int] = nbytes,
) -> int:
    """Return the bytes that an instruction reads and writes; `size` returns those of a type."""
    operands = [size(types.get(name, "")) for name in instruction.operands]
    called = re.search(r"calls=%?([^\s,}]+)", instruction.attributes)
    if instruction.op == "dynamic-slice":
        return 2 * size(instruction.type)
    if instruction.op == "dynamic-update-slice":
        return 2 * operands[1]
    if instruction.op.endswith("-start") and not called:
        return 2 * size(instruction.type.rsplit(", ", 1)[0].rsplit("(", 1)[-1])
    result = size(instruction.type)
    if called and instruction.op == "fusion":
        body = program[called[1]]
        sizes = {inner.name: inner.type for inner in body}
        if any(inner.op in COLLECTIVES for inner in body):
            # A part of a split collective passes its buffers on without moving them.
            for number in map(int, re.findall(r": \((\d+),", _aliasing(instruction))):
                result -= operands[number]
                operands[number] = 0
        for number, inner in _parameters(body):
            users = [user for user in body if inner.name in user.operands]
            sliced = [user for user in users if user.operands[0] == inner.name]
            if users and users == [user for user in sliced if user.op == "dynamic-slice"]:
                operands[number] = sum(size(user.type) for user in users)
            updates = [user for user in users if user.op == "dynamic-update-slice"]
            if updates and len(users) == len(updates) and updates[0].operands[0] == inner.name:
                update = size(sizes.get(updates[0].operands[1], ""))
                operands[number], result = 0, result - size(inner.type) + update
    return sum(operands) + result


def _aliasing(instruction: Instruction) -> str:
    aliasing = instruction.attributes.partition("output_to_operand_aliasing=")[2]
    return aliasing.partition(")}")[0]


def _parameters(body: list[Instruction]) -> Iterator[tuple[int, Instruction]]:
    for instruction in body:
        if instruction.op == "parameter":
            yield int(instruction.operands[0]), instruction
