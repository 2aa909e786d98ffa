"""A benchmark of characters: text8, or any text of 27 symbols. 12 layers of width 768, rows of 256 characters, 65.5 billion of them.

    python -m cdcd_jax.prepare --config=configs/text8.py --config.data.source=PATH/text8 --output=prepared/text8
    python -m cdcd_jax.train --config=configs/text8.py --workdir=runs/text8 --config.data.source=prepared/text8
    python -m cdcd_jax.evaluate --workdir=runs/text8 --split=test

text8 is the first 100 million characters of a cleaned Wikipedia, one file (mattmahoney.net/dc/text8.zip, to be unpacked; CC BY-SA). Its splits are by
character: 90, 5 and 5 million, of another text 90, 5 and 5 %. It is read as it is; --config.data.alphabet=27 makes 27 symbols of any other text.
Prepare: one token a character, 2 bytes of disk each, so 0.2 GB; the 74 million of novels27.py took 7 s on two cores (docs/RESULTS.md).
Published bounds are of the test split in chunks of 256, as these records are. The model has the size usual there; its recipe is the demo's, with the
learning rates and noise range of a longer run: choices, not results, for nothing of this size was trained here yet.
`--config=configs/text8.py:small` is the demo's own model and run, for two CPU cores; nothing need be prepared.
"""

import pathlib
import runpy

import ml_collections


def get_config(size: str = "base") -> ml_collections.ConfigDict:
    """size: "base", the benchmark's, or "small", the demo's."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("demo27.py")))["get_config"]()
    c.data.update(source="text8", alphabet="text", split="exact", valid_fraction=0.05, test_fraction=0.05)
    if size == "small":
        return c
    if size != "base":
        raise ValueError(f'the size must be "base" or "small", not {size!r}')
    c.data.sequence_length = 256
    c.model.update(num_layers=12, width=768, num_heads=12, mlp_width=3072, embedding_dim=32, scan_unroll=1, dtype="bfloat16")
    c.diffusion.sigma_max = 100.0
    c.train.update(num_steps=500_000, batch_size=512)
    c.optim.update(learning_rate=1e-3, embedding_learning_rate=1e-3, muon_learning_rate=0.01, warmup_steps=2000, ema_decay=0.9999)
    c.log.update(every_steps=100, probe_every_steps=5000)
    c.checkpoint.every_steps = 5000
    return c
