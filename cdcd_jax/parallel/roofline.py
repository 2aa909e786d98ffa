"""The shortest time that a step can take: what it computes, moves through memory and sends, over what the hardware can do of each in a second."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cdcd_jax.parallel.collectives import Collective
from cdcd_jax.parallel.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step that each resource needs if it is used fully; the step takes at least as long as the slowest, if all overlap perfectly."""

    compute: int | float
    hbm: int | float
    links: int | float  # between the chips of a slice, or GPUs of a node
    network: int | float  # between slices or nodes

    @property
    def seconds(self) -> int | float:
        """The bound."""
        return max(self.compute, self.hbm, self.links, self.network)

    @property
    def slowest(self) -> str:
        """ "compute", "hbm", "links" or "network", whichever needs longest."""
        return max(("compute", "hbm", "links", "network"), key=lambda name: getattr(self, name))

    @property
    def bound_by(self) -> str:
        """The same in plan's JSON, which has one word for what is sent: "compute", "hbm" or "network"."""
        return "network" if self.slowest == "links" else self.slowest


def roofline(topology: Topology, flops: int | float, hbm_bytes: int | float, sent: Sequence[Collective], bandwidths: dict[str, float]) -> Roofline:
    """flops of the whole step; bytes, and collectives, of one chip; `bandwidths` as those of `axis_bandwidths`."""
    chip = topology.chip
    links = sum(c.sent_bytes / _bandwidth(c, bandwidths) for c in sent if not _leaves(c, topology, bandwidths))
    network = sum(c.sent_bytes / _bandwidth(c, bandwidths) for c in sent if _leaves(c, topology, bandwidths))
    return Roofline(flops / topology.count / chip.flops, hbm_bytes / chip.hbm_bandwidth, links, network)


def _leaves(collective: Collective, topology: Topology, bandwidths: dict[str, float]) -> bool:
    """Whether a collective is carried by the data-centre network."""
    return collective.network or (bool(topology.chip.node) and _bandwidth(collective, bandwidths) != topology.chip.link_bandwidth)


def _bandwidth(collective: Collective, bandwidths: dict[str, float]) -> float:
    """Bytes in a second that a chip sends along the axes of a collective: over several axes those of all of them, on TPUs."""
    return bandwidths["network" if collective.network else collective.axis]


def axis_bandwidths(topology: Topology, mesh: Any) -> dict[str, float]:
    """What a chip can send in a second along each axis of a Mesh or AbstractMesh, and along several ("data+fsdp"); "network" is that between slices.

    On TPUs an axis has the links of the sides of the torus that it runs along: two in a closed ring, one along an open line. On GPUs it has all of
    NVLink within a node, and beyond it the ports of those GPUs of a node that take part.
    """
    names = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    groups = [[name for index, name in enumerate(names) if choice >> index & 1] for choice in range(1, 2 ** len(names))]
    of = _along_torus if topology.sides else _along_nodes
    return {"+".join(group): of(topology, mesh, group) for group in groups} | {"network": topology.chip.network_bandwidth}


def _along_torus(topology: Topology, mesh: Any, axes: list[str]) -> float:
    names = list(mesh.axis_names)
    grid: np.ndarray = mesh.devices  # the compiler's description of the chips, which know where in the torus they are
    if topology.slices > 1:
        grid = grid[: grid.shape[0] // topology.slices]
    corner = grid[tuple(slice(None) if name in axes else 0 for name in names)]
    coordinates = np.array([device.coords for device in corner.flat])
    total = 0.0
    for dimension, (side, closed) in enumerate(zip(topology.sides, topology.closed, strict=True)):
        reach = len(set(coordinates[:, dimension]))
        total += topology.chip.link_bandwidth * (0 if reach == 1 else 2 if reach == side and closed else 1)
    return total or topology.chip.link_bandwidth


def _along_nodes(topology: Topology, mesh: Any, axes: list[str]) -> float:
    chip = topology.chip
    sizes = tuple(mesh.shape[name] for name in mesh.axis_names)
    numbers = np.arange(topology.count).reshape(sizes)
    corner = numbers[tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)]
    nodes = np.unique(corner // chip.node, return_counts=True)[1]
    return chip.link_bandwidth if len(nodes) == 1 else min(chip.link_bandwidth, chip.network_bandwidth * int(nodes.max()))
