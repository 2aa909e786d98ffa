"""A 1B-class model of this project's recipe: 1.08B parameters, 1,024 tokens, 100k steps of a million tokens.

    python -m cdcd_jax.plan  --config=configs/scale_1b.py --topology=v5e:16x16
    python -m cdcd_jax.train --config=configs/scale_1b.py --workdir=gs://bucket/scale_1b --config.data.source="gs://bucket/c4"

It was never trained here: no number is promised, and the rates are guesses to begin from. docs/RESULTS.md,
Plan, says on which topologies it was compiled, and fits. Of the options beyond the paper it has those that were worth most in the
demo's ablation, but Adam for Muon, whose iterations would gather all layers; a noise level at each position rules out the norms' conditioning on one.
"""

import ml_collections

from cdcd_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The paper's method at a billion parameters, with output prior, short convolution and a logarithmic warp."""
    c = defaults()
    c.data.update(source="c4/*.txt", tokenizer="sentencepiece", vocab_size=32_000, sequence_length=1024)
    c.model.update(num_layers=20, width=2048, num_heads=16, mlp_width=8192, embedding_dim=256, dtype="bfloat16", remat="dots")
    c.model.update(output_prior=True, convolution_width=5, sigma_conditioning=False)
    c.diffusion.update(warp_axis="log", warp_floor=0.01)
    c.train.update(num_steps=100_000, batch_size=1024, given_fraction=0.5, position_sigma_fraction=0.5)
    c.optim.update(learning_rate=3e-4, embedding_learning_rate=3e-4, warmup_steps=2000, decay="cosine", clip_norm=1.0)
    c.mesh.fsdp = -1
    c.log.update(every_steps=50, probe_every_steps=2000)
    c.checkpoint.every_steps = 1000
    return c
