"""Operations by formula against a count over the traced step's products, for every option that has any."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from cdcd_jax.parallel import flops
from cdcd_jax.parallel.mesh import batch_sharding
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training.optim import make_optimizer
from cdcd_jax.training.state import init_state
from cdcd_jax.training.step import train_step
from tests import tiny

SIZE = {"model.width": 64, "model.num_heads": 4, "model.mlp_width": 256, "model.num_layers": 3, "train.batch_size": 16}
PAPER = {
    "model.sigma_conditioning": True, "model.noisy_vector": False, "model.convolution_width": 0, "model.output_prior": False,
    "model.posterior_mean_input": False, "optim.name": "adam", "train.position_sigma_fraction": 0.0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "the demo's": {},
    "the demo's, a level at each position, conditioned on": {"model.sigma_conditioning": True, "optim.name": "adam"},
    "the paper's": PAPER,
    "in parts": PAPER | {"train.accumulation_steps": 2},
    "without self-conditioning": PAPER | {"train.self_conditioning": False},
    "output prior": PAPER | {"model.output_prior": True},
    "posterior mean": PAPER | {"model.posterior_mean_input": True},
    **{f"remat {name}": PAPER | {"model.remat": name} for name in ("full", "dots", "names")},
}


FAST = ("the demo's", "the paper's", "in parts", "remat full", "remat dots")


@pytest.mark.parametrize("changes", [pytest.param(c, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, c in CASES.items()])
def test_the_formula_counts_what_is_traced(changes: dict[str, Any]) -> None:
    """Asked for: within 2 %."""
    config, vocab_size = tiny.config(SIZE | changes), 64
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))
    layout, rows = shardings(config, abstract, tiny.mesh()).params, batch_sharding(tiny.mesh())
    optimizer = make_optimizer(config)
    jaxpr = jax.make_jaxpr(lambda state, batch: train_step(state, batch, config, optimizer, layout, rows))(
        abstract, {"tokens": jax.ShapeDtypeStruct((16, tiny.LENGTH), jnp.int32)}
    )
    found = flops.train_step(config, vocab_size)
    assert found.total == pytest.approx(flops.traced(jaxpr), rel=1e-3)
    assert bool(found.recomputed) == ("model.remat" in changes) and bool(found.optimizer) == (config.optim.name == "muon")


def test_a_scan_counts_by_its_length_and_what_is_not_needed_not_at_all() -> None:
    def f(x: jax.Array, w: jax.Array) -> jax.Array:
        _ = x @ x.T
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert flops.traced(jax.make_jaxpr(f)(jnp.zeros((3, 4)), jnp.zeros((5, 4, 4)))) == 5 * 2 * 3 * 4 * 4


def test_a_product_in_a_loop_without_length_is_refused() -> None:
    jaxpr = jax.make_jaxpr(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x))(jnp.eye(3))
    with pytest.raises(ValueError, match="does not say how often"):
        flops.traced(jaxpr)


def test_as_many_as_usually_said() -> None:
    """Six for each parameter of the blocks and the head and each token, and what attention adds, where nothing else is asked for."""
    config = tiny.config(SIZE | PAPER | {"train.self_conditioning": False, "model.sigma_conditioning": False, "data.sequence_length": 128})
    m, tokens = config.model, 16 * 128
    blocks = m.num_layers * (4 * m.width**2 + 2 * m.width * m.mlp_width)
    rest = m.width * (3 * m.embedding_dim + 1 + 64)
    usual = tokens * (6 * (blocks + rest) + 12 * m.num_layers * m.width * 128)
    assert flops.train_step(config, 64).model == usual
