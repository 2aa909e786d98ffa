"""The whole method at once: what learns eight sentences by heart must then write them, and nothing else."""

import collections

import jax
import numpy as np

from cdcd_jax.data.pipeline import Windows
from cdcd_jax.evaluation import generate
from cdcd_jax.evaluation.metrics import nll
from tests import tiny


def test_it_samples_the_sentences_back() -> None:
    model = tiny.overfitted()
    run = generate.make_sampler(model, model.config.sample)
    texts = collections.Counter(sample.text for sample in generate.generate(model, run, model.config.sample, 64, seed=1))
    known = {text: count for text, count in texts.items() if text in tiny.SENTENCES}
    assert sum(known.values()) >= 0.9 * 64, f"not among the sentences: {texts - collections.Counter(known)}"
    assert len(known) >= 6, f"only some of the sentences were sampled: {known}"


def test_it_scores_them_far_below_their_unigram_entropy() -> None:
    """log 8 nats for the choice of a sentence are 0.13 nats for each of its tokens, and no bound lies below."""
    model = tiny.overfitted()
    result = nll(model, Windows(tiny.tokens(64).reshape(-1), tiny.LENGTH), draws=4)
    entropy = float(-(np.exp(model.log_prior) * np.asarray(model.log_prior)).sum())
    choice = np.log(len(tiny.SENTENCES)) / tiny.LENGTH
    assert choice - 3 * result["stderr"] < result["nats_per_token"] < 0.25 * entropy


def test_it_learnt_with_all_of_the_demos_options() -> None:
    m = tiny.overfitted().config.model
    assert m.output_prior and m.posterior_mean_input and m.noisy_vector and m.convolution_width
    assert tiny.overfitted().config.optim.name == "muon" and tiny.overfitted().config.train.position_sigma_fraction > 0


def test_its_weights_are_numbers() -> None:
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tiny.overfitted().params))
