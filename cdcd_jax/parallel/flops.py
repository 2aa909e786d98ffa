"""Floating-point operations of a step: from the config alone, and, independently, by counting the matrix products of a traced program.

A product of [m, k] with [k, n] is 2 m k n operations; what is no matrix product is not counted, as is usual for MFU.
"""

import dataclasses
import math
from typing import Any

from jax.interpreters import partial_eval

from cdcd_jax.config import Config

FEATURES = 128  # units of the noise level's features and of both their layers (model/layers.py)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Of a step over the whole batch: `model` is what the method asks for, `recomputed` what model.remat adds to it, `optimizer` Muon's products."""

    model: int | float
    recomputed: int | float
    optimizer: int | float

    @property
    def total(self) -> int | float:
        """All that is really computed."""
        return self.model + self.recomputed + self.optimizer


def train_step(config: Config, vocab_size: int) -> Flops:
    """One train step: a forward and a backward pass on the batch, and with self-conditioning a forward pass on half of it before."""
    m, rows, length = config.model, config.train.batch_size, config.data.sequence_length
    forward = _forward(config, vocab_size, rows)
    levels = rows * (length if config.train.position_sigma_fraction > 0 else 1)
    no_input_gradient = 2 * levels * FEATURES**2 if m.sigma_conditioning else 0  # of sigma's features
    total = 3 * forward - no_input_gradient
    if config.train.self_conditioning:
        total += _forward(config, vocab_size, rows // 2) + _interpolation(config, vocab_size, rows // 2)
    return Flops(total, m.num_layers * _recomputed(config, rows), _optimizer(config))


def denoiser_calls(config: Config, vocab_size: int, rows: int, calls: int) -> int | float:
    """That many calls of the denoiser on `rows` sequences, as in sampling: all but the last also mix the embeddings into an estimate."""
    return calls * (_forward(config, vocab_size, rows) + _interpolation(config, vocab_size, rows)) - _interpolation(config, vocab_size, rows)


def _interpolation(config: Config, vocab_size: int, rows: int) -> int | float:
    return 2 * rows * config.data.sequence_length * vocab_size * config.model.embedding_dim


def _forward(config: Config, vocab_size: int, rows: int) -> int | float:
    """One pass of the network from its input to the logits."""
    m, tokens = config.model, rows * config.data.sequence_length
    levels = tokens if config.train.position_sigma_fraction > 0 else rows
    total = m.num_layers * sum(_block(config, rows).values())
    total += 2 * tokens * (3 * m.embedding_dim + 1) * m.width + 2 * tokens * m.width * vocab_size
    if m.sigma_conditioning:
        total += 2 * levels * FEATURES * (2 * FEATURES + 2 * m.width)  # the two layers, and the output's normalisation
    if m.output_prior or m.posterior_mean_input:
        total += _interpolation(config, vocab_size, rows)  # as many as the mixing: scores of all embeddings
    if m.posterior_mean_input:
        total += _interpolation(config, vocab_size, rows)
    return total


def _block(config: Config, rows: int) -> dict[str, int | float]:
    """The products of one layer, forward."""
    m, length = config.model, config.data.sequence_length
    tokens = rows * length
    levels = tokens if config.train.position_sigma_fraction > 0 else rows
    return {
        "qkv": 3 * 2 * tokens * m.width**2,
        "scores": 2 * tokens * length * m.width,
        "mix": 2 * tokens * length * m.width,
        "out": 2 * tokens * m.width**2,
        "up": 2 * tokens * m.width * m.mlp_width,
        "down": 2 * tokens * m.width * m.mlp_width,
        "modulation": 2 * 2 * levels * FEATURES * 2 * m.width if m.sigma_conditioning else 0,
    }


# What the backward pass computes again of a layer: all whose result some gradient needs and that is not kept (model/denoiser.py, KEPT).
AGAIN = {
    "none": (),
    "dots": ("scores", "mix"),
    "names": ("qkv", "scores", "up", "modulation"),
    "full": ("qkv", "scores", "mix", "out", "up", "modulation"),
}


def _recomputed(config: Config, rows: int) -> int | float:
    block = _block(config, rows)
    return sum(block[name] for name in AGAIN[config.model.remat])


def _optimizer(config: Config) -> int | float:
    """Muon's iterations on the matrices of the blocks; Adam has no products."""
    if config.optim.name != "muon":
        return 0.0
    m = config.model
    matrices = [(m.width, m.width)] * 4 + [(m.width, m.mlp_width)] * 2
    return m.num_layers * sum(_newton_schulz(min(shape), max(shape)) for shape in matrices)


def _newton_schulz(short: int, long: int, iterations: int = 4) -> int | float:
    """Products of the iterations that make a matrix [short, long] almost orthogonal (training/optim.py)."""
    return iterations * (2 * 2 * short * short * long + 2 * short**3)


def traced(jaxpr: Any) -> int | float:
    """The operations of all matrix products in a traced program (a ClosedJaxpr): what no result needs is left out, a scan counts by its length.

    Raises ValueError for a product in a loop without a length.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _products(needed)


def _products(jaxpr: Any) -> int | float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            continue
        inner = [_products(part) for value in params.values() for part in _inside(value)]
        if name == "while" and sum(inner):
            raise ValueError("a matrix product stands in a loop that does not say how often it turns.")
        total += max(inner, default=0.0) if name == "cond" else sum(inner) * (params["length"] if name == "scan" else 1)
    return total


def _inside(value: Any) -> list[Any]:
    """The programs that a parameter of an equation holds."""
    parts = value if isinstance(value, tuple | list) else [value]
    return [getattr(part, "jaxpr", part) for part in parts if hasattr(part, "eqns") or hasattr(part, "jaxpr")]
