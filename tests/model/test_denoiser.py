"""The denoiser as a whole: it hears everything, starts at the output prior, and each option changes what it should and nothing else."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cdcd_jax.diffusion import kernel
from cdcd_jax.model.denoiser import Denoiser

V, B, L, D, W = 7, 2, 6, 3, 16
BASE: dict[str, Any] = dict(
    vocab_size=V, num_layers=2, width=W, num_heads=2, mlp_width=16, convolution_width=0, sigma_conditioning=True, noisy_vector=False,
    scan_unroll=1, dtype=jnp.dtype("float32"),
)  # fmt: skip
SIGMA = jnp.array([[0.7], [3.0]])
FLAG = 2 * D
QUICK = {"xla_backend_optimization_level": 0}  # half of the compile time; what runs here is tiny


@functools.cache
def network(**changes: Any) -> tuple[Any, Any]:
    """(jitted apply, initial parameters) of the base model with some settings changed."""
    module = Denoiser(**{**BASE, **changes})
    params = jax.jit(module.init, compiler_options=QUICK)(jax.random.key(0), jnp.zeros((1, L, 3 * D + 1)), jnp.ones((1, 1)))["params"]
    return jax.jit(lambda params, features, sigma: module.apply({"params": params}, features, sigma), compiler_options=QUICK), params


def shapes(params: Any) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_every_output_hears_every_input(features: Array, away: Any) -> None:
    """Attention is bidirectional: gradients of each output position by each input position, both ways, and no other sequence's."""
    params = away(network()[1])
    jacobian = jax.jit(jax.jacrev(lambda f: Denoiser(**BASE).apply({"params": params}, f, SIGMA)[..., 0]), compiler_options=QUICK)(features)
    heard = np.abs(np.asarray(jacobian)).sum(axis=-1).transpose(0, 2, 1, 3)  # from [B, L, B, L, F]
    assert heard[0, 0].min() > 1e-6 and heard[1, 1].min() > 1e-6
    assert not heard[0, 1].any() and not heard[1, 0].any()


def test_before_training_the_logits_are_the_output_priors(features: Array) -> None:
    """The head starts at zero: uniform without the output prior, and with it the local posterior's at noisy positions."""
    apply, params = network()
    np.testing.assert_array_equal(apply(params, features, SIGMA), 0.0)
    table = kernel.normalise(jax.random.normal(jax.random.key(1), (V, D)))
    log_prior, given = jax.nn.log_softmax(jnp.arange(7.0)), jnp.zeros((B, L), bool).at[0, 2].set(True)
    x, sigma = jax.random.normal(jax.random.key(2), (B, L, D)), SIGMA[:, 0]
    for options in (kernel.Options(), kernel.Options(output_prior=True)):
        denoise = kernel.make_denoise(functools.partial(apply, params), table, given, jnp.zeros_like(x), log_prior, options)
        local = kernel.local_posterior(x, sigma, table, log_prior)
        wanted = np.where(given[..., None], 0, local.logits) if options.output_prior else np.zeros((B, L, V))
        np.testing.assert_array_equal(denoise(x, sigma, jnp.zeros_like(x)).logits, wanted)


def test_unrolling_the_scan_changes_nothing(features: Array, away: Any) -> None:
    (rolled, params), (unrolled, other) = network(), network(scan_unroll=2)
    jax.tree.map(np.testing.assert_array_equal, params, other)
    params = away(params)
    np.testing.assert_allclose(rolled(params, features, SIGMA), unrolled(params, features, SIGMA), rtol=1e-5, atol=1e-5)


def test_layers_have_parameters_of_their_own() -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(network()[1]["blocks"]):
        assert leaf.shape[0] == 2
        assert not np.asarray(leaf).any() or np.ptp(np.asarray(leaf), axis=0).max() > 0, path


def test_one_level_per_sequence_is_the_same_level_at_all_positions(features: Array, away: Any) -> None:
    apply, params = network()
    params = away(params)
    everywhere = apply(params, features, jnp.broadcast_to(SIGMA, (B, L)))
    np.testing.assert_allclose(apply(params, features, SIGMA), everywhere, rtol=1e-4, atol=1e-4)


