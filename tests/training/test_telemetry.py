"""What a run says of itself: the probe's numbers against plain numpy, and the warnings when and only when there is something to warn of."""

import copy
import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdcd_jax.data.pipeline import Windows
from cdcd_jax.evaluation.model import Model
from cdcd_jax.training import telemetry
from tests import plain, tiny

CHARACTERS_PER_TOKEN = 1.25


def probe(model: Model, rows: int = 64, params: Any = None, key: int = 3) -> dict[str, Any]:
    held_out = Windows(tiny.tokens(rows).reshape(-1), tiny.LENGTH)
    return telemetry.probe(
        model.config, model.measure, params or model.params, model.log_prior, held_out, CHARACTERS_PER_TOKEN, jax.random.key(key)
    )


@functools.cache
def trained_line() -> dict[str, Any]:
    return probe(tiny.overfitted())


@functools.cache
def expected() -> plain.Plain:
    u = (np.arange(64) + 0.5) / 64
    return plain.measure(tiny.overfitted(), tiny.tokens(64), u, jax.random.fold_in(jax.random.key(3), 0))  # the first batch's key


def test_the_bound_is_that_of_plain_numpy() -> None:
    line = trained_line()
    nats, error = plain.bound(tiny.overfitted(), expected().diffusion + expected().reconstruction)
    assert line["nats_per_token"] == pytest.approx(nats, rel=2e-3)
    assert line["stderr"] == pytest.approx(error, rel=2e-3)
    per_char = math.log(2) * CHARACTERS_PER_TOKEN
    assert line["bits_per_char"] == pytest.approx(nats / per_char, rel=2e-3)
    assert line["bits_per_char_stderr"] == pytest.approx(error / per_char, rel=2e-3)


def bins(values: np.ndarray) -> list[float]:
    u = (np.arange(64) + 0.5) / 64
    return [float(values[(u * 20 >= i) & (u * 20 < i + 1)].mean()) for i in range(20)]


def test_the_curves_are_those_of_plain_numpy() -> None:
    line = trained_line()
    assert line["u"] == pytest.approx([(i + 0.5) / 20 for i in range(20)])
    assert line["sigma"] == pytest.approx(np.exp(bins(np.log(expected().sigma))), rel=1e-3)
    assert line["cross_entropy"] == pytest.approx(bins(expected().cross_entropy), rel=2e-3, abs=2e-4)
    assert line["local_cross_entropy"] == pytest.approx(bins(expected().local_cross_entropy), rel=2e-3, abs=2e-4)
    assert line["context_gain"] == pytest.approx(max(np.subtract(line["local_cross_entropy"], line["cross_entropy"])))


def test_the_picture_of_the_warp_is_that_of_plain_numpy() -> None:
    line, model = trained_line(), tiny.overfitted()
    warp = plain.PlainWarp(model.config, model.params["warp"])
    assert line["half_information_sigma"] == pytest.approx(float(warp.sigma(0.5)), rel=1e-4)
    grid = np.geomspace(0.45, 30.0, 101)
    assert line["warp_sigma"] == pytest.approx(grid, rel=1e-5)
    assert line["warp_entropy"] == pytest.approx(warp.entropy(grid), rel=1e-3, abs=1e-4)
    # A density over log sigma has an integral of one; at an edge of two bins either slope is right, so it is not compared point by point.
    density = np.asarray(line["warp_density"])
    assert np.trapezoid(density, np.log(grid)) == pytest.approx(1.0, abs=0.05)
    inner = np.geomspace(0.45 * 1.001, 30 / 1.001, 57)
    assert telemetry.make_warp(model.config, model.params["warp"]).pdf(jnp.asarray(inner)) == pytest.approx(warp.pdf(inner), rel=1e-3)


def test_the_picture_of_the_embeddings() -> None:
    line, model = trained_line(), tiny.overfitted()
    raw = np.asarray(model.params["embeddings"]["table"], np.float64)
    table = plain.embeddings(model)
    distance = np.linalg.norm(table[:, None] - table[None], axis=-1) + np.diag(np.full(len(table), np.inf))
    nearest = distance.min(axis=1) / (2 * table.shape[1]) ** 0.5
    marks = [0, 25, 50, 75, 100]
    assert line["embedding_norm_quantiles"] == pytest.approx(np.percentile(np.linalg.norm(raw, axis=1), marks), rel=1e-4)
    assert line["nearest_distance_quantiles"] == pytest.approx(np.percentile(nearest, marks), rel=1e-3)


