"""A 7B-class model of this project's recipe: 7.0B parameters, 1,024 tokens, 200k steps of a million tokens.

    python -m cdcd_jax.plan  --config=configs/scale_7b.py --topology=v5p:8x8x8
    python -m cdcd_jax.train --config=configs/scale_7b.py --workdir=gs://bucket/scale_7b --config.data.source="gs://bucket/c4"

It was never trained here: no number is promised, and the rates are guesses to begin from. docs/RESULTS.md,
Plan, says on which topologies it was compiled, and fits. It is scale_1b, wider and deeper.
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """scale_1b at seven billion parameters."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("scale_1b.py")))["get_config"]()
    c.model.update(num_layers=34, width=4096, num_heads=32, mlp_width=16_384, remat="full")
    c.train.num_steps = 200_000
    c.optim.update(learning_rate=1e-4, embedding_learning_rate=1e-4)
    return c
