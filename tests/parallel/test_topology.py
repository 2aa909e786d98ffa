"""Names of hardware, and the bound that its rates set: what is known, what is refused, and which resource binds."""

import dataclasses
import re
import subprocess
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, SingleDeviceSharding

from cdcd_jax.config import UserError
from cdcd_jax.parallel import topology
from cdcd_jax.parallel.chips import CHIPS
from cdcd_jax.parallel.collectives import Collective
from cdcd_jax.parallel.mesh import AXES
from cdcd_jax.parallel.roofline import axis_bandwidths, roofline
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "name, chip, slices, sides, count",
    [
        ("v5p:8x8x8", "v5p", 1, (8, 8, 8), 512),
        ("v5e:16x16", "v5e", 1, (16, 16), 256),
        ("v6e:2x4", "v6e", 1, (2, 4), 8),
        ("2xv5e:16x16", "v5e", 2, (16, 16), 512),
        ("v5p:2x2x1", "v5p", 1, (2, 2, 1), 4),
        ("v5p:16x16x24", "v5p", 1, (16, 16, 24), 6144),
        ("v4:12x12x24", "v4", 1, (12, 12, 24), 3456),
        ("v6e:1x1", "v6e", 1, (1, 1), 1),
        ("gpu:h200x8", "h200", 1, (), 8),
        ("gpu:b200x64", "b200", 1, (), 64),
    ],
)
def test_names(name: str, chip: str, slices: int, sides: tuple[int, ...], count: int) -> None:
    found = topology.parse(name)
    assert (found.chip.name, found.slices, found.sides, found.count) == (chip, slices, sides, count)


