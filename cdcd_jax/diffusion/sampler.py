"""Sampling: one scan of a solver step over the warped grid, then a final prediction (paper, section 6 and appendix A.5).

Purely functional: a denoiser, a warp and a key in; tokens out. The state stays a superposition of embeddings until the last call.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cdcd_jax.diffusion.kernel import Denoise
from cdcd_jax.diffusion.solvers import Carry, SolverStep
from cdcd_jax.diffusion.warp import Warp


class Frames(NamedTuple):
    """What is seen along a trajectory of F frames, the last one the final prediction: per position the most probable candidates."""

    sigma: Float[Array, "F"]
    u: Float[Array, "F"]
    candidates: Int[Array, "F B L K"]
    probabilities: Float[Array, "F B L K"]
    entropy: Float[Array, "F B L"]  # nats


def grid(warp: Warp, num_steps: int) -> Float[Array, "{num_steps}+1"]:
    """The N + 1 noise levels of N steps: F^-1 of u evenly spaced from 1 to 0, so from sigma_max down to sigma_min."""
    return warp.sigma(jnp.linspace(1.0, 0.0, num_steps + 1))


def integrate(
    denoise: Denoise,
    warp: Warp,
    step: SolverStep,
    noise: Float[Array, "B L D"],
    given: Bool[Array, "B L"],
    key: PRNGKeyArray,
    num_steps: int,
) -> Carry:
    """Solves the ODE from x = sigma_max * noise down to sigma_min in num_steps steps. x at given positions is zero and stays so."""
    return _observed(denoise, warp, step, noise, given, key, num_steps, lambda *_: None)[0]


def _observed(
    denoise: Denoise, warp: Warp, step: SolverStep, noise: Array, given: Array, key: PRNGKeyArray, num_steps: int, look: Callable[[Carry, Array], Any]
) -> tuple[Carry, Any]:
    """The end of the path, and what `look(carry, sigma [B])` saw before each step, stacked."""
    noisy = ~given[..., None]
    levels = jnp.broadcast_to(grid(warp, num_steps)[:, None], (num_steps + 1, noise.shape[0]))

    def body(carry: Carry, now: tuple[Array, Array, Array]) -> tuple[Carry, Any]:
        sigma, sigma_next, step_key = now
        seen = look(carry, sigma)
        after = step(denoise, carry, sigma, sigma_next, step_key)
        return Carry(after.x * noisy, after.x0), seen

    start = Carry(levels[0][:, None, None] * noise * noisy, jnp.zeros_like(noise))
    return jax.lax.scan(body, start, (levels[:-1], levels[1:], jax.random.split(key, num_steps)))


def sample(
    denoise: Denoise,
    warp: Warp,
    step: SolverStep,
    noise: Float[Array, "B L D"],
    given: Bool[Array, "B L"],
    tokens: Int[Array, "B L"],
    key: PRNGKeyArray,
    num_steps: int,
) -> Int[Array, "B L"]:
    """Samples token sequences; where `given` is True the answer is `tokens`, untouched. `noise` is standard normal times the initial noise scale.

    num_steps solver steps and one final prediction at sigma_min, whose most probable tokens are the answer.
    """
    carry = integrate(denoise, warp, step, noise, given, key, num_steps)
    logits = denoise(carry.x, jnp.full(noise.shape[:1], warp.sigma_min), carry.x0).logits
    return jnp.where(given, tokens, jnp.argmax(logits, axis=-1).astype(tokens.dtype))


def trajectory(
    denoise: Denoise,
    warp: Warp,
    step: SolverStep,
    noise: Float[Array, "B L D"],
    given: Bool[Array, "B L"],
    key: PRNGKeyArray,
    num_steps: int,
    num_candidates: int,
) -> Frames:
    """The same path as `sample`, seen from inside: what the model believes of each token at every step, before it is moved.

    Costs one more denoiser call for every step. Given positions show what the model would predict there; the caller knows the truth.
    """

    def look(carry: Carry, sigma: Array) -> tuple[Array, Array, Array]:
        log_p = jax.nn.log_softmax(denoise(carry.x, sigma, carry.x0).logits, axis=-1)
        best, candidates = jax.lax.top_k(log_p, num_candidates)
        return candidates, jnp.exp(best), -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    carry, frames = _observed(denoise, warp, step, noise, given, key, num_steps, look)
    last = look(carry, jnp.full(noise.shape[:1], warp.sigma_min))
    whole = [jnp.concatenate([a, b[None]]) for a, b in zip(frames, last, strict=True)]
    return Frames(grid(warp, num_steps), jnp.linspace(1.0, 0.0, num_steps + 1), *whole)
