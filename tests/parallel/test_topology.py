"""Names of hardware, and the bound that its rates set: what is known, what is refused, and which resource binds."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from cdcd_jax.config import UserError
from cdcd_jax.parallel import topology
from cdcd_jax.parallel.chips import CHIPS
from cdcd_jax.parallel.collectives import Collective
from cdcd_jax.parallel.mesh import AXES
from cdcd_jax.parallel.roofline import axis_bandwidths, roofline


@pytest.mark.parametrize(
    "name, chip, slices, sides, count",
    [
        ("v5p:8x8x8", "v5p", 1, (8, 8, 8), 512),
        ("v5e:16x16", "v5e", 1, (16, 16), 256),
        ("v6e:2x4", "v6e", 1, (2, 4), 8),
        ("2xv5e:16x16", "v5e", 2, (16, 16), 512),
        ("v5p:2x2x1", "v5p", 1, (2, 2, 1), 4),
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
        ("v9:8x8", "topology 'v9:8x8' names an unknown chip (known: v5e, v5p, v6e); known topologies: "),
        ("v5:8x8", "topology 'v5:8x8' names an unknown chip (did you mean \"v5"),
        ("gpu:h300x8", "topology 'gpu:h300x8' names an unknown GPU (did you mean \"h"),
        ("gpu:h100x12", "topology 'gpu:h100x12' must have 1 to 8 GPUs, or a multiple of 8"),
        ("gpu:h100x0", "topology 'gpu:h100x0' must have 1 to 8 GPUs"),
        ("v5e:16", "topology 'v5e:16' is no slice of v5e: it has 2 sides, up to 16x16, of which the first two are even; known topologies: "),
        ("v5e:32x16", "topology 'v5e:32x16' is no slice of v5e"),
        ("v5p:3x2x2", "topology 'v5p:3x2x2' is no slice of v5p"),
        ("0xv5e:4x4", "topology '0xv5e:4x4' is no slice of v5e"),
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
        assert bool(chip.dimensions) != bool(chip.node) and len(chip.largest) == chip.dimensions
        # More is computed than moved, more moved than sent, and more sent over links than over the network.
        assert chip.flops > chip.hbm_bandwidth > chip.link_bandwidth > chip.network_bandwidth


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
        ("v5p:8x8x8", (8, 64, 1), {"fsdp": 4, "data": 2, "data+fsdp": 6}),
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
    "flops, moved, sent, network, bound",
    [(1e18, 1e6, 1e3, 0, "compute"), (1e9, 1e12, 1e3, 0, "hbm"), (1e9, 1e6, 1e12, 0, "network"), (1e9, 1e6, 1e3, 1e12, "network")],
)
def test_the_slowest_binds(flops: float, moved: float, sent: float, network: float, bound: str) -> None:
    where = topology.parse("v5e:4x4")
    chip = where.chip
    exchanged = [Collective("all-gather", "fsdp", sent, sent, 1), Collective("all-reduce", "data", network, network, 1, network=True)]
    found = roofline(where, flops, moved, exchanged, {"fsdp": chip.link_bandwidth, "network": chip.network_bandwidth})
    assert found.bound_by == bound
    times = (flops / 16 / chip.flops, moved / chip.hbm_bandwidth, sent / chip.link_bandwidth, network / chip.network_bandwidth)
    assert (found.compute, found.hbm, found.links, found.network) == pytest.approx(times)
    assert found.seconds == pytest.approx(max(times))
