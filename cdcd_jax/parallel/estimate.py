"""Memory, traffic and communication of a train step, estimated from the config: for hardware that none can compile for here, and to find what fits.

What is stored between steps is exact; the rest counts the large arrays and leaves out what the compiler makes of them (docs/DESIGN.md, 15).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from cdcd_jax.config import Config
from cdcd_jax.parallel.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes of one chip: `activations` are what a step holds beside its state, gradients included; `traffic` what it moves through memory."""

    activations: int | float
    traffic: int | float
    collectives: list[Collective]


def stored(abstract: Any, shardings: Any) -> float:
    """Bytes that a chip holds of a pytree of shapes, laid out like this."""
    leaves = zip(jax.tree.leaves(abstract), jax.tree.leaves(shardings, is_leaf=lambda s: isinstance(s, NamedSharding)), strict=True)
    return float(sum(math.prod(where.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, where in leaves))


def train_step(config: Config, vocab_size: int, mesh: Mapping[str, int], parameters: float, slices: int = 1) -> Estimate:
    """The estimate for a mesh of this shape; `parameters` is how many the whole model has, `slices` how many slices the data axis spans."""
    m, parts = config.model, config.train.accumulation_steps
    width = 2 if m.dtype == "bfloat16" else 4
    data, fsdp, tensor = (mesh[name] for name in ("data", "fsdp", "tensor"))
    tokens = config.train.batch_size * config.data.sequence_length / (data * fsdp) / parts  # of a chip, at a time
    shard = 4 * parameters / (fsdp * tensor)
    head, table = m.width * vocab_size / tensor, vocab_size * m.embedding_dim
    blocks = (parameters - m.width * vocab_size - table) / tensor
    layer = blocks / m.num_layers
    logits = tokens * vocab_size / tensor
    block_arrays = _block_bytes(config, width)
    gathered = 2 * width * (layer + head) + 8 * table if fsdp > 1 else width * (blocks + head) + 4 * table
    activations = (
        shard * (1 if parts == 1 else 2)
        + tokens * m.num_layers * _kept_bytes(config, width)
        + logits * (4 + 2 * width) * (2 if m.output_prior else 1)
        + tokens * block_arrays / 2
        + gathered
    )
    passes = 1 + (1 if config.train.self_conditioning else 0) + 1  # forward, forward on the half, backward with what it computes again
    work = 3 + (0.5 if config.train.self_conditioning else 0) + (0 if m.remat == "none" else 1)
    traffic = (
        10 * shard
        + parts * passes * 2 * width * (blocks + head)
        + parts * work * (tokens * m.num_layers * block_arrays + 4 * logits * (2 if m.output_prior else 1))
    )
    return Estimate(activations, traffic, _collectives(config, mesh, slices, width, parts, passes, blocks, head, table, tokens))


def _kept_bytes(config: Config, width: int) -> int | float:
    """Bytes for a token that one layer keeps for its backward pass: the outputs of the scan over layers in the traced step."""
    m, length = config.model, config.data.sequence_length
    return {
        "full": 4 * m.width,
        "names": 8 * m.width + width * m.width,
        "dots": 4 * m.width + 4 * width * m.width + width * m.mlp_width,
        "none": (24 + 6 * width) * m.width + 6 * width * m.mlp_width + m.num_heads * length * (4 + width),
    }[m.remat]


def _block_bytes(config: Config, width: int) -> int | float:
    """Bytes for a token that pass through memory in one layer's forward pass: what its products take and yield, the residual stream, the scores."""
    m, length = config.model, config.data.sequence_length
    return (24 + 14 * width) * m.width + 4 * width * m.mlp_width + m.num_heads * length * (8 + 2 * width)


def _collectives(
    config: Config, mesh: Mapping[str, int], slices: int, width: int, parts: int, passes: int, blocks: float, head: float, table: int, tokens: float
) -> list[Collective]:
    data, fsdp, tensor = (mesh[name] for name in ("data", "fsdp", "tensor"))
    layers, weights = config.model.num_layers, width * (blocks + head)
    found = []

    def add(kind: str, axis: str, size: int | float, members: int, count: int | float, network: bool = False) -> None:
        if members > 1:
            sent = size * (members - 1) / members * (2 if kind == "all-reduce" else 1)
            found.append(Collective(kind, axis, size, sent, count, network))

    add("all-gather", "fsdp", parts * passes * weights + 4 * table, fsdp, parts * passes * layers * 6)
    add("reduce-scatter", "fsdp", parts * weights + 4 * table, fsdp, parts * layers * 6)
    shard = (parts * weights + 4 * table) / fsdp
    add("all-reduce", "data", shard, data // slices, parts * layers * 6)
    add("all-reduce", "data", shard, slices, parts * layers * 6, network=True)
    again = 0 if config.model.remat == "none" else 1
    sums = 2 * (1 + (0.5 if config.train.self_conditioning else 0) + 1 + again)  # of attention and feed-forward, each way
    add("all-reduce", "tensor", parts * layers * sums * tokens * config.model.width * width, tensor, parts * layers * sums)
    return found
