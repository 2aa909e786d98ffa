"""The paper's large language model (Dieleman et al. 2022, sections 5 and 6.4): 1.31B parameters, 256 tokens, 600k steps on C4.

    python -m cdcd_jax.prepare --config=configs/paper_large.py --output=gs://BUCKET/c4_256
    python -m cdcd_jax.train --config=configs/paper_large.py --workdir=gs://BUCKET/runs/paper_large --config.data.source=gs://BUCKET/c4_256

configs/c4.py says where C4 comes from and what prepare costs; the records are the same as its own, so one folder serves both. The paper reports MAUVE
0.953 on prompts of C4's validation text at score temperature 0.99 and guidance 4 (its table 3). Hours are not stated.
Every option beyond the paper (docs/DESIGN.md, section 7) is off, as in paper_base, from which this differs in what is written here.
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The setting of the paper's 1.3B model: the base setting, wider, deeper, longer."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("paper_base.py")))["get_config"]()
    c.data.sequence_length = 256
    c.model.update(num_layers=24, width=2048, num_heads=16)
    c.model.mlp_width = 8192  # not stated: 4 x width
    c.train.update(num_steps=600_000, batch_size=2048)
    c.model.remat = "dots"  # changes memory and time only
    c.mesh.fsdp = -1
    return c
