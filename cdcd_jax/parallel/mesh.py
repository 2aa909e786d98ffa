"""The device mesh: axes for data, FSDP and tensor parallelism, over one slice or several; a single device is a mesh of one."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cdcd_jax.config import Config, UserError

AXES = ("data", "fsdp", "tensor")
# Of FSDP, where it may choose. Beyond it the parts of the paper's matrices are so thin that the TPU compiler sums whole arrays instead of gathering
# parts, at twice the cost (docs/RESULTS.md, Plan).
WIDEST = 64
BATCH = PartitionSpec(("data", "fsdp"))  # how the leading axis of a batch is laid out


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices. Raises UserError where the axes do not divide the devices, the slices or the batch."""
    devices = jax.devices() if devices is None else devices
    shape = sizes(config, len(devices))
    # Auto, in writing: Mesh's other kinds of axes have no rule yet for several of the operations in the step.
    return Mesh(arrange(devices, shape, config.mesh.slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sizes(config: Config, count: int) -> tuple[int, int, int]:
    """The mesh's axes for that many devices: data (what is left, if it is -1), fsdp (likewise), tensor. Raises UserError as make_mesh does."""
    m, t = config.mesh, config.train
    devices = f"{count} device{'s' if count > 1 else ''}"
    fsdp = m.fsdp
    if fsdp == -1:
        others = m.tensor * (m.slices if m.data == -1 else m.data)
        if others < 1 or count % others:
            raise UserError(
                f"mesh.{'slices' if m.data == -1 else 'data'} x tensor = {others} does not divide the {devices}, so mesh.fsdp = -1 finds no width: "
                f"it may be {_divisors(count)}."
            )
        fsdp = math.gcd(count // others, WIDEST) if m.data == -1 else count // others
    wrong = f"mesh.data x fsdp x tensor = {m.data} x {fsdp} x {m.tensor} with mesh.slices = {m.slices} does not fit the {devices}"
    rest = fsdp * m.tensor
    if count % rest:
        raise UserError(f"{wrong}: mesh.fsdp x mesh.tensor must divide {count}, so it may be {_divisors(count)}, not {rest}.")
    data = count // rest if m.data == -1 else m.data
    if data * rest != count:
        raise UserError(f"{wrong}: with this mesh.fsdp and mesh.tensor, mesh.data must be {count // rest}, or -1 for what is left.")
    if data % m.slices:
        raise UserError(
            f"{wrong}: only the data axis runs between slices, so mesh.data = {data} must be a multiple of mesh.slices: it may be {_divisors(data)}."
        )
    shards, parts = data * fsdp, t.accumulation_steps
    if t.batch_size % (shards * parts):
        unit = math.lcm(shards * parts, 2 * parts if t.self_conditioning else parts)
        near = [str(size) for size in (t.batch_size // unit * unit, t.batch_size // unit * unit + unit) if size]
        times = f", times train.accumulation_steps = {parts}" if parts > 1 else ""
        raise UserError(
            f"train.batch_size = {t.batch_size} is not a multiple of mesh.data x fsdp = {data} x {fsdp}{times} (with mesh.tensor = {m.tensor} and "
            f"mesh.slices = {m.slices} on {devices}): take {' or '.join(near)}, or other axes."
        )
    return data, fsdp, m.tensor


def _divisors(number: int) -> str:
    """As in a sentence: 1, 2 or 4."""
    *most, last = (str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
    return f"{', '.join(most)} or {last}" if most else last


def arrange(devices: Sequence[Any], shape: tuple[int, int, int], slices: int) -> np.ndarray:
    """The devices as an array of this shape (data, fsdp, tensor), of which each slice is a block of consecutive rows.

    A slice of TPUs is what the TPUs call one, and the links within it decide which device goes where. Other devices' slices are groups of equally
    many hosts, or of NVLink domains where the devices name theirs, in order. Raises UserError where the devices do not make that many slices.
    """
    if devices[0].platform == "tpu":
        number = len({getattr(device, "slice_index", 0) for device in devices})  # a TPU that knows of one slice alone may not name it
        if number != slices:
            raise UserError(
                f"mesh.slices = {slices}, but the number of slices that the {len(devices)} devices lie in is {number}: set mesh.slices = {number}."
            )
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        return mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    # JAX gives CPUs a slice_index as well, one for all processes of a machine, which are hosts to us.
    domain = "slice_index" if devices[0].platform == "gpu" and hasattr(devices[0], "slice_index") else "process_index"
    found = Counter(getattr(device, domain) for device in devices)
    if len(found) % slices:
        kind = "NVLink domains" if domain == "slice_index" else "processes"
        raise UserError(
            f"mesh.slices = {slices} does not divide the {len(found)} {kind} of the {len(devices)} devices, of which slices are groups: "
            f"it may be {_divisors(len(found))}."
        )
    if slices > 1 and len(set(found.values())) > 1:
        groups = " and ".join(str(size) for size in sorted(set(found.values())))
        raise UserError(f"mesh.slices = {slices} takes slices of one size, but the {len(devices)} devices come in groups of {groups}: set 1.")
    return np.array(sorted(devices, key=lambda device: (getattr(device, domain), device.id))).reshape(shape)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch along its leading axis."""
    return NamedSharding(mesh, BATCH)


def rows_of(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """(i, n): this process's devices need the i-th of n equal parts of the batch. Processes between which only the tensor axis runs need the same.

    Raises UserError where they need rows that are not one part.
    """
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    wanted = sorted({rows[0].indices(batch_size)[:2] for rows in indices if rows is not None})
    start, count = wanted[0][0], sum(stop - first for first, stop in wanted)
    if wanted[-1][1] - start != count or start % count or batch_size % count:
        shape = " x ".join(str(mesh.shape[axis]) for axis in AXES)
        raise UserError(
            f"with mesh.data x fsdp x tensor = {shape} a process's devices need rows {wanted} of the batch, "
            "which are not one of equal parts: let the tensor axis divide the devices of a process, or be a multiple of them."
        )
    return start // count, batch_size // count


def constrain(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """A function that says of an activation, and returns it: this lies as `sharding` does, say by rows over the devices as the batch does.

    Without it XLA may decide to gather the batch and to leave the parameters where they lie, which costs memory and time (docs/DESIGN.md, 13).
    """
    return partial(jax.lax.with_sharding_constraint, shardings=sharding)
