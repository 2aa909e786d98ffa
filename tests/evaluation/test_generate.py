"""Sampling from a trained model: what is given comes back, a seed is a seed, and a sample does not depend on its neighbours."""

import functools
import re
from typing import Any

import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import SampleConfig, UserError
from cdcd_jax.evaluation import generate
from cdcd_jax.run import Run
from tests import tiny


@functools.cache
def run() -> Run:
    """The model that knows the eight sentences; there is no folder behind it."""
    return Run(epath.Path("nowhere"), tiny.overfitted())


def texts(samples: list[generate.Sample]) -> list[str]:
    return [sample.text for sample in samples]


@pytest.mark.parametrize("template", ["the [3] is [5]", "[2] red [9]", "[16]", "[4]", "rain fell on [2].", "[3][2]a [4]e"])
def test_a_template_comes_back_token_for_token(template: str) -> None:
    model = tiny.overfitted()
    tokens, given, used, _ = generate.layout(model, None, template)
    pattern = re.sub(r"\[(\d+)\]", r".{\1}", template.replace(".", r"\."))
    for sample in run().sample(3, template=template, seed=5):
        assert len(sample.tokens) == len(sample.fixed) == used
        assert sample.fixed == given[:used].tolist()
        assert np.array_equal(np.asarray(sample.tokens)[given[:used]], tokens[:used][given[:used]])
        assert re.fullmatch(pattern, sample.text, re.DOTALL), sample.text
        assert (sample.template, sample.prompt) == (template, None)


def test_a_prompt_comes_back_and_the_rest_is_written() -> None:
    for prompt in ("my red", "", "give him a pea"):
        for sample in run().sample(3, prompt=prompt, seed=5):
            assert sample.text.startswith(prompt) and len(sample.tokens) == tiny.LENGTH
            assert sample.fixed == [i < len(prompt) for i in range(tiny.LENGTH)]


def test_what_it_writes_around_a_prompt_is_what_it_learnt() -> None:
    written = texts(run().sample(16, prompt="my red", seed=0))
    assert sum(text == "my red hat fell " for text in written) >= 12, written


def test_the_same_seed_gives_the_same_samples_and_another_seed_others() -> None:
    assert run().sample(8, seed=3) == run().sample(8, seed=3)
    assert texts(run().sample(8, seed=3)) != texts(run().sample(8, seed=4))


def test_a_sample_does_not_depend_on_how_many_there_are() -> None:
    """Over the edge of a batch, too, whose last rows are thrown away."""
    many = texts(run().sample(generate.BATCH + 3, seed=7))
    assert len(many) == generate.BATCH + 3
    assert texts(run().sample(3, seed=7)) == many[:3]
    assert len(set(many[: generate.BATCH])) > 1


def test_samples_differ_from_each_other() -> None:
    keys = np.asarray([np.asarray(key) for key in map(np.asarray, generate.jax.random.key_data(generate.keys_for(0, 0, 8)))])
    assert len(np.unique(keys, axis=0)) == 8
    assert np.array_equal(generate.jax.random.key_data(generate.keys_for(0, 3, 2)), keys[3:5])


def test_guidance_of_one_is_none_and_given_tokens_survive_any() -> None:
    plain = run().sample(3, template="the [12]", seed=1)
    assert texts(run().sample(3, template="the [12]", seed=1, guidance=1.0)) == texts(plain)
    guided = run().sample(3, template="the [12]", seed=1, guidance=2.0)
    assert all(sample.text.startswith("the ") for sample in guided)
    assert guided[0].nfe == 2 * plain[0].nfe == 2 * (tiny.OVERFIT["sample.num_steps"] + 1)


@pytest.mark.parametrize(
    "settings, expected",
    [({}, 201), ({"num_steps": 9}, 10), ({"num_steps": 9, "solver": "heun"}, 19), ({"num_steps": 9, "guidance": 2.0}, 20), ({"guidance": 1.0}, 201)],
)
def test_the_count_of_denoiser_calls(settings: dict[str, Any], expected: int) -> None:
    assert generate.calls(SampleConfig(**settings)) == expected


def test_a_trajectory_ends_in_the_sample() -> None:
    seen = run().trajectory(template="the [12]", seed=2, candidates=4)
    assert seen["text"] == run().sample(1, template="the [12]", seed=2)[0].text
    assert seen["template"] == "the [12]" and seen["fixed"] == [True] * 4 + [False] * 12
    assert "".join(seen["pieces"]) == seen["text"]
    frames = seen["frames"]
    assert len(frames) == tiny.OVERFIT["sample.num_steps"] + 1
    sigma = [frame["sigma"] for frame in frames]
    assert sigma[0] == pytest.approx(30.0, rel=1e-4) and sigma[-1] == pytest.approx(0.45, rel=1e-4) and sigma == sorted(sigma, reverse=True)
    for frame in frames:
        p = np.asarray(frame["probabilities"])
        assert np.shape(frame["tokens"]) == p.shape == (16, 4) and (np.diff(p, axis=1) <= 0).all() and (p.sum(axis=1) <= 1.001).all()
    free = run().trajectory(seed=2, candidates=4)["frames"]  # with nothing given, nothing is known at first
    assert np.mean(free[0]["entropy"]) > 0.6 > 0.2 > np.mean(free[-1]["entropy"])


def test_a_trajectory_shows_as_many_frames_as_asked_for() -> None:
    frames = run().trajectory(seed=2, frames=5, candidates=4)["frames"]
    assert [frame["u"] for frame in frames] == pytest.approx([1.0, 1 - 7 / 30, 0.5, 1 - 22 / 30, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"solver": "huen"}, 'unknown solver \'huen\' (did you mean "heun"?).'),
        ({"num_steps": 0}, "num_steps must be at least 1, not 0."),
        ({"score_temperature": 0.0}, "score_temperature must be above 0 and finite, not 0.0."),
        ({"score_temperature": float("nan")}, "score_temperature must be above 0 and finite, not nan."),
        ({"initial_noise_scale": -1.0}, "initial_noise_scale must be above 0 and finite, not -1.0."),
        ({"guidance": -0.5}, "guidance must be 0 or more (1 is none) and finite, not -0.5."),
        ({"guidance": float("inf")}, "guidance must be 0 or more (1 is none) and finite, not inf."),
        ({"prompt": "a", "template": "[3]"}, "give a prompt or a template, not both"),
    ],
)
def test_settings_that_no_sampler_has(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        run().sample(1, **settings)
    assert said in str(error.value)


def test_no_samples_are_no_request() -> None:
    with pytest.raises(UserError, match="num_samples must be at least 1, not 0"):
        run().sample(0)


def test_a_line_of_the_samples_file() -> None:
    sample = generate.Sample("a", [1], [False], 3, 0)
    assert sample.as_dict() == {"text": "a", "tokens": [1], "fixed": [False], "nfe": 3, "seed": 0}
    assert generate.Sample("a", [1], [True], 3, 0, template="[1]").as_dict()["template"] == "[1]"
