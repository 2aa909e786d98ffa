"""OpenWebText: c4.py's model on long rows, 1,024 pieces of words.

    pip install datasets
    python -m cdcd_jax.prepare --config=configs/owt.py --output=prepared/owt
    python -m cdcd_jax.train --config=configs/owt.py --workdir=runs/owt --config.data.source=prepared/owt

data.source is `hf:Skylion007/openwebtext`, which the package `datasets` downloads from the Hub; a copy that `save_to_disk` has written is
--config.data.source=hf:FOLDER. The data set has no split but train, and no standard one: here half a percent of the documents, by a hash of their
text, are for validation and as many for the test, so that no document, and no copy of one, is on both sides. Bounds on other splits of OpenWebText
are of other documents: nearly comparable, in bits per character.
Documents are joined by a line break and cut every 1,024 tokens, a row of which may hold several.
Prepare was not measured on it, for it could not be fetched here; configs/c4.py has the cost of a gigabyte. Nothing of this size was trained here yet.
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """configs/c4.py, but for the text, its splits and the length."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("c4.py")))["get_config"]()
    c.data.update(source="hf:Skylion007/openwebtext", split="hash", valid_fraction=0.005, test_fraction=0.005, sequence_length=1024)
    c.train.num_steps = 125_000
    return c
