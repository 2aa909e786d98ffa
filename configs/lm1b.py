"""LM1B, the One Billion Word benchmark: c4.py's model on 128 pieces of words, wrapped, or one sentence a row.

    python -m cdcd_jax.prepare --config=configs/lm1b.py --output=prepared/lm1b
    python -m cdcd_jax.train --config=configs/lm1b.py --workdir=runs/lm1b --config.data.source=prepared/lm1b

Wrapped, as it stands here: sentences are joined by a line break and cut every 128 tokens, so a row holds several sentences and pieces of two more, in
a shuffled order: they have nothing to do with each other. Unwrapped (`--config=configs/lm1b.py:unwrapped`, for prepare and for train, into another
folder): a row is one sentence, or a piece of a very long one, filled up with padding that counts for nothing and is seen by no word. The two have
different perplexities: wrapped, words see those of other sentences, and the ends of sentences are predicted as well. Say which it is.

`tfds:lm1b` downloads 1.8 GB (1,792,209,805 bytes from www.statmt.org) and has two splits; its test split, the benchmark's held-out files, is what is
held out here. Of files with a sentence a line of your own make JSON lines first (docs/DATA.md): a file of text is one document.
Published perplexities are per token of other tokenizers, BERT's as a rule: only bits per character can be compared with ours.
Prepare was not measured on it, for it could not be fetched here; configs/c4.py has the cost of a gigabyte. Nothing of this size was trained here yet.
"""

import pathlib
import runpy

import ml_collections


def get_config(form: str = "wrapped") -> ml_collections.ConfigDict:
    """form: "wrapped" or "unwrapped"."""
    if form not in ("wrapped", "unwrapped"):
        raise ValueError(f'the form must be "wrapped" or "unwrapped", not {form!r}')
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("c4.py")))["get_config"]()
    c.data.update(source="tfds:lm1b", valid_split="test", sequence_length=128, packing="wrap" if form == "wrapped" else "pad")
    c.train.num_steps = 1_000_000
    return c
