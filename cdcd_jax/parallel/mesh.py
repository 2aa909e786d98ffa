"""The device mesh: axes for data, FSDP and tensor parallelism; a single device is a mesh of one."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cdcd_jax.config import MeshConfig, UserError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # how the leading axis of a batch is laid out


def make_mesh(config: MeshConfig, batch_size: int) -> Mesh:
    """The mesh of all devices. Raises UserError where the axes do not divide the devices, or the devices not the batch."""
    count = jax.device_count()
    rest = config.fsdp * config.tensor
    if count % rest:
        raise UserError(f"mesh.fsdp x mesh.tensor = {config.fsdp} x {config.tensor} does not divide the {count} devices.")
    data = count // rest if config.data == -1 else config.data
    if data * rest != count:
        raise UserError(f"mesh.data x fsdp x tensor = {data} x {config.fsdp} x {config.tensor} does not make the {count} devices.")
    if batch_size % (data * config.fsdp):
        raise UserError(f"train.batch_size = {batch_size} is not a multiple of mesh.data x mesh.fsdp = {data * config.fsdp}.")
    # Auto, in writing: make_mesh's default is Explicit, for which several of the operations in the step have no rule yet.
    return jax.make_mesh((data, config.fsdp, config.tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch along its leading axis."""
    return NamedSharding(mesh, BATCH)
