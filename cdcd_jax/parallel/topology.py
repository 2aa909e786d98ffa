"""Hardware by name: `v5p:8x8x8` is a slice of TPUs, `2xv5e:16x16` are two, `gpu:h200x8` eight GPUs; TPU devices to compile for, without any."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from cdcd_jax.config import UserError, did_you_mean, sentence
from cdcd_jax.parallel.chips import CHIPS, Chip

TPUS = {name: chip for name, chip in CHIPS.items() if chip.dimensions}
GPUS = {name: chip for name, chip in CHIPS.items() if chip.node}
KNOWN = "v5e:16x16, v6e:4x4, v4:4x4x4, v5p:8x8x8, 2xv5e:16x16 for two slices, " + ", ".join(f"gpu:{name}x8" for name in GPUS)
LARGER = ("4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24")  # the default shapes of whole cubes


@dataclasses.dataclass(frozen=True)
class Topology:
    """`slices` slices of a torus with these sides, or (on GPUs, whose `sides` is empty) `count` GPUs."""

    name: str
    chip: Chip
    slices: int
    sides: tuple[int, ...]
    count: int  # chips, of all slices

    @property
    def closed(self) -> tuple[bool, ...]:
        """Of each side of a slice, whether its links close to a ring: optical switches do so, on whole cubes alone, or a pod's own links."""
        multiples = [side % self.chip.ring == 0 for side in self.sides]
        return (all(multiples),) * len(multiples) if self.chip.dimensions == 3 else tuple(multiples)


def parse(name: str) -> Topology:
    """The topology of this name. Raises UserError, listing the known ones, for another."""
    if gpus := re.fullmatch(r"gpu:([a-z]+[0-9]+)x([1-9][0-9]*|0)", name):
        if gpus[1] not in GPUS:
            raise UserError(f"topology {name!r} names an unknown GPU{did_you_mean(gpus[1], GPUS)}; known topologies: {KNOWN}.")
        count, node = int(gpus[2]), GPUS[gpus[1]].node
        if count < 1 or (count > node and count % node):
            raise UserError(f"topology {name!r} must have 1 to {node} GPUs, or a multiple of {node}, since NVLink joins nodes of {node}.")
        return Topology(name, GPUS[gpus[1]], 1, (), count)
    found = re.fullmatch(r"(?:([1-9][0-9]*)x)?([a-z][a-z0-9]*):([0-9]+(?:x[0-9]+)*)", name)
    if found is None:
        raise UserError(f"unknown topology {name!r}: {_nearly(name)}known are {KNOWN}, and the like.")
    slices, kind, shape = int(found[1] or 1), found[2], found[3]
    if kind not in TPUS:
        raise UserError(f"topology {name!r} names an unknown chip{did_you_mean(kind, TPUS)}; known topologies: {KNOWN}.")
    chip, sides = TPUS[kind], tuple(int(side) for side in shape.split("x"))
    if shape not in chip.shapes and not _whole_cubes(chip, shape, sides):
        raise UserError(f"topology {name!r} is no slice of {kind}: offered are {_offered(chip)}.")
    return Topology(name, chip, slices, sides, slices * math.prod(sides))


def _nearly(name: str) -> str:
    """The right form of a name that is nearly one, as the beginning of a sentence's list; or nothing."""
    if near := re.fullmatch(rf"(?:([1-9][0-9]*)x)?(?:gpu:?)?({'|'.join(GPUS)})(?:x([1-9][0-9]*))?", name):  # 2xgpu:h200x8, gpu:h200
        count = int(near[1] or 1) * int(near[3] or GPUS[near[2]].node)
        return f"GPUs are named by their number on all nodes: gpu:{near[2]}x{count}; "
    if near := re.fullmatch(rf"(v5litepod|{'|'.join(TPUS)})(?:[:-]([0-9]*))?", name.lower()):  # v5litepod-16 and v5p-8, as Google writes them, or v5e
        kind = near[1].replace("v5litepod", "v5e")
        chips = int(near[2] or 0) / (2 if TPUS[kind].dimensions == 3 else 1)  # where Google counts cores
        shapes = TPUS[kind].shapes + (LARGER if TPUS[kind].dimensions == 3 else ())
        same = [shape for shape in shapes if math.prod(map(int, shape.split("x"))) == chips]
        return f"that is {kind}:{same[0]}; " if same else f"{kind} is named with a shape, {kind}:{TPUS[kind].shapes[3]}, say; "
    if re.fullmatch(rf"(?:[1-9][0-9]*x)?(?:{'|'.join(TPUS)}):[0-9x]+", name.lower()):
        return f"did you mean {name.lower()}? "
    return ""


def _offered(chip: Chip) -> str:
    cubes = f", and multiples of 4 in rising order, from 4x4x4 up to {chip.most:,} chips" if chip.dimensions == 3 else ""
    return f"{', '.join(chip.shapes)}{cubes}"


def _whole_cubes(chip: Chip, shape: str, sides: tuple[int, ...]) -> bool:
    multiples = len(sides) == chip.dimensions == 3 and all(side > 0 and side % chip.ring == 0 for side in sides)
    return multiples and list(sides) == sorted(sides) and math.prod(sides) <= chip.most and shape == "x".join(map(str, sides))


def devices(topology: Topology) -> list[Any]:
    """The TPU devices of a topology, to compile for; none of them has to exist. Raises UserError without libtpu, which is the compiler."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for TPUs needs the package libtpu of the release that this jax names: pip install 'cdcd_jax[plan]'.")
    # No chip is touched: another process may have them. And nobody is asked which machine of a pod this is, for it may be none.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{topology.chip.name}-{topology.count}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if math.prod(topology.sides) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)  # a host of its own, where libtpu would take four chips for one
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as JAX has them; v5p's are so by themselves
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.sides))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        what = f"knows no topology {topology.name!r}" if "INVALID_ARGUMENT" in str(error) else "cannot start"
        raise UserError(f"libtpu {what} ({sentence(error)[:300]}); known topologies: {KNOWN}.") from error
