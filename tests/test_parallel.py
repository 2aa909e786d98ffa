"""Where arrays lie changes nothing that they say: the same losses on any mesh, and a rule for every parameter."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cdcd_jax.config import Config, MeshConfig, UserError, from_dict
from cdcd_jax.parallel.mesh import AXES, batch_sharding, make_mesh
from cdcd_jax.parallel.sharding import RULES, path_name, shardings, spec_for
from cdcd_jax.training.state import init_state
from tests import tiny

STEPS = 4
# Everything that can be sharded divides by eight.
WIDE = {"model.width": 32, "model.num_heads": 8, "model.mlp_width": 32, "train.batch_size": 16}
# "Demo-like" and "paper-like": between them, every option of the model.
CONFIGS = {
    "demo": tiny.config(WIDE),
    "paper": tiny.config(
        WIDE
        | {"model.sigma_conditioning": True, "model.noisy_vector": False, "model.convolution_width": 0, "model.output_prior": False}
        | {"model.posterior_mean_input": False, "optim.name": "adam", "train.position_sigma_fraction": 0.0}
    ),
}


def abstract(config: Config) -> Any:
    return jax.eval_shape(lambda: init_state(config, jnp.zeros(24)))


@functools.cache
def losses(data: int, fsdp: int, tensor: int) -> list[dict[str, float]]:
    """The first steps' metrics on a mesh."""
    work = tiny.trainer(CONFIGS["demo"], tiny.mesh(data, fsdp, tensor))
    return work.run(work.init(), STEPS)[1]


SLOW = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 8, 1), (1, 1, 8)]
MESHES = [(8, 1, 1), (2, 2, 2), *(pytest.param(*mesh, marks=pytest.mark.slow) for mesh in SLOW)]


@pytest.mark.parametrize("data, fsdp, tensor", MESHES)
def test_the_same_losses_on_every_mesh(data: int, fsdp: int, tensor: int) -> None:
    for one, other in zip(losses(1, 1, 1), losses(data, fsdp, tensor), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["warp_loss"] == pytest.approx(one["warp_loss"], rel=1e-4)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_it_is_really_spread() -> None:
    """Each device of eight holds a part of the large matrices, of their averages and of their optimiser's state, and a part of the batch."""
    work = tiny.trainer(CONFIGS["demo"], tiny.mesh(2, 2, 2))
    whole = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(work.abstract)}
    spread = {name for name, leaf in whole.items() if not leaf.sharding.is_fully_replicated}
    for name in ("embeddings/table", "denoiser/head/kernel", *(f"denoiser/blocks/{name}" for name in ("attention/qkv", "up/kernel", "down/kernel"))):
        found = {path for path in spread if path.endswith(name)}
        assert {path.split("/")[0] for path in found} == {"params", "ema", "opt_state"}, name
        assert all(whole[path].sharding == whole[f"params/{name}"].sharding for path in found)
    qkv = whole["params/denoiser/blocks/attention/qkv"]
    assert qkv.sharding.shard_shape(qkv.shape) == (1, 16, 3, 16)
    assert work.batch_sharding.shard_shape((16, 16)) == (4, 16)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_leaf_of_a_state_has_a_rule(name: str) -> None:
    tree = shardings(abstract(CONFIGS[name]), tiny.mesh(2, 2, 2))
    assert all(isinstance(leaf, jax.sharding.NamedSharding) for leaf in jax.tree.leaves(tree))


def test_every_rule_is_the_first_to_match_something() -> None:
    """Over both configs; a rule that matches nothing, or only what an earlier one has taken, is dead or misspelt."""
    names = {path_name(path) for config in CONFIGS.values() for path, _ in jax.tree_util.tree_leaves_with_path(abstract(config))}
    first = {next(pattern for pattern, _ in RULES if re.search(pattern, name)) for name in names}
    assert [pattern for pattern, _ in RULES if pattern not in first] == []


def test_rules_name_axes_of_the_mesh() -> None:
    assert {axis for _, spec in RULES for axis in spec if axis} <= set(AXES)


def test_a_parameter_without_a_rule_is_an_error() -> None:
    mesh = tiny.mesh()
    with pytest.raises(KeyError, match=r"no sharding rule matches the parameter 'denoiser/gate/kernel' of shape \(3, 4\); add one to RULES"):
        spec_for("denoiser/gate/kernel", (3, 4), mesh)
    with pytest.raises(KeyError, match="params/denoiser/new"):
        shardings({"params": {"denoiser": {"new": jnp.zeros(3)}}}, mesh)


def test_an_axis_that_does_not_divide_is_kept_whole() -> None:
    mesh = tiny.mesh(1, 2, 4)
    assert spec_for("denoiser/head/kernel", (32, 8), mesh) == P("fsdp", "tensor")
    assert spec_for("denoiser/head/kernel", (32, 6), mesh) == P("fsdp", None)
    assert spec_for("denoiser/head/kernel", (31, 6), mesh) == P(None, None)
    assert spec_for("opt_state/0/mu/denoiser/head/kernel", (32, 8), mesh) == P("fsdp", "tensor")


@pytest.mark.parametrize(
    "mesh, shape", [({}, (8, 1, 1)), ({"fsdp": 2}, (4, 2, 1)), ({"data": 1, "fsdp": 4, "tensor": 2}, (1, 4, 2)), ({"tensor": 8}, (1, 1, 8))]
)
def test_make_mesh_takes_all_devices(mesh: dict[str, int], shape: tuple[int, ...]) -> None:
    made = make_mesh(MeshConfig(**mesh), 8)
    assert tuple(made.shape[axis] for axis in AXES) == shape and made.size == jax.device_count() == 8
    assert set(made.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
    "mesh, batch, said",
    [
        ({"fsdp": 3}, 8, "mesh.fsdp x mesh.tensor = 3 x 1 does not divide the 8 devices."),
        ({"data": 2}, 8, "mesh.data x fsdp x tensor = 2 x 1 x 1 does not make the 8 devices."),
        ({"data": 0}, 8, "= 0 x 1 x 1 does not make the 8 devices."),
        ({}, 12, "train.batch_size = 12 is not a multiple of mesh.data x mesh.fsdp = 8."),
        ({"data": 1, "fsdp": 8}, 4, "train.batch_size = 4 is not a multiple of mesh.data x mesh.fsdp = 8."),
    ],
)
def test_meshes_that_cannot_be(mesh: dict[str, int], batch: int, said: str) -> None:
    with pytest.raises(UserError) as error:
        make_mesh(MeshConfig(**mesh), batch)
    assert said in str(error.value)


def test_where_a_batch_lies() -> None:
    mesh = tiny.mesh(2, 2, 2)
    rows = jax.device_put(np.arange(16).reshape(8, 2), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 2)}


def test_the_configs_here_cover_the_models_options() -> None:
    options = {(m.sigma_conditioning, bool(m.convolution_width), m.noisy_vector) for m in (config.model for config in CONFIGS.values())}
    assert options == {(False, True, True), (True, False, False)} and from_dict({}).mesh == MeshConfig()
