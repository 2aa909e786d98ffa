"""Sharding rules: the first regex that matches a parameter's path gives its PartitionSpec; averages and optimiser state follow their parameter."""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Paths are joined with "/". Blocks have a leading axis of layers. FSDP shards an input axis, tensor parallelism heads and hidden units.
RULES: tuple[tuple[str, P], ...] = (
    (r"embeddings/table$", P("fsdp", None)),
    (r"warp/(axis|entropy)_logits$", P()),
    (r"blocks/attention/qkv$", P(None, "fsdp", None, "tensor")),
    (r"blocks/attention/out/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/up/kernel$", P(None, "fsdp", "tensor")),
    (r"blocks/up/bias$", P(None, "tensor")),
    (r"blocks/down/kernel$", P(None, "tensor", "fsdp")),
    (r"blocks/.*(bias|scale)$", P()),
    (r"blocks/.*_norm/modulation/kernel$", P(None, None, "fsdp")),
    (r"blocks/convolution/kernel$", P()),
    (r"output_norm/modulation/kernel$", P(None, "fsdp")),
    (r"output_norm/.*(bias|scale)$", P()),
    (r"denoiser/input/kernel$", P(None, "fsdp")),
    (r"denoiser/head/kernel$", P("fsdp", "tensor")),
    (r"denoiser/(input|head)/bias$", P()),
    (r"denoiser/noisy_vector$", P()),
    (r"sigma_features/", P()),
    (r"(^|/)(step|count|ns_coeffs|log_prior)$", P()),
)


def path_name(path: tuple) -> str:
    """A pytree path as names joined with "/"."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of the first rule that matches. An axis that its mesh axis does not divide is replicated. Raises KeyError without a match."""
    for pattern, spec in RULES:
        if re.search(pattern, name):
            axes = tuple(spec) + (None,) * (len(shape) - len(tuple(spec)))
            return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=True)))
    raise KeyError(f"no sharding rule matches the parameter {name!r} of shape {shape}; add one to RULES in parallel/sharding.py")


def shardings(abstract: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf of a pytree of arrays or jax.ShapeDtypeStruct."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: NamedSharding(mesh, spec_for(path_name(path), leaf.shape, mesh)), abstract)