@pytest.mark.parametrize(
    "name, said",
    [
        ("w9:8x8", "topology 'w9:8x8' names an unknown chip (known: v4, v5e, v5p, v6e); known topologies: "),
        ("v5:8x8", "topology 'v5:8x8' names an unknown chip (did you mean \"v5"),
        ("gpu:h300x8", "topology 'gpu:h300x8' names an unknown GPU (did you mean \"h"),
        ("gpu:h100x12", "topology 'gpu:h100x12' must have 1 to 8 GPUs, or a multiple of 8"),
        ("gpu:h100x0", "topology 'gpu:h100x0' must have 1 to 8 GPUs"),
        ("v5e:2x6", "topology 'v5e:2x6' is no slice of v5e: offered are 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16."),
        ("v5e:16", "topology 'v5e:16' is no slice of v5e"),
        ("v6e:16x8", "topology 'v6e:16x8' is no slice of v6e"),
        ("v5e:04x4", "topology 'v5e:04x4' is no slice of v5e"),
        ("v5p:2x2x3", "topology 'v5p:2x2x3' is no slice of v5p: offered are 2x2x1, 2x2x2, 2x2x4, 2x4x4, and multiples of 4 in rising order, from "),
        ("v5p:8x4x4", "topology 'v5p:8x4x4' is no slice of v5p"),
        ("v5p:16x16x28", "topology 'v5p:16x16x28' is no slice of v5p"),
        ("v4:4x4x0", "topology 'v4:4x4x0' is no slice of v4"),
        ("v5e:\uff12x\uff12", "unknown topology 'v5e:\uff12x\uff12': known are "),
        ("0xv5e:4x4", "unknown topology '0xv5e:4x4': known are "),
        ("gpu:h200", "unknown topology 'gpu:h200': GPUs are named by their number on all nodes: gpu:h200x8; known are "),
        ("2xgpu:h200x8", "unknown topology '2xgpu:h200x8': GPUs are named by their number on all nodes: gpu:h200x16; known are "),
        ("v5litepod-16", "unknown topology 'v5litepod-16': that is v5e:4x4; known are "),
        ("v5p-1024", "unknown topology 'v5p-1024': that is v5p:8x8x8; known are "),
        ("v5p-9", "unknown topology 'v5p-9': v5p is named with a shape, v5p:2x4x4, say; known are "),
        ("v5e-512", "unknown topology 'v5e-512': v5e is named with a shape, v5e:4x4, say; known are "),
        ("v6e", "unknown topology 'v6e': v6e is named with a shape, v6e:4x4, say; known are "),
        ("V5E:4x4", "unknown topology 'V5E:4x4': did you mean v5e:4x4? known are "),
        ("h100x4", "unknown topology 'h100x4': GPUs are named by their number on all nodes: gpu:h100x4; known are "),
        ("a pod", "unknown topology 'a pod': known are v5e:16x16, "),
        ("", "unknown topology '': known are "),
    ],
)
def test_names_that_are_refused(name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        topology.parse(name)
    assert str(error.value).startswith(said) and "gpu:h200x8" in topology.KNOWN


def test_every_chip_has_all_its_rates() -> None:
    for chip in CHIPS.values():
        assert min(chip.hbm_bytes, chip.flops, chip.hbm_bandwidth, chip.link_bandwidth, chip.network_bandwidth) > 0
        assert bool(chip.dimensions) != bool(chip.node) and bool(chip.shapes) == bool(chip.most) == bool(chip.dimensions)
        # More is computed than moved, more moved than sent, and more sent over links than over the network.
        assert chip.flops > chip.hbm_bandwidth > chip.link_bandwidth > chip.network_bandwidth


@pytest.mark.parametrize("name, rates", [
    ("v4", (275, 1200, 2 * 45, 4 * 50)),
    ("v5e", (197, 819, 400 / 4, 200)),
    ("v5p", (459, 2765, 1200 / 6, 4 * 50)),
    ("v6e", (918, 1638, 800 / 4, 8 * 100)),
    ("a100", (312, 2039, 600, 8 * 200)),
    ("h100", (989.4, 3350, 900, 8 * 400)),
    ("h200", (989.4, 4800, 900, 8 * 400)),
    ("b200", (2250, 8000, 1800, 8 * 400)),
])  # fmt: skip
def test_the_rates_are_those_that_are_published(name: str, rates: tuple[float, ...]) -> None:
    """In the units of their sources: TFLOPS, GB/s of memory, GB/s of a link (a GPU's links) both ways, Gb/s of network of a host or a node."""
    chip, host = CHIPS[name], {"v5e": 8, "v6e": 8, "v4": 4, "v5p": 4}.get(name, 8)
    found = (chip.flops / 1e12, chip.hbm_bandwidth / 1e9, 2 * chip.link_bandwidth / 1e9, chip.network_bandwidth * 8 / 1e9 * host)
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("name", sorted(topology.TPUS))
def test_the_memory_is_what_the_compiler_grants(name: str) -> None:
    """It says so of a program that takes more than any chip has."""
    pytest.importorskip("libtpu")
    (chip, *_) = topology.devices(topology.parse(f"{name}:{CHIPS[name].shapes[1]}"))
    far = jax.ShapeDtypeStruct((1 << 38,), jax.numpy.float32, sharding=SingleDeviceSharding(chip))
    with pytest.raises(jax.errors.JaxRuntimeError, match="exceeds available HBM") as error:
        jax.jit(lambda x: x + 1).lower(far).compile()
    (granted,) = re.findall(r"available HBM \((.*?)G\)", str(error.value))
    assert float(granted) == pytest.approx(CHIPS[name].hbm_bytes / 2**30, abs=0.02)  # libtpu 0.0.42 says 95.74 of v5p, 0.0.50 95.73


@pytest.mark.parametrize("chip", sorted(topology.TPUS))
def test_what_is_launched_can_be_planned(chip: str) -> None:
    """The launchers know fewer shapes: those that follow from Google's name of a size."""
    command = ["launch/tpu_vm.sh", "create", "--name=a", "--zone=us-a1-b", f"--topology={chip}:0x0"]
    said = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stderr
    shapes = said.partition(f"{chip} has the shapes ")[2].rstrip(".\n").split()
    assert shapes and all(topology.parse(f"{chip}:{shape}").count for shape in shapes)
    assert set(shapes) <= {*CHIPS[chip].shapes, *topology.LARGER}


@dataclasses.dataclass(frozen=True)
class Place:
    """A chip that knows where it is."""

    coords: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """As much of a mesh as the bound looks at."""

    devices: np.ndarray
    axis_names: tuple[str, ...] = AXES

    @property
    def shape(self) -> dict[str, int]:
        return dict(zip(self.axis_names, self.devices.shape, strict=True))


def torus(sides: tuple[int, ...], shape: tuple[int, int, int]) -> Any:
    places = np.empty(int(np.prod(sides)), object)
    places[:] = [Place(coords) for coords in np.ndindex(*sides)]
    return Grid(places.reshape(shape))


@pytest.mark.parametrize(
    "name, shape, expected",
    [
        ("v5e:16x16", (16, 16, 1), {"fsdp": 2, "data": 2, "data+fsdp": 4}),  # two closed rings
        ("v5e:4x4", (4, 4, 1), {"fsdp": 1, "data": 1, "data+fsdp": 2}),  # open lines
        ("v5e:16x16", (1, 256, 1), {"fsdp": 4}),
        ("v5e:16x16", (4, 64, 1), {"fsdp": 3, "data": 1}),  # 4 of one side, open, times the other
        ("v5e:8x16", (1, 128, 1), {"fsdp": 3}),
        ("v5p:8x8x8", (8, 64, 1), {"fsdp": 4, "data": 2, "data+fsdp": 6}),
        ("v5p:4x4x4", (1, 64, 1), {"fsdp": 6}),
        ("v5p:2x4x4", (1, 32, 1), {"fsdp": 3}),  # less than a cube, which alone has the switches that close a ring
        ("v4:2x2x4", (4, 4, 1), {"fsdp": 1, "data": 2, "data+fsdp": 3}),
    ],
)
def test_the_links_that_an_axis_has(name: str, shape: tuple[int, int, int], expected: dict[str, int]) -> None:
    where = topology.parse(name)
    found = axis_bandwidths(where, torus(where.sides, shape))
    assert {axis: found[axis] / where.chip.link_bandwidth for axis in expected} == expected


def test_gpus_beyond_a_node_share_its_ports() -> None:
    where = topology.parse("gpu:h100x32")
    found = axis_bandwidths(where, AbstractMesh((4, 8, 1), AXES, axis_types=(AxisType.Auto,) * 3))
    assert found["fsdp"] == where.chip.link_bandwidth  # within a node
    assert found["data"] == where.chip.network_bandwidth  # one GPU of each node
    assert found["data+fsdp"] == 8 * where.chip.network_bandwidth


@pytest.mark.parametrize(
    "flops, moved, sent, network, slowest",
    [(1e18, 1e6, 1e3, 0, "compute"), (1e9, 1e12, 1e3, 0, "hbm"), (1e9, 1e6, 1e12, 0, "links"), (1e9, 1e6, 1e3, 1e12, "network")],
)
def test_the_slowest_binds(flops: float, moved: float, sent: float, network: float, slowest: str) -> None:
    where = topology.parse("v5e:4x4")
    chip = where.chip
    exchanged = [Collective("all-gather", "fsdp", sent, sent, 1), Collective("all-reduce", "data", network, network, 1, network=True)]
    found = roofline(where, flops, moved, exchanged, {"fsdp": chip.link_bandwidth, "network": chip.network_bandwidth})
    assert (found.slowest, found.bound_by) == (slowest, slowest.replace("links", "network"))
    times = (flops / 16 / chip.flops, moved / chip.hbm_bandwidth, sent / chip.link_bandwidth, network / chip.network_bandwidth)
    assert (found.compute, found.hbm, found.links, found.network) == pytest.approx(times)
    assert found.seconds == pytest.approx(max(times))
