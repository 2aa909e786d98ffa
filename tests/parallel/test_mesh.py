"""The mesh: which device stands where, over one slice or several, and what is refused."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from cdcd_jax.config import Config, MeshConfig, TrainConfig, UserError, from_dict
from cdcd_jax.parallel.mesh import AXES, arrange, batch_sharding, make_mesh, sizes
from tests import tiny


def config(batch: int = 8, parts: int = 1, **mesh: int) -> Config:
    return Config(mesh=MeshConfig(**mesh), train=TrainConfig(batch_size=batch, accumulation_steps=parts))


@dataclasses.dataclass(frozen=True)
class Host:
    """A stand-in for a device of a CPU or GPU host, which knows of no slices."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@dataclasses.dataclass(frozen=True)
class Gpu(Host):
    """One that names its NVLink domain."""

    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "H100"


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A stand-in for a chip of a TPU slice: hosts of four chips, a torus of 4 x 2."""

    id: int
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    core_on_chip: int = 0

    @property
    def process_index(self) -> int:
        return self.id // 4

    @property
    def coords(self) -> tuple[int, int, int]:
        return self.id % 4, self.id // 4 % 2, 0


def hosts(number: int, each: int) -> list[Host]:
    """In an order that is not theirs."""
    return [Host(process * each + local, process) for local in range(each) for process in reversed(range(number))]


def pods(number: int) -> list[Tpu]:
    return [Tpu(id, id // 8) for id in range(8 * number)]


@pytest.mark.parametrize(
    "mesh, shape", [({}, (8, 1, 1)), ({"fsdp": 2}, (4, 2, 1)), ({"data": 1, "fsdp": 4, "tensor": 2}, (1, 4, 2)), ({"tensor": 8}, (1, 1, 8))]
)
def test_make_mesh_takes_all_devices(mesh: dict[str, int], shape: tuple[int, ...]) -> None:
    made = make_mesh(config(**mesh))
    assert tuple(made.shape[axis] for axis in AXES) == shape and made.size == jax.device_count() == 8
    assert set(made.devices.flat) == set(jax.devices())
    assert made.axis_types == (jax.sharding.AxisType.Auto,) * 3


def test_some_devices_can_be_a_mesh() -> None:
    assert list(make_mesh(config(fsdp=2), jax.devices()[2:6]).devices.flat) == jax.devices()[2:6]


@pytest.mark.parametrize(
    "wrong, count, said",
    [
        (
            config(fsdp=3), 8,
            "mesh.data x fsdp x tensor = -1 x 3 x 1 with mesh.slices = 1 does not fit the 8 devices: "
            "mesh.fsdp x mesh.tensor must divide 8, so it may be 1, 2, 4 or 8, not 3.",
        ),
        (
            config(tensor=2), 1,
            "mesh.data x fsdp x tensor = -1 x 1 x 2 with mesh.slices = 1 does not fit the 1 device: "
            "mesh.fsdp x mesh.tensor must divide 1, so it may be 1, not 2.",
        ),
        (
            config(data=2, fsdp=2), 8,
            "mesh.data x fsdp x tensor = 2 x 2 x 1 with mesh.slices = 1 does not fit the 8 devices: "
            "with this mesh.fsdp and mesh.tensor, mesh.data must be 4, or -1 for what is left.",
        ),
        (
            config(data=0), 8,
            "mesh.data x fsdp x tensor = 0 x 1 x 1 with mesh.slices = 1 does not fit the 8 devices: "
            "with this mesh.fsdp and mesh.tensor, mesh.data must be 8, or -1 for what is left.",
        ),
        (
            config(fsdp=4, slices=4), 8,
            "mesh.data x fsdp x tensor = -1 x 4 x 1 with mesh.slices = 4 does not fit the 8 devices: "
            "only the data axis runs between slices, so mesh.data = 2 must be a multiple of mesh.slices: it may be 1 or 2.",
        ),
        (
            config(12), 8,
            "train.batch_size = 12 is not a multiple of mesh.data x fsdp = 8 x 1 (with mesh.tensor = 1 and mesh.slices = 1 on 8 devices): "
            "take 8 or 16, or other axes.",
        ),
        (
            config(3, data=1, tensor=8, parts=2), 8,
            "train.batch_size = 3 is not a multiple of mesh.data x fsdp = 1 x 1, times train.accumulation_steps = 2 "
            "(with mesh.tensor = 8 and mesh.slices = 1 on 8 devices): take 4, or other axes.",
        ),
        (
            config(24, parts=2), 8,
            "train.batch_size = 24 is not a multiple of mesh.data x fsdp = 8 x 1, times train.accumulation_steps = 2 "
            "(with mesh.tensor = 1 and mesh.slices = 1 on 8 devices): take 16 or 32, or other axes.",
        ),
    ],
)  # fmt: skip
def test_meshes_that_cannot_be(wrong: Config, count: int, said: str) -> None:
    with pytest.raises(UserError) as error:
        sizes(wrong, count)
    assert str(error.value) == said


def test_tensor_parallelism_shares_rows() -> None:
    assert sizes(config(2, tensor=4), 8) == (2, 1, 4)


def test_hosts_in_order_are_the_slices() -> None:
    """Each half of the data axis has the devices of two of the four processes, and neighbours along the other axes are of one process."""
    grid = arrange(hosts(4, 4), (4, 2, 2), slices=2)
    assert grid.shape == (4, 2, 2)
    assert [device.id for device in grid.flat] == list(range(16))
    assert {device.process_index for device in grid[:2].flat} == {0, 1}


def test_processes_of_one_machine_are_its_slices() -> None:
    """Where they rehearse what several hosts do, JAX numbers their CPUs as one slice."""
    devices = [Gpu(id, id // 2, slice_index=0, platform="cpu") for id in range(4)]
    grid = arrange(devices, (2, 2, 1), slices=2)
    assert [[device.process_index for device in half.flat] for half in grid] == [[0, 0], [1, 1]]


def test_nvlink_domains_are_grouped_before_ids_are() -> None:
    """Ids alone would put the domains into one another."""
    devices = [Gpu(id, id // 2, slice_index=id % 2) for id in range(8)]
    grid = arrange(devices, (4, 2, 1), slices=2)
    assert [[device.slice_index for device in half.flat] for half in (grid[:2], grid[2:])] == [[0] * 4, [1] * 4]
    assert [device.id for device in arrange(devices, (8, 1, 1), slices=1).flat] == [0, 2, 4, 6, 1, 3, 5, 7]


@pytest.mark.parametrize("shape", [(8, 2, 2), (4, 8, 1), (4, 2, 4), (32, 1, 1), (4, 4, 2)])
def test_only_the_data_axis_runs_between_tpu_slices(shape: tuple[int, int, int]) -> None:
    devices = pods(4)
    grid = arrange(devices[::-1], shape, slices=4)
    assert grid.shape == shape and set(grid.flat) == set(devices)
    blocks = np.split(grid, 4)
    assert [{device.slice_index for device in block.flat} for block in blocks] == [{0}, {1}, {2}, {3}]


@dataclasses.dataclass(frozen=True)
class Lone(Tpu):
    """A chip that does not name its slice, as in a description of one slice."""

    def __getattribute__(self, name: str) -> Any:
        if name == "slice_index":
            raise AttributeError(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("kind", [Tpu, Lone])
def test_one_tpu_slice_needs_no_word(kind: type[Tpu]) -> None:
    assert {device.id for device in arrange([kind(id, 0) for id in range(8)], (2, 4, 1), slices=1).flat} == set(range(8))


@pytest.mark.parametrize(
    "devices, slices, said",
    [
        (pods(2), 1, "mesh.slices = 1, but the number of slices that the 16 devices lie in is 2: set mesh.slices = 2."),
        (pods(2), 4, "mesh.slices = 4, but the number of slices that the 16 devices lie in is 2: set mesh.slices = 2."),
        (hosts(3, 4), 2, "mesh.slices = 2 does not divide the 3 processes of the 12 devices, of which slices are groups: it may be 1 or 3."),
        (hosts(1, 8), 2, "mesh.slices = 2 does not divide the 1 processes of the 8 devices, of which slices are groups: it may be 1."),
        (
            [Gpu(id, id, slice_index=id) for id in range(3)], 2,
            "mesh.slices = 2 does not divide the 3 NVLink domains of the 3 devices, of which slices are groups: it may be 1 or 3.",
        ),
        (
            [Host(0, 0), Host(1, 1), Host(2, 1), Host(3, 1)], 2,
            "mesh.slices = 2 takes slices of one size, but the 4 devices come in groups of 1 and 3: set 1.",
        ),
    ],
)  # fmt: skip
def test_slices_that_the_devices_do_not_make(devices: list[Any], slices: int, said: str) -> None:
    with pytest.raises(UserError) as error:
        arrange(devices, (len(devices), 1, 1), slices)
    assert str(error.value) == said


def test_the_default_is_data_parallelism_in_one_slice() -> None:
    assert from_dict({}).mesh == MeshConfig(data=-1, fsdp=1, tensor=1, slices=1)


def test_where_a_batch_lies() -> None:
    mesh = tiny.mesh(2, 2, 2)
    rows = jax.device_put(np.arange(16).reshape(8, 2), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 2)}


@pytest.mark.parametrize(
    "mesh, count, shape",
    [
        ({"fsdp": -1}, 1, (1, 1, 1)),
        ({"fsdp": -1}, 8, (1, 8, 1)),
        ({"fsdp": -1}, 48, (3, 16, 1)),
        ({"fsdp": -1}, 512, (8, 64, 1)),  # WIDEST
        ({"fsdp": -1, "tensor": 4}, 64, (1, 16, 4)),
        ({"fsdp": -1, "slices": 2}, 16, (2, 8, 1)),  # within a slice
        ({"fsdp": -1, "data": 2}, 512, (2, 256, 1)),  # all that is left, where data is given
    ],
)
def test_fsdp_that_takes_what_is_left(mesh: dict[str, int], count: int, shape: tuple[int, int, int]) -> None:
    assert sizes(config(512 * 3, **mesh), count) == shape


@pytest.mark.parametrize(
    "mesh, said",
    [
        ({"data": 3}, "mesh.data x tensor = 3 does not divide the 8 devices, so mesh.fsdp = -1 finds no width: it may be 1, 2, 4 or 8."),
        ({"slices": 3}, "mesh.slices x tensor = 3 does not divide the 8 devices, so mesh.fsdp = -1 finds no width: it may be 1, 2, 4 or 8."),
        ({"data": 0}, "mesh.data x tensor = 0 does not divide the 8 devices, so mesh.fsdp = -1 finds no width: it may be 1, 2, 4 or 8."),
    ],
)
def test_nothing_is_left_for_fsdp(mesh: dict[str, int], said: str) -> None:
    with pytest.raises(UserError) as error:
        sizes(config(24, fsdp=-1, **mesh), 8)
    assert str(error.value) == said