def test_orthogonal_embeddings_are_at_distance_one() -> None:
    picture = telemetry.embedding_picture({"embeddings": {"table": jnp.diag(jnp.arange(1.0, 7.0))}})
    assert picture["nearest_distance_quantiles"] == pytest.approx([1.0] * 5)
    assert picture["embedding_norm_quantiles"] == pytest.approx([1.0, 2.25, 3.5, 4.75, 6.0])


def test_a_line_is_json_with_all_that_the_report_reads() -> None:
    line = json.loads(json.dumps({"step": 3} | trained_line(), allow_nan=False))
    assert {name: len(value) for name, value in line.items() if isinstance(value, list)} == {
        "u": 20, "sigma": 20, "cross_entropy": 20, "local_cross_entropy": 20, "warp_sigma": 101, "warp_entropy": 101, "warp_density": 101,
        "embedding_norm_quantiles": 5, "nearest_distance_quantiles": 5,
    }  # fmt: skip
    assert {name for name, value in line.items() if isinstance(value, float)} == {
        "bits_per_char", "bits_per_char_stderr", "nats_per_token", "stderr", "half_information_sigma", "context_gain", "linearity", "unigram_entropy",
        "chars_per_token",
    }  # fmt: skip
    p = np.exp(np.asarray(tiny.LOG_PRIOR, np.float64))
    assert line["unigram_entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)
    assert line["chars_per_token"] == CHARACTERS_PER_TOKEN


def test_fewer_sequences_than_bins() -> None:
    line = probe(tiny.overfitted(), rows=7)
    assert len(line["cross_entropy"]) == len(line["sigma"]) == len(line["u"]) == 7
    assert np.isfinite(line["cross_entropy"]).all()


def test_straightness_of_a_line_is_zero() -> None:
    assert telemetry.straightness(3.0 - 2.0 * np.linspace(0, 1, 20)) == pytest.approx(0, abs=1e-12)
    assert telemetry.straightness(np.zeros(20)) == 0


def test_straightness_of_a_parabola_is_a_sixth() -> None:
    """The least-squares line of u^2 is u - 1/6; the parabola is farthest from it at its ends, by 1/6 of its range."""
    for scale in (1.0, -3.0):
        assert telemetry.straightness(scale * np.linspace(0, 1, 2001) ** 2) == pytest.approx(1 / 6, abs=1e-3)


def test_straightness_sees_one_kink() -> None:
    curve = np.linspace(0, 1, 201)
    curve[100] += 0.25
    assert telemetry.straightness(curve) == pytest.approx(0.25, abs=0.01)


def test_binned() -> None:
    u = np.array([0.0, 0.1, 0.49, 0.5, 0.999, 1.0])
    values, one = np.array([1.0, 2, 3, 10, 20, 30]), np.ones(6)
    np.testing.assert_allclose(telemetry.binned(u, values, one, 2), [2, 20])
    np.testing.assert_allclose(telemetry.binned(u, values, np.array([1.0, 0, 3, 2, 1, 1]), 2), [2.5, 17.5])
    np.testing.assert_array_equal(telemetry.binned(u, one, one, 4), [1, 1, 1, 1])
    assert np.isnan(telemetry.binned(np.array([0.1]), np.array([1.0]), np.array([1.0]), 2)).tolist() == [False, True]


def test_a_trained_model_gives_no_warning() -> None:
    assert telemetry.warnings(trained_line()) == []
    assert trained_line()["context_gain"] > 0.5


def test_before_training_context_adds_nothing() -> None:
    """The head starts at zero, so with the output prior the model is the closed form; the warp fits nothing yet either."""
    line = probe(tiny.untrained(), rows=16)
    assert line["context_gain"] == pytest.approx(0, abs=1e-5)
    said = telemetry.warnings(line)
    assert said[0].startswith("context adds 0.000 nats at most") and any(s.startswith("the warp does not fit") for s in said)


def test_collapsed_embeddings_are_warned_of() -> None:
    params = copy.deepcopy(jax.tree.map(np.asarray, tiny.overfitted().params))
    params["embeddings"]["table"] = 1.0 + 0.02 * params["embeddings"]["table"]
    line = trained_line() | telemetry.embedding_picture(jax.tree.map(jnp.asarray, params))
    assert [s.split(":")[0] for s in telemetry.warnings(line)] == ["embeddings collapse"]


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_warp_that_does_not_fit_is_warned_of(factor: float) -> None:
    params = tiny.overfitted().params
    warp = params["warp"] | {"entropy_logits": params["warp"]["entropy_logits"] + math.log(factor)}
    line = trained_line() | telemetry.warp_picture(tiny.overfitted().config, params | {"warp": warp})
    said = telemetry.warnings(line)
    assert len(said) == 1 and said[0].startswith("the warp does not fit: its curve is ")
