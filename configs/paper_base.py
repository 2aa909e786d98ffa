"""The paper's base language model, as in its ablations (Dieleman et al. 2022, sections 5 and 6): 147M parameters, 64 tokens, 1M steps.

    python -m cdcd_jax.prepare --config=configs/paper_base.py --output=prepared/c4_64
    python -m cdcd_jax.train --config=configs/paper_base.py --workdir=runs/paper_base --config.data.source=prepared/c4_64

The paper's text, MassiveText, is proprietary, so this is trained on C4, as the paper's large model was; configs/c4.py says where C4 comes from and
what prepare costs. With MassiveText the paper reports an AR-NLL of 4.392 at an entropy of 7.237 (its table 1); on another text nothing is comparable
but the shape of its tables. Hours are not stated.
Every option beyond the paper (docs/DESIGN.md, section 7) is off. What the paper leaves open is marked; section 11 there gives the reasons.
"""

import ml_collections

from cdcd_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The setting of the paper's base model."""
    c = defaults()
    c.data.update(source="tfds:c4/en", alphabet="text", tokenizer="sentencepiece", vocab_size=32_000, sequence_length=64)
    c.model.update(num_layers=8, width=1024, embedding_dim=256, embedding_std=0.001, sigma_conditioning=True)
    c.model.update(num_heads=16, mlp_width=4096)  # not stated for this model: 4 x width, and the large model's number of heads
    c.model.dtype = "bfloat16"  # not stated; of the matrix products only
    c.model.update(output_prior=False, posterior_mean_input=False, noisy_vector=False, convolution_width=0)
    c.diffusion.update(sigma_min=1.0, sigma_max=300.0, warp_axis="linear", warp_bins=100)
    c.diffusion.update(warp_floor=1e-3, warp_learning_rate=1e-2, warp_ema_decay=0.99)  # not stated: a "small constant", the rate, the average
    c.train.update(num_steps=1_000_000, batch_size=1024, self_conditioning=True, position_sigma_fraction=0.0)
    c.train.update(given_fraction=1.0, prefix_fraction=0.5, conditioning_dropout=0.1)
    c.optim.update(name="adam", learning_rate=1e-4, embedding_learning_rate=1e-4, b1=0.9, b2=0.99)
    c.optim.update(warmup_steps=0, decay="none", clip_norm=0.0)  # none is stated
    c.optim.ema_decay = 0.9999  # not stated; 0.0 samples from the weights themselves
    c.sample.update(num_steps=200, solver="euler", score_temperature=1.0, guidance=1.0, initial_noise_scale=1.0)
    c.log.update(every_steps=100, probe_every_steps=5000)
    c.checkpoint.every_steps = 5000
    return c
