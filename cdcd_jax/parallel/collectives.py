"""What a compiled program sends between devices: every collective with its kind, its bytes, how often it runs, and the mesh axes it crosses."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from cdcd_jax.parallel.program import Instruction, Program, arrays, starts

NETWORK = "_xla_megascale_transfer_type"  # what marks a send that leaves the slice
# {{0,1},{2,3}} · {} · [2,2]<=[4] · [2,2]<=[2,2]T(1,0) · mesh['a'=2,'b'=2] {'a'} · mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}
_MESH = r"mesh\[([^\]]*)\](?:, device_ids=\(((?:[^()]|\([^)]*\))*)\))? ?\{([^}]*)\}"
_GROUPS = re.compile(rf"replica_groups=(\{{\{{.*?\}}\}}|\{{\}}|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?|{_MESH})")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind over one axis (or several, as "data+fsdp") in one step of one device.

    `bytes` are those of the arrays that are gathered, summed or moved, whole, as each device has them; `sent_bytes` what a device sends of it when
    devices pass parts on in a ring; `count` how many are run. `network` says that it crosses the data-centre network between slices, not the links.
    """

    kind: str
    axis: str
    bytes: int | float
    sent_bytes: int | float
    count: int | float
    network: bool = False


def collectives(program: Program, shape: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """The collectives of a step on a mesh of this shape ({axis: size}, in the order of the mesh), the largest first.

    A collective in a loop counts as often as the loop turns, one that is split into a start and an end once. Raises ValueError for one in a loop that
    does not tell how often it turns.
    """
    inside = dict(shape) | {"data": shape["data"] // slices} if slices > 1 else dict(shape)
    if program.partitions != math.prod(inside.values()):
        raise ValueError(f"the program is for {program.partitions} devices, but the mesh {inside} has {math.prod(inside.values())}.")
    found: dict[tuple[str, str, bool], list[int | float]] = {}
    for name, computation in program.computations.items():
        runs = program.runs.get(name, 0)
        for instruction in computation.values() if runs else ():
            one = _network(instruction, slices) or _links(program, name, instruction, inside)
            if one is None or one.axis == "":
                continue
            if name in program.endless:
                raise ValueError(f"the collective {instruction.name} is in a loop that does not tell how often it turns.")
            total = found.setdefault((one.kind, one.axis, one.network), [0, 0, 0])
            for index, value in enumerate((one.bytes, one.sent_bytes, one.count)):
                total[index] += runs * value
    result = [Collective(kind, axis, total[0], total[1], total[2], network) for (kind, axis, network), total in found.items()]
    return sorted(result, key=lambda c: (-c.bytes, c.kind, c.axis))


def _links(program: Program, where: str, instruction: Instruction, shape: Mapping[str, int]) -> Collective | None:
    """A collective within a slice."""
    kind = instruction.collective
    if not kind or ("async_collective_fusion_config" in instruction.attributes and not starts(program, where, instruction)):
        return None
    sizes = [size for size, _ in arrays(instruction.shape)]
    if kind == "collective-permute":
        pairs = _numbers(re.search(r"source_target_pairs=\{(.*?)\}\}", instruction.attributes + "}}"))
        size = sizes[0]  # of a start: (operand, result, context)
        axes = {axis for pair in pairs for axis in _axes([pair], shape)}
        return Collective(kind, _name(axes, shape), size, size, 1)
    groups = replica_groups(instruction.attributes, math.prod(shape.values()))
    members = len(groups[0])
    axis = _name(_axes(groups, shape), shape)
    if instruction.op == "all-gather-start":  # (operands, results)
        sizes = sizes[len(sizes) // 2 :]
    total = sum(sizes)
    if kind == "reduce-scatter":
        total *= members
    if kind == "all-reduce" and any(user.op == "dynamic-slice" for user in program.users(where, instruction.name)) and where in program.fused:
        kind = "reduce-scatter"  # which TPUs write as a sum of which each device keeps a part, in one fusion
    share = (members - 1) / members
    return Collective(kind, axis, total, total * share * (2 if kind == "all-reduce" else 1), 1)


def _network(instruction: Instruction, slices: int) -> Collective | None:
    """A send to other slices, which takes the place of the part of a collective that crosses them."""
    kind = re.search(rf'{NETWORK}="(\w+)"', instruction.attributes)
    if instruction.op != "send" or kind is None:
        return None
    size = arrays(instruction.shape)[0][0]
    name = kind[1].lower().replace("_", "-")
    return Collective(name, "data", size, size * (slices - 1) / slices * (2 if name == "all-reduce" else 1), 1, network=True)


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
    """The groups of devices that a collective runs in, from any of the forms in which XLA writes them. Raises ValueError for another form."""
    found = _GROUPS.search(attributes)
    if found is None:
        raise ValueError(f"no groups of devices that are understood: {attributes[:200]}")
    text = found[1]
    if text == "{}":
        return [list(range(devices))]
    if text.startswith("{{"):
        return _numbers(re.match(r"\{(.*)\}", text))
    if text.startswith("["):
        rows, _, source = text.partition("<=")
        return _iota(source).reshape(_ints(rows)).tolist()
    return _mesh_groups(text)


def _iota(text: str) -> np.ndarray:
    """Numbers from 0, as [2,4] or [2,4]T(1,0) arranges them."""
    sizes, _, order = text.partition("T")
    ids = np.arange(math.prod(_ints(sizes))).reshape(_ints(sizes))
    return ids.transpose(_ints(order)) if order else ids


def _mesh_groups(text: str) -> list[list[int]]:
    """Groups such as mesh['a'=2,'b'=4] {'a','b':(1)2}: along these axes, or parts of them (of so many, after so many)."""
    named, ids, along = re.match(_MESH, text).groups()  # type: ignore[union-attr]
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", named)}
    references = re.findall(r"'?([A-Za-z_][\w.\-]*)'?(?::\((\d+)\)(\d+))?", along)
    wanted = {name: (int(before or 1), int(part) if part else None) for name, before, part in references}
    parts: list[int] = []  # every axis, split where only a part of it is meant
    chosen: list[int] = []
    for name, size in sizes.items():
        if name not in wanted:
            parts.append(size)
            continue
        before, part = wanted[name]
        part = part or size
        chosen.append(len(parts) + 1)
        parts += [before, part, size // before // part]
    count = math.prod(parts)
    devices = np.arange(count) if not ids else _iota(ids) if ids.startswith("[") else np.array(_ints(ids))
    order = devices.reshape(parts)
    rest = [axis for axis in range(len(parts)) if axis not in chosen]
    return order.transpose(rest + chosen).reshape(-1, math.prod(parts[axis] for axis in chosen)).tolist()


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.strip("[]()").split(",")]


def _numbers(match: re.Match[str] | None) -> list[list[int]]:
    return [_ints(group) for group in re.findall(r"\{?([\d,]+)\}?", match[1]) if re.search(r"\d", group)] if match else []


def _axes(groups: list[list[int]], shape: Mapping[str, int]) -> set[str]:
    """The axes along which the members of a group differ; devices are numbered in the order of the mesh."""
    coordinates = np.array(np.unravel_index(np.array(groups), tuple(shape.values())))  # [axes, groups, members]
    varies = (coordinates != coordinates[:, :, :1]).any(axis=(1, 2))
    return {axis for axis, differs in zip(shape, varies, strict=True) if differs}


def _name(axes: set[str], shape: Mapping[str, int]) -> str:
    return "+".join(axis for axis in shape if axis in axes)
