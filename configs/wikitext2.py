"""WikiText-2, two million words of Wikipedia: the demo's model on words and pieces of them, on two CPU cores.

    python -m cdcd_jax.train --config=configs/wikitext2.py --workdir=runs/wikitext2 --config.data.source="wikitext2/{split}.txt"
    python -m cdcd_jax.evaluate --workdir=runs/wikitext2 --split=test

data.source names the standard three files, whose splits they are: tokenised words with <unk> for rare ones, as published (CC BY-SA; 2,088,628,
217,646 and 245,569 words with the ends of lines). They were wikitext-2-v1.zip (wiki.{train,valid,test}.tokens), and are now on the Hugging Face Hub:
Salesforce/wikitext, config wikitext-2-v1, has a row for each line. A split's rows one after the other, with a space and a line break for an empty
row, are its file; 36,718 of them for training. They are read as they stand, headings, <unk> and the spaces around punctuation included. The text
fits into memory: nothing need be prepared. If it is all the same (23 s on two cores that did other work as well, nearly all of it for the tokenizer):

    python -m cdcd_jax.prepare --config=configs/wikitext2.py --config.data.source="wikitext2/{split}.txt" --output=prepared/wikitext2

Published perplexities are per word: exp(nats per token x tokens / words), from the counts of tokens and words of the split (docs/TOKENIZERS.md).
No bound was measured here yet; so small a text is soon known by heart, and 2,200 steps read it about twice.
"""

import pathlib
import runpy

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """configs/demo.py on another text, with twice the pieces."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("demo.py")))["get_config"]()
    c.data.update(source="wikitext2/{split}.txt", vocab_size=4096)
    return c
