"""Generation: unconditional, from a prompt, or into a template's blanks."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdcd_jax.config import SampleConfig, UserError, did_you_mean
from cdcd_jax.diffusion import guidance, kernel, sampler
from cdcd_jax.diffusion.solvers import SOLVERS
from cdcd_jax.evaluation import templates
from cdcd_jax.evaluation.model import Model, denoise_of, warp_of
from cdcd_jax.training.progress import progress

BATCH = 16


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sequence: its text, its tokens, which of them were given, and what it cost (`nfe` denoiser calls of this one sequence)."""

    text: str
    tokens: list[int]
    fixed: list[bool]
    nfe: int
    seed: int
    prompt: str | None = None
    template: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """A line of samples.jsonl: without prompt or template where there is none."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def check(settings: SampleConfig) -> None:
    """Raises UserError for settings that no sampler has."""
    if settings.solver not in SOLVERS:
        raise UserError(f"unknown solver {settings.solver!r}{did_you_mean(settings.solver, SOLVERS)}.")
    if settings.num_steps < 1:
        raise UserError(f"num_steps must be at least 1, not {settings.num_steps}.")
    for name in ("score_temperature", "initial_noise_scale"):
        if not 0 < getattr(settings, name) < math.inf:
            raise UserError(f"{name} must be above 0 and finite, not {getattr(settings, name)}.")
    if not 0 <= settings.guidance < math.inf:
        raise UserError(f"guidance must be 0 or more (1 is none) and finite, not {settings.guidance}.")


def calls(settings: SampleConfig) -> int:
    """Denoiser calls for one sequence: the solver's steps and the final prediction, twice with guidance."""
    return (settings.num_steps * SOLVERS[settings.solver][1] + 1) * (1 if settings.guidance == 1 else 2)


def parts_of(prompt: str | None, template: str | None) -> list[str | int]:
    """What is given, as templates.parse has it; nothing for a free sample."""
    if prompt is not None and template is not None:
        raise UserError("give a prompt or a template, not both: a template may begin with text.")
    if template is not None:
        return templates.parse(template)
    return [] if prompt is None else [prompt]


def layout(model: Model, prompt: str | None, template: str | None) -> templates.Layout:
    """What is given of a sequence. Without a template all positions are used."""
    parts = parts_of(prompt, template)
    if template is not None:
        return templates.encode(parts, model.tokenizer, model.length, "template")
    if prompt is not None:
        return templates.encode(parts, model.tokenizer, model.length, "prompt")._replace(used=model.length)
    nothing = np.zeros(model.length, bool)
    return templates.Layout(np.zeros(model.length, np.int32), nothing, model.length, nothing)


def make_sampler(model: Model, settings: SampleConfig, candidates: int = 0) -> Any:
    """A jitted (params, tokens [B, L], given [B, L], keys [B], spaced) -> tokens [B, L]; with candidates > 0, -> the trajectory's Frames.

    spaced [B, L], or None for nowhere: the positions whose token must begin with a space.

    Each sequence has a key of its own, so that a sample does not depend on what is sampled beside it.
    """
    check(settings)
    solver, width = SOLVERS[settings.solver][0], model.config.model.embedding_dim
    begin = jnp.asarray(templates.beginnings(model.tokenizer))

    def step(*arguments: Any) -> Any:
        return solver(*arguments, temperature=settings.score_temperature)

    @jax.jit
    def run(params: Any, tokens: jax.Array, given: jax.Array, keys: jax.Array, spaced: jax.Array | None = None) -> Any:
        batch, length = tokens.shape
        noise = settings.initial_noise_scale * jax.vmap(lambda key: jax.random.normal(key, (length, width)))(keys)
        if settings.guidance == 1:
            denoise = denoise_of(model, params, tokens, given, jnp.ones(batch, bool))
        else:
            tokens_twice, given_twice = (jnp.concatenate([a, a]) for a in (tokens, given))
            pair = denoise_of(model, params, tokens_twice, given_twice, jnp.arange(2 * batch) < batch)
            denoise = guidance.classifier_free(pair, settings.guidance)
        if spaced is not None:
            denoise = guidance.restricted(denoise, kernel.normalise(params["embeddings"]["table"]), spaced, begin)
        warp, step_key = warp_of(model, params), jax.random.fold_in(keys[0], 1)
        if candidates:
            return sampler.trajectory(denoise, warp, step, noise, given, step_key, settings.num_steps, candidates)
        return sampler.sample(denoise, warp, step, noise, given, tokens, step_key, settings.num_steps)

    return run


def keys_for(seed: int, start: int, count: int) -> jax.Array:
    """The keys of samples start .. start + count - 1 under a seed."""
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(start, start + count))


def generate(
    model: Model, run: Any, settings: SampleConfig, num_samples: int, seed: int, prompt: str | None = None, template: str | None = None
) -> list[Sample]:
    """num_samples sequences from a sampler of make_sampler. A template's text ends where the template ends."""
    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1, not {num_samples}.")
    tokens, given, used, spaced = layout(model, prompt, template)
    batch = min(num_samples, BATCH)
    rows = [jnp.asarray(np.broadcast_to(a, (batch, model.length))) for a in (tokens, given, spaced)]
    where = rows[2] if spaced.any() else None
    sequences: list[np.ndarray] = []
    with progress(num_samples, "sampling") as bar:
        for start in range(0, num_samples, batch):
            began = time.monotonic()
            sequences += list(np.asarray(run(model.params, *rows[:2], keys_for(seed, start, batch), where)))
            bar.update(min(start + batch, num_samples), f"{batch * model.length / (time.monotonic() - began):,.0f} tokens/s")
    return [
        Sample(
            text=templates.without_added_space(model.tokenizer.decode(sequence[:used].tolist()), parts_of(prompt, template)),
            tokens=sequence[:used].tolist(),
            fixed=given[:used].tolist(),
            nfe=calls(settings),
            seed=seed,
            prompt=prompt,
            template=template,
        )
        for sequence in sequences[:num_samples]
    ]


def trajectory(
    model: Model, settings: SampleConfig, seed: int, prompt: str | None, template: str | None, frames: int, candidates: int
) -> dict[str, Any]:
    """One sequence's path from noise to text as trajectory.json holds it: `frames` of its steps, with each position's likeliest candidates."""
    tokens, given, used, spaced = layout(model, prompt, template)
    run = make_sampler(model, settings, candidates)
    where = jnp.asarray(spaced[None]) if spaced.any() else None
    seen = run(model.params, jnp.asarray(tokens[None]), jnp.asarray(given[None]), keys_for(seed, 0, 1), where)
    chosen = np.unique(np.linspace(0, settings.num_steps, frames).astype(int))
    final = np.where(given, tokens, np.asarray(seen.candidates[-1, 0, :, 0]))[:used]
    piece = model.tokenizer.piece

    def frame(index: int) -> dict[str, Any]:
        shown = np.asarray(seen.candidates[index, 0, :used])
        return {
            "sigma": float(seen.sigma[index]),
            "u": float(seen.u[index]),
            "tokens": [[piece(int(i)) for i in row] for row in shown],
            "probabilities": np.asarray(seen.probabilities[index, 0, :used]).round(4).tolist(),
            "entropy": np.asarray(seen.entropy[index, 0, :used]).round(4).tolist(),
        }

    return {
        "text": templates.without_added_space(model.tokenizer.decode(final.tolist()), parts_of(prompt, template)),
        "pieces": [piece(int(i)) for i in final],
        "fixed": given[:used].tolist(),
        "template": template or prompt or "",
        "frames": [frame(int(index)) for index in chosen],
    }
