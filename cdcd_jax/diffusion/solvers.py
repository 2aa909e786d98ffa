"""Solvers of the probability-flow ODE dx/dsigma = (x - x0) / sigma, one step from sigma to a lower sigma_next (paper, eq. 5 and section 6).

Every solver has one signature: `step(denoise, carry, sigma, sigma_next, key) -> carry`, sigma [B]; the keyword `temperature` divides the score
(below 1: sharper samples). It is here rather than in a wrapped denoiser because self-conditioning must be fed the untempered x0, which the carry
holds. No model, no config, no jit. State is float32.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from cdcd_jax.diffusion.kernel import Denoise, drift


class Carry(NamedTuple):
    """The sampler's state: the noisy sequence `x` and the last estimate `x0`, both [B, L, D]."""

    x: Float[Array, "B L D"]
    x0: Float[Array, "B L D"]


SolverStep = Callable[..., Carry]


def euler(denoise: Denoise, carry: Carry, sigma: Array, sigma_next: Array, key: PRNGKeyArray, temperature: float = 1.0) -> Carry:
    """Euler's method, one denoiser call; the paper's choice. Deterministic: the key is not used."""
    del key
    x0 = denoise(carry.x, sigma, carry.x0).x0
    return Carry(carry.x + (sigma_next - sigma)[:, None, None] * drift(carry.x, x0, sigma) / temperature, x0)


def heun(denoise: Denoise, carry: Carry, sigma: Array, sigma_next: Array, key: PRNGKeyArray, temperature: float = 1.0) -> Carry:
    """Heun's method, two denoiser calls, second order. The second call is fed the first's estimate (paper, section 6)."""
    first = euler(denoise, carry, sigma, sigma_next, key, temperature)
    second_x0 = denoise(first.x, sigma_next, first.x0).x0
    slope = 0.5 * (drift(carry.x, first.x0, sigma) + drift(first.x, second_x0, sigma_next)) / temperature
    return Carry(carry.x + (sigma_next - sigma)[:, None, None] * slope, second_x0)


# name: (the step, denoiser calls in a step)
SOLVERS: dict[str, tuple[SolverStep, int]] = {"euler": (euler, 1), "heun": (heun, 2)}
