"""The sharding rules: one for every leaf of a state, none for nothing, and a state that is really divided."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from cdcd_jax.config import Config
from cdcd_jax.parallel import sharding
from cdcd_jax.parallel.mesh import AXES
from cdcd_jax.parallel.sharding import fit, path_name, rules, shardings
from cdcd_jax.training.state import init_state
from tests import tiny
from tests.test_configs import read

# Every option that adds parameters, on and off.
OPTIONS = {
    "the demo's": {},
    "Adam": {"optim.name": "adam"},
    "clipping": {"optim.clip_norm": 1.0},
    "no convolution": {"model.convolution_width": 0},
    "no noisy vector": {"model.noisy_vector": False},
    "conditioned on sigma": {"model.sigma_conditioning": True},
    "nothing": {"model.convolution_width": 0, "model.noisy_vector": False, "model.output_prior": False, "model.posterior_mean_input": False},
}


def mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh that needs no devices."""
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def abstract(config: Config, vocab_size: int = 24) -> Any:
    return jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))


def specs(config: Config, vocab_size: int, on: AbstractMesh) -> dict[str, P]:
    tree = shardings(config, abstract(config, vocab_size), on)
    return {path_name(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("changes", OPTIONS.values(), ids=OPTIONS)
def test_rules_and_state_agree_whatever_is_switched_on(changes: dict[str, Any]) -> None:
    config = tiny.config(changes)
    state = abstract(config)
    tree = shardings(config, state, mesh(2, 2, 2))
    assert jax.tree.structure(tree) == jax.tree.structure(state)


def test_a_parameter_without_a_rule_is_an_error() -> None:
    config = tiny.config()
    state = abstract(config)
    state.params["denoiser"]["gate"] = {"kernel": jnp.zeros((3, 4))}
    with pytest.raises(ValueError, match=r"no sharding rule matches the parameter 'params/denoiser/gate/kernel' of shape \(3, 4\): add one to rules"):
        shardings(config, state, mesh(1, 1, 1))


def test_a_rule_that_matches_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that only matches what an earlier one has taken."""
    config = tiny.config()
    state, on = abstract(config), mesh(1, 1, 1)
    with pytest.raises(ValueError, match=r"the sharding rules \['blocks/convolution/kernel\$'\] match nothing in this state"):
        shardings(config, abstract(tiny.config({"model.convolution_width": 0})), on)
    monkeypatch.setattr(sharding, "rules", lambda config: [*rules(config), (r"embeddings/", P())])
    with pytest.raises(ValueError, match=r"the sharding rules \['embeddings/'\] match nothing in this state"):
        shardings(config, state, on)


def test_rules_name_axes_of_the_mesh() -> None:
    entries = {entry for _, spec in rules(tiny.config()) for entry in spec if entry}
    assert {axis for entry in entries for axis in ([entry] if isinstance(entry, str) else entry)} == {"fsdp", "tensor"} < set(AXES)


@pytest.mark.parametrize(
    "spec, shape, fitted",
    [
        (P("fsdp", "tensor"), (32, 8), P("fsdp", "tensor")),
        (P("fsdp", "tensor"), (32, 6), P("fsdp", None)),  # tensor parallelism does not move: it divides what is computed
        (P("fsdp", "tensor"), (31, 8), P(None, ("tensor", "fsdp"))),  # FSDP does
        (P("fsdp", "tensor"), (31, 6), P(None, "fsdp")),
        (P("fsdp", "tensor"), (31, 5), P(None, None)),
        (P(("tensor", "fsdp"), None), (24, 6), P(("tensor", "fsdp"), None)),
        (P(("tensor", "fsdp"), None), (27, 6), P(None, "fsdp")),
        (P(("tensor", "fsdp"), None), (12, 6), P("tensor", "fsdp")),
        (P("fsdp", None, "tensor"), (31, 2, 8), P(None, None, ("tensor", "fsdp"))),  # the largest that it divides
        (P("fsdp"), (5,), P(None)),
        (P(), (3, 4), P(None, None)),
    ],
)
def test_what_a_shape_forbids(spec: P, shape: tuple[int, ...], fitted: P) -> None:
    assert fit(spec, shape, mesh(1, 2, 4)) == fitted


def test_the_layers_are_never_divided() -> None:
    """Not even where they alone could be: the scan takes one after the other."""
    odd = tiny.config({"model.num_layers": 4, "model.width": 18, "model.num_heads": 3, "model.mlp_width": 54})
    found = {name: spec for name, spec in specs(odd, 24, mesh(1, 4, 1)).items() if "/blocks/" in name}
    assert len(found) > 10 and all(spec[0] is None for spec in found.values())


def test_a_vocabulary_that_does_not_divide_is_split_along_the_embedding() -> None:
    found = specs(tiny.config(), 27, mesh(1, 4, 2))
    for branch in ("params", "ema"):
        assert found[f"{branch}/embeddings/table"] == P(None, "fsdp")
        assert found[f"{branch}/denoiser/head/kernel"] == P("fsdp", None)
        assert found[f"{branch}/denoiser/head/bias"] == P(None)


@pytest.mark.parametrize(
    "name, vocab_size, shape",
    [
        ("demo", 2048, (1, 8, 1)),
        ("demo", 2047, (1, 8, 1)),
        ("demo", 2048, (1, 4, 2)),
        ("demo27", 27, (1, 8, 1)),
        ("paper_base", 32_000, (1, 256, 1)),
        ("paper_large", 32_000, (1, 256, 1)),
        ("paper_large", 32_000, (1, 64, 4)),
        ("paper_large", 31_999, (1, 256, 1)),
    ],
)
def test_a_device_holds_its_share_of_the_state_and_hardly_more(name: str, vocab_size: int, shape: tuple[int, int, int]) -> None:
    config = read(name)
    state = abstract(config, vocab_size)
    placed = list(zip(jax.tree.leaves(state), jax.tree.leaves(shardings(config, state, mesh(*shape))), strict=True))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf, _ in placed)
    held = sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in placed)
    assert total / math.prod(shape) <= held <= 1.1 * total / math.prod(shape)


@pytest.mark.parametrize(
    "spec, expected", [(P(("tensor", "fsdp"), None), P("tensor", None)), (P(None, "fsdp"), P(None, None)), (P("tensor", "fsdp"), P("tensor", None))]
)
def test_gathered_leaves_tensor_parallelism(spec: P, expected: P) -> None:
    assert sharding.gathered(jax.sharding.NamedSharding(mesh(1, 2, 4), spec)).spec == expected
