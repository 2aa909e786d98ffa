"""The demo's recipe on 27 symbols: the King James text as a-z and single spaces, digits spelled out, one token a character.

    python -m cdcd_jax.train --config=configs/demo27.py --workdir=runs/demo27

As long as the demo, ten minutes on two CPU cores; docs/RESULTS.md holds the bound that it reaches.
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """configs/demo.py, but for its text's alphabet and the tokenizer that goes with it."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("demo.py")))["get_config"]()
    c.data.update(alphabet="27", tokenizer="char")
    return c