def test_outputs_depend_on_sigma_if_and_only_if_they_are_conditioned_on_it(features: Array, away: Any) -> None:
    for on in (True, False):
        apply, params = network(sigma_conditioning=on)
        params = away(params)
        difference = np.abs(np.asarray(apply(params, features, SIGMA) - apply(params, features, SIGMA * 1.3)))
        assert difference.min() > 0 if on else difference.max() == 0


def test_sigma_conditioning_is_in_the_parameters_when_it_is_on() -> None:
    on, off = shapes(network()[1]), shapes(network(sigma_conditioning=False)[1])
    assert {name.split("/")[0] for name in on.keys() - off.keys()} == {"sigma_features", "blocks", "output_norm"}
    assert all(name.startswith("sigma_features") or "modulation" in name for name in on.keys() - off.keys())
    assert all("norm/norm/" in name for name in off.keys() - on.keys())


@pytest.mark.parametrize(
    ("change", "added"),
    [
        ({"noisy_vector": True}, {"noisy_vector": (W,)}),
        ({"convolution_width": 5}, {"blocks/convolution/kernel": (2, 5, W)}),
    ],
    ids=["noisy_vector", "convolution_width"],
)
def test_an_option_adds_its_parameters_and_changes_no_other(
    change: dict[str, Any], added: dict[str, tuple[int, ...]], features: Array, away: Any
) -> None:
    """All other parameters start at the same values; and with what was added at zero the network is the base one."""
    (base, without), (apply, params) = network(), network(**change)
    assert shapes(params) == shapes(without) | added
    same = {name: params[name] for name in without} | {"blocks": {name: params["blocks"][name] for name in without["blocks"]}}
    jax.tree.map(np.testing.assert_array_equal, same, without)
    here = away(without)
    blocks = here["blocks"] | ({"convolution": {"kernel": jnp.zeros((2, 5, W))}} if "convolution_width" in change else {})
    zeroed = here | {"blocks": blocks} | ({"noisy_vector": jnp.zeros(W)} if "noisy_vector" in change else {})
    wanted = base(here, features, SIGMA)
    np.testing.assert_allclose(apply(zeroed, features, SIGMA), wanted, rtol=1e-5, atol=1e-5)
    convolution = {"blocks": blocks | {"convolution": {"kernel": jnp.ones((2, 5, W))}}}
    set_on = zeroed | ({"noisy_vector": jnp.linspace(-1.0, 1.0, W)} if "noisy_vector" in change else convolution)
    assert np.abs(np.asarray(apply(set_on, features, SIGMA) - wanted)).max() > 1e-2


def test_the_noisy_vector_is_added_at_noisy_positions_alone(features: Array, away: Any) -> None:
    """The residual stream at a given position is that without the vector: with everything given, the vector does nothing."""
    apply, params = network(noisy_vector=True)
    params = away(params)
    other = params | {"noisy_vector": params["noisy_vector"] + jnp.linspace(-1.0, 1.0, W)}
    given = features.at[..., FLAG].set(0.0)
    np.testing.assert_array_equal(apply(params, given, SIGMA), apply(other, given, SIGMA))
    assert np.abs(np.asarray(apply(params, features, SIGMA) - apply(other, features, SIGMA))).max() > 1e-3


def test_bfloat16_stays_near_and_the_kernels_logits_are_float32(features: Array, away: Any) -> None:
    (single, params), (half, other) = network(), network(dtype=jnp.dtype("bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(other))
    jax.tree.map(np.testing.assert_array_equal, params, other)
    params = away(params)
    wanted, near = np.asarray(single(params, features, SIGMA)), np.asarray(half(params, features, SIGMA), np.float32)
    assert half(params, features, SIGMA).dtype == jnp.bfloat16
    assert 0 < np.abs(near - wanted).max() < 0.05 * np.abs(wanted).max()
    x = features[..., :D]
    table = kernel.normalise(jax.random.normal(jax.random.key(1), (V, D)))
    denoise = kernel.make_denoise(functools.partial(half, params), table, jnp.zeros((B, L), bool), jnp.zeros_like(x), jnp.zeros(V), kernel.Options())
    denoised = denoise(x, SIGMA[:, 0], jnp.zeros_like(x))
    assert denoised.logits.dtype == jnp.float32 and denoised.x0.dtype == jnp.float32
