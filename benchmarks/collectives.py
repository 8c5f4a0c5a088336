"""Reads the collectives of a compiled program: which devices exchange what."""

import re

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
LINE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(?:-start)?\((.*)")
# What crosses slices of TPUs goes through the hosts.
TRANSFER = re.compile(r"= (\(.*?\)|\S+) send\(.*_xla_megascale_transfer_type=\"(\w+)\"")
# XLA writes groups as lists, as a permuted range cut into rows, or as axes of a mesh.
LISTS = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
RANGE = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
MESH = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")


def collectives(program: str) -> list[dict]:
    """The kind, the elements of the largest result, and the groups of devices of each collective."""
    found = []
    for line in program.splitlines():
        if match := LINE.search(line):
            found.append({"kind": match[2], "elements": _elements(match[1]), "groups": groups(match[3])})
        elif match := TRANSFER.search(line):
            kind = match[2].lower().replace("_", "-")
            found.append({"kind": kind, "elements": _elements(match[1]), "groups": []})
    return found


def _elements(shapes: str) -> int:
    sizes = [shape.split(",") for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)]
    return max(int(np.prod([int(n) for n in size if n])) for size in sizes)


def groups(text: str) -> list[list[int]]:
    """The groups of devices within each of which a collective exchanges; none if all devices are one group."""
    if "replica_groups={}" in text:
        return []
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return [_numbers(pair) for pair in re.findall(r"\{([\d,]+)", pairs[1])]
    if match := LISTS.search(text):
        return [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", match[1])]
    if match := RANGE.search(text):
        return _permuted_range(match[2], match[3]).reshape(_numbers(match[1])).tolist()
    match = MESH.search(text)
    assert match, f"unknown groups: {text[:300]}"
    axes = re.findall(r"(\w+)'=(\d+)", match[1])
    sizes = [int(size) for _, size in axes]
    ids = _permuted_range(match[2] or ",".join(map(str, sizes)), match[3]).reshape(sizes)
    exchanged = [number for number, (name, _) in enumerate(axes) if f"'{name}'" in match[4]]
    assert exchanged and ":" not in match[4], f"unknown axes: {match[0]}"
    last = np.moveaxis(ids, exchanged, range(-len(exchanged), 0))
    return last.reshape(-1, int(np.prod([sizes[number] for number in exchanged]))).tolist()


def _permuted_range(shape: str, permutation: str | None) -> np.ndarray:
    ids = np.arange(int(np.prod(_numbers(shape)))).reshape(_numbers(shape))
    return ids.transpose(_numbers(permutation)) if permutation else ids


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
