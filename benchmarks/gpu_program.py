"""What a program compiled for a GPU does, read from its text: launches, and the memory that they read and write.

Every operation of the compiled program except bookkeeping is a launch. It reads its operands and writes its result
once. Where it only takes slices or rows of an operand, it reads those; where it sets a slice of an operand in place, it
writes that slice. Loops count as often as they run. Not counted: what a Pallas kernel or a gather reads more than once,
which caches mostly serve, and copies within a library's call.
"""

import collections
import dataclasses
import math
import re

__all__ = ["Work", "program_work"]

BOOKKEEPING = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "partition-id", "after-all"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written into a part of the first
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


@dataclasses.dataclass
class Work:
    """What a program does.

    Attributes:
      launches: of kernels.
      gigabytes: that they read and write.
      by_part: the gigabytes by the names of the model's parts.
    """

    launches: int
    gigabytes: float
    by_part: collections.Counter


@dataclasses.dataclass
class Operation:
    """One line of a computation in the program's text."""

    kind: str
    bytes: int  # of its result
    operands: list[str]
    line: str

    def named(self, what: str) -> list[str]:
        """Computations that the line names, as by calls=..."""
        found = re.findall(rf"\b(?:{what})=(?:{{([^}}]*)}}|(%?[\w.-]+))", self.line)
        return [name.strip(" %") for several, one in found for name in (several or one).split(",")]


def program_work(program: str, loop_length: int = 1, depth: int = 2) -> Work:
    """The work of a compiled program.

    Args:
      program: the text of `compiled.as_text()`.
      loop_length: iterations of loops whose length depends on the data.
      depth: how many components of the parts' names to keep.
    """
    computations = _computations(program)
    total = Work(0, 0.0, collections.Counter())

    def count(name: str, times: int) -> None:
        operations = computations[name]
        for operation in operations.values():
            if operation.kind == "while":
                length = re.search(r'"known_trip_count":\{"n":"(\d+)"', operation.line)
                count(operation.named("body")[0], times * (int(length[1]) if length else loop_length))
            elif operation.kind in ("conditional", "call"):
                for branch in operation.named("branch_computations|true_computation|false_computation|to_apply"):
                    count(branch, times)
            elif operation.kind not in BOOKKEEPING and not operation.kind.endswith("-done"):
                gigabytes = times * _moved(operation, operations, computations) / 1e9
                total.launches += times
                total.gigabytes += gigabytes
                total.by_part[_part(operation.line, depth)] += gigabytes

    count("ENTRY", 1)
    return total


def _computations(program: str) -> dict[str, dict[str, Operation]]:
    computations = {}
    for block in re.split(r"\n(?=%|ENTRY)", program):
        if not (header := re.match(r"(ENTRY )?%?([\w.-]+) \(", block)):
            continue
        operations = {}
        for line in block.splitlines()[1:]:
            if found := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:,|$)", line):
                name, result, kind, operands = found.groups()
                operations[name] = Operation(kind, _bytes(result), re.findall(r"%([\w.-]+)", operands), line)
        computations["ENTRY" if header[1] else header[2]] = operations
    return computations


def _bytes(result: str) -> int:
    arrays = re.findall(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]", result)
    return sum(BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays)


def _moved(operation: Operation, around: dict[str, Operation], computations: dict) -> int:
    sizes = [around[name].bytes if name in around else 0 for name in operation.operands]
    fused = operation.named("calls") if operation.kind == "fusion" else []
    if not fused:
        return sum(sizes) + operation.bytes
    inside = computations[fused[0]]
    written = operation.bytes
    for inner in inside.values():  # an update in place writes only the update, not the whole operand
        if inner.kind in UPDATES and inner.bytes <= written:
            update = inside[inner.operands[UPDATES[inner.kind]]].bytes
            written -= max(0, inner.bytes - update)
    read = 0
    for name, inner in inside.items():
        if inner.kind == "parameter":
            size = sizes[int(re.search(r"parameter\((\d+)\)", inner.line)[1])]
            read += min(size, _read(name, inside, size))
    return read + written


def _read(name: str, inside: dict[str, Operation], size: int) -> int:
    """Bytes that a fused computation reads from one of its parameters."""
    read = 0
    for user in inside.values():
        if name not in user.operands:
            continue
        if user.kind in ("bitcast", "reshape"):
            read += _read(next(n for n, o in inside.items() if o is user), inside, size)
        elif user.kind in ("slice", "dynamic-slice", "gather") and user.operands[0] == name:
            read += user.bytes
        elif user.kind == "scatter" and user.operands[0] == name:
            read += inside[user.operands[2]].bytes  # what it adds to
        elif user.kind != "dynamic-update-slice" or user.operands[0] != name:
            return size
    return read


def _part(line: str, depth: int) -> str:
    name = re.search(r'op_name="([^"]*)"', line)
    parts = name[1].split("/") if name else []
    of_loops = r"jit\(|while|body|closed_call|checkpoint|rematted|shard_map|cond|branch"
    parts = [part for part in parts if not re.match(of_loops, part)]
    return "/".join(parts[:depth]) or "(no name)"
