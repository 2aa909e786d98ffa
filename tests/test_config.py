"""The config: what is read is what was written, and what cannot be a run is refused with the key's name."""

import dataclasses
import json

import pytest

from cdcd_jax import config as config_lib
from cdcd_jax.config import Config, UserError, did_you_mean, from_dict
from tests import tiny


def changed(path: str, value: object) -> Config:
    values = config_lib.defaults()
    section, _, name = path.rpartition(".")
    (values[section] if section else values).update({name: value})
    return from_dict(values)


def test_defaults_are_those_of_the_dataclasses():
    assert from_dict(config_lib.defaults()) == Config() == from_dict({})


def test_json_and_back():
    config = tiny.config()
    assert config != Config()
    assert from_dict(json.loads(config_lib.to_json(config))) == config


def test_part_of_the_keys_leaves_the_others_alone():
    assert from_dict({"train": {"seed": 7}}) == dataclasses.replace(Config(), train=dataclasses.replace(Config().train, seed=7))


@pytest.mark.parametrize(
    "values, said",
    [
        ({"train": {"num_stps": 3}}, 'unknown config key \'train.num_stps\' (did you mean "num_steps"?).'),
        ({"trian": {}}, 'unknown config key \'trian\' (did you mean "train"?).'),
        ({"train": {"zzz": 3}}, "unknown config key 'train.zzz' (known: accumulation_steps, batch_size, "),
        ({"train": 3}, "config section 'train' must hold keys and values, not 3."),
        ([], "must hold keys and values, not []."),
        ({"train": {"num_steps": "abc"}}, "config key 'train.num_steps' takes a value of type int, not 'abc'."),
        ({"train": {"num_steps": 1.5}}, "'train.num_steps' takes a value of type int, not 1.5."),
        ({"train": {"num_steps": True}}, "'train.num_steps' takes a value of type int, not True."),
        ({"optim": {"learning_rate": True}}, "'optim.learning_rate' takes a value of type float, not True."),
        ({"optim": {"learning_rate": None}}, "'optim.learning_rate' takes a value of type float, not None."),
        ({"train": {"self_conditioning": 1}}, "'train.self_conditioning' takes a value of type bool, not 1."),
        ({"data": {"source": ["a"]}}, "'data.source' takes a value of type str, not ['a']."),
    ],
)
def test_what_is_no_config_is_refused(values, said):
    with pytest.raises(UserError) as error:
        from_dict(values)
    assert said in str(error.value)


def test_a_whole_number_serves_as_a_real_one():
    value = changed("optim.learning_rate", 1).optim.learning_rate
    assert value == 1.0 and isinstance(value, float)


@pytest.mark.parametrize(
    "path, value, said",
    [
        ("objective", "cdcc", 'did you mean "cdcd"?'),
        ("data.tokenizer", "sentencpiece", 'did you mean "sentencepiece"?'),
        ("data.alphabet", "26", "'26'"),
        ("model.dtype", "float16", "'float16'"),
        ("diffusion.warp_axis", "lin", 'did you mean "linear"?'),
        ("optim.name", "muno", 'did you mean "muon"?'),
        ("optim.decay", "cosin", 'did you mean "cosine"?'),
        ("train.num_steps", 0, "above 0, not 0"),
        ("train.batch_size", -2, "above 0, not -2"),
        ("mesh.fsdp", 0, "above 0, or -1 for what the other axes leave, not 0"),
        ("optim.learning_rate", float("nan"), "above 0, not nan"),
        ("diffusion.sigma_min", 0.0, "above 0, not 0.0"),
        ("data.valid_fraction", 1.5, "[0, 1], not 1.5"),
        ("data.pad_insertion", 1.0, "must be below 1, not 1.0"),
        ("data.source", "", "is empty: it names a text file"),
        ("optim.b2", -0.1, "[0, 1], not -0.1"),
        ("optim.decay_fraction", float("nan"), "[0, 1], not nan"),
        ("diffusion.sigma_max", 1.0, "exceed sigma_min = 1.0, not 1.0"),
        ("diffusion.sigma_max", float("inf"), "be finite"),
        ("optim.learning_rate", float("inf"), "must be finite, not inf"),
        ("sample.guidance", -1.0, "0 or more"),
        ("model.width", 1000, "a multiple of 2 x num_heads = 32, not 1000"),
        ("train.batch_size", 7, "a multiple of 2 (train.accumulation_steps = 1, times 2 for self-conditioning"),
        ("train.position_sigma_fraction", 1.0, "leaves no example of train.batch_size"),
        ("model.convolution_width", 4, "must be odd, or 0 for none, not 4"),
        ("sample.num_steps", 0, "above 0, not 0"),
    ],
)
def test_impossible_values_are_refused(path, value, said):
    with pytest.raises(UserError) as error:
        changed(path, value)
    text = str(error.value)
    assert path in text and said in text and "\n" not in text


def test_odd_batches_are_fine_without_self_conditioning():
    assert from_dict({"train": {"batch_size": 7, "self_conditioning": False}}).train.batch_size == 7
    with pytest.raises(UserError, match="multiple of 3"):
        from_dict({"train": {"batch_size": 7, "self_conditioning": False, "accumulation_steps": 3}})


def test_layers_are_not_both_unrolled_and_computed_again():
    assert from_dict({"model": {"scan_unroll": 4}}).model.remat == "none"
    with pytest.raises(UserError, match="'model.scan_unroll' must be 1 with model.remat = 'names', not 4"):
        from_dict({"model": {"scan_unroll": 4, "remat": "names"}})


def test_the_lists_of_checks_name_keys_that_exist():
    for path in (*config_lib.CHOICES, *config_lib.POSITIVE, *config_lib.FRACTIONS):
        config_lib._get(Config(), path)


def test_every_number_is_checked():
    """A number that nobody checks is one that a typo sets to nonsense; these may be any number."""
    free = {"train.seed", "mesh.data", "mesh.fsdp", "optim.warmup_steps", "optim.clip_norm", "model.convolution_width", "diffusion.sigma_max",
            "diffusion.warp_floor", "sample.guidance", "checkpoint.keep_every_steps",
            "hosts.stall_seconds", "train.position_sigma_fraction"}  # fmt: skip
    numbers = {
        f"{section}.{name}"
        for section, values in dataclasses.asdict(Config()).items()
        if isinstance(values, dict)
        for name, value in values.items()
        if type(value) in (int, float)
    }
    assert numbers - free == set(config_lib.POSITIVE) | set(config_lib.FRACTIONS) - free


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.seed = 1


@pytest.mark.parametrize(
    "word, said", [("colour", ' (did you mean "color"?)'), ("zzzz", " (known: a, color)"), ("", " (known: a, color)")]
)
def test_did_you_mean(word, said):
    assert did_you_mean(word, {"color": 1, "a": 2}) == said
