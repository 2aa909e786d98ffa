"""The demo: a small CDCD on the King James text, from nothing to samples in about ten minutes on two CPU cores.

    python -m cdcd_jax.train --config=configs/demo.py --workdir=runs/demo
"""

import ml_collections

from cdcd_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """The paper's method, and all of the options beyond it (docs/DESIGN.md, section 7)."""
    c = defaults()
    c.data.vocab_size = 2048
    c.model.update(num_layers=4, width=128, num_heads=4, mlp_width=384, embedding_dim=32, scan_unroll=4, sigma_conditioning=False)
    c.model.update(output_prior=True, posterior_mean_input=True, noisy_vector=True, convolution_width=5)
    c.diffusion.update(sigma_min=0.45, sigma_max=30.0, warp_axis="log", warp_floor=0.01)
    c.train.update(num_steps=2200, batch_size=48, given_fraction=0.1, position_sigma_fraction=0.75)
    c.optim.update(name="muon", learning_rate=8e-3, embedding_learning_rate=6e-3, muon_learning_rate=0.02)
    c.optim.update(warmup_steps=50, decay="linear", ema_decay=0.99)
    c.checkpoint.every_steps = 500
    return c
