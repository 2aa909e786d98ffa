import pytest

from cdcd_jax.config import DataConfig
from cdcd_jax.data import pipeline
from tests import corpora


@pytest.fixture(scope="session")
def kjv() -> str:
    return corpora.load_text("kjv", "text")


@pytest.fixture(scope="session")
def kjv_corpus() -> pipeline.Corpus:
    return pipeline.load_corpus(DataConfig(source="kjv", vocab_size=512))
