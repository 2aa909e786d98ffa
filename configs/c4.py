"""C4, English: text8.py's model, 12 layers of width 768, on rows of 256 pieces of words; 65.5 billion of them, as many as the paper's base model saw.

    tfds build c4/en --file_format=array_record --beam_pipeline_options=...
    python -m cdcd_jax.prepare --config=configs/c4.py --output=gs://BUCKET/c4 [--beam="--runner=DataflowRunner ..."]
    python -m cdcd_jax.train --config=configs/c4.py --workdir=gs://BUCKET/runs/c4 --config.data.source=gs://BUCKET/c4

data.source is `tfds:c4/en`, which TFDS generates from Common Crawl by Apache Beam, on many machines; where C4 is there already as files of JSON
lines, name those: --config.data.source='c4/en/c4-{split}.*.json.gz'. Its splits are C4's own, train and validation. Documents are joined by a line
break and cut into records every 256 tokens; the tokenizer is SentencePiece with 32,000 pieces, trained on a sample of the train split.
Prepare was not measured on C4, which nobody here could fetch. With a tokenizer given, 74 MB of English took 10 s on two cores that did other work as
well (docs/RESULTS.md): somewhat over two minutes a gigabyte. Whatever ends it, the same command goes on where it was.
Nothing of this size was trained here yet.
"""

import pathlib
import runpy

import ml_collections

from cdcd_jax.config import defaults


def get_config() -> ml_collections.ConfigDict:
    """configs/text8.py, but for what a vocabulary of 32,000 asks for."""
    c = runpy.run_path(str(pathlib.Path(__file__).with_name("text8.py")))["get_config"]()
    c.data = defaults().data
    c.data.update(source="tfds:c4/en", tokenizer="sentencepiece", vocab_size=32_000, sequence_length=256)
    c.model.embedding_dim = 64
    return c
