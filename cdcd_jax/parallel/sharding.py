"""Sharding rules: the first pattern that matches a parameter's path gives its PartitionSpec; averages and optimiser state follow their parameter."""

import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cdcd_jax.config import Config

Rule = tuple[str, P]


def rules(config: Config) -> list[Rule]:
    """The rules for what this config's training state holds, in order; paths are joined with "/".

    Tensor parallelism splits heads, hidden units and the vocabulary. FSDP stores every array in parts, down to the biases: next to a hundredth of
    the whole on each of 256 devices, even they would count. Below "blocks" a spec gives the axes of one layer; the leading axis, of layers, stays
    whole, because the scan over layers takes one after the other.
    """
    m = config.model
    rows, columns, vector = P("tensor", "fsdp"), P("fsdp", "tensor"), P("fsdp")
    split_vector, whole = P(("tensor", "fsdp")), P()
    if m.sigma_conditioning:
        norm = [(r"_norm/modulation/kernel$", P(None, "fsdp")), (r"_norm/modulation/bias$", vector)]
        norm += [(r"sigma_features/(first|second)/kernel$", P(None, "fsdp")), (r"sigma_features/(first|second)/bias$", vector)]
    else:
        norm = [(r"_norm/norm/(scale|bias)$", vector)]
    return [
        (r"embeddings/table$", P(("tensor", "fsdp"), None)),
        (r"warp/(axis|entropy)_logits$", whole),
        (r"denoiser/input/kernel$", P(None, "fsdp")),
        (r"denoiser/input/bias$", vector),
        *([(r"denoiser/noisy_vector$", vector)] if m.noisy_vector else []),
        (r"blocks/attention/qkv$", P("fsdp", None, "tensor")),
        (r"blocks/attention/out/kernel$", rows),
        (r"blocks/up/kernel$", columns),
        (r"blocks/up/bias$", split_vector),
        (r"blocks/down/kernel$", rows),
        (r"blocks/down/bias$", vector),
        *([(r"blocks/convolution/kernel$", P(None, "fsdp"))] if m.convolution_width else []),
        *norm,
        (r"denoiser/head/kernel$", columns),
        (r"denoiser/head/bias$", split_vector),
        (r"(^|/)step$", whole),
        (r"(^|/)count$", whole),
        (r"(^|/)ns_coeffs$", whole),  # Muon's, which is there even where it has no parameter to move
        (r"^log_prior$", whole),
    ]


def path_name(path: tuple) -> str:
    """A pytree path as names joined with "/"."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def fit(spec: P, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """The spec without what the shape forbids.

    A mesh axis that does not divide its dimension is left out there. FSDP, which only stores, then goes to the largest other dimension that it
    divides: a table of 27 symbols is split along the embedding. Where there is none, the array lies whole on all devices of that axis.
    """
    kept: list[tuple[str, ...]] = [() for _ in shape]

    def divides(axis: str, dimension: int) -> bool:
        return shape[dimension] % math.prod(mesh.shape[name] for name in (*kept[dimension], axis)) == 0

    wanted = [(axis, dimension) for dimension, entry in enumerate(spec) for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]
    for axis, dimension in wanted:
        if divides(axis, dimension):
            kept[dimension] += (axis,)
    if any(axis == "fsdp" for axis, _ in wanted) and not any("fsdp" in axes for axes in kept):
        others = [dimension for dimension in range(len(shape)) if divides("fsdp", dimension)]
        if others:
            kept[max(others, key=lambda dimension: shape[dimension])] += ("fsdp",)
    return P(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in kept))


def gathered(sharding: NamedSharding) -> NamedSharding:
    """Where an array lies once FSDP's parts of it are put together."""
    kept = [tuple(axis for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis != "fsdp") for entry in sharding.spec]
    return NamedSharding(sharding.mesh, P(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in kept)))


def shardings(config: Config, abstract: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A NamedSharding for each leaf of the config's training state, a pytree of arrays or jax.ShapeDtypeStruct.

    Raises ValueError for a leaf that no rule matches, and for a rule that is the first to match no leaf: model and rules have then come apart.
    """
    table = rules(config)
    unused = {pattern for pattern, _ in table}

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in table:
            if re.search(pattern, name):
                unused.discard(pattern)
                stacked = "blocks" in name.split("/")
                fitted = fit(spec, leaf.shape[stacked:], mesh)
                return NamedSharding(mesh, P(None, *fitted) if stacked else fitted)
        raise ValueError(f"no sharding rule matches the parameter {name!r} of shape {leaf.shape}: add one to rules() in parallel/sharding.py.")

    tree = jax.tree_util.tree_map_with_path(sharding, abstract)
    if unused:
        raise ValueError(f"the sharding rules {sorted(unused)} match nothing in this state: mend or delete them in parallel/sharding.py.")
    return tree
