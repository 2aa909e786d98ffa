"""A hundred English novels of 1838 to 1930 in text8's format, 67.5, 3.4 and 3.4 million characters, split by whole book: characters on a CPU.

    python -m cdcd_jax.train --config=configs/novels27.py --workdir=runs/novels27 --config.data.source="novels100_27/{split}.txt"
    python -m cdcd_jax.evaluate --workdir=runs/novels27 --split=test

The corpus is no part of the project: data.source names its three files, or any text in which {split} stands for train, valid and test. As it stands
this is the demo's recipe on 27 symbols, for two CPU cores, and nothing need be prepared. `--config=configs/novels27.py:base` is the model and length
of text8.py, to be trained on prepared data:

    python -m cdcd_jax.prepare --config=configs/novels27.py:base --config.data.source="novels100_27/{split}.txt" --output=prepared/novels27
    python -m cdcd_jax.train --config=configs/novels27.py:base --workdir=runs/novels27_base --config.data.source=prepared/novels27

Prepare took 7 s on two cores that did other work as well (docs/RESULTS.md), and 2 bytes of disk a character.
The format is text8's and the text is not: numbers published for text8 do not apply.
"""

import pathlib
import runpy

import ml_collections


def get_config(size: str = "small") -> ml_collections.ConfigDict:
    """configs/text8.py, but for the text and its splits."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("text8.py")))["get_config"](size)
    c.data.update(source="novels100_27/{split}.txt", split="auto", test_fraction=0.0)
    return c
