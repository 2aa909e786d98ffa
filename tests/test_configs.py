"""The files in configs/: each builds, and each is what it says that it is."""

import dataclasses
import importlib.util
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from cdcd_jax.config import Config, from_dict
from cdcd_jax.training.state import init_state

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs"


def read(name: str, *choice: str) -> Config:
    """The config of a file, loaded by its path as the doors do, from whatever folder; choice: what stands after a colon in --config."""
    spec = importlib.util.spec_from_file_location(f"config_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return from_dict(module.get_config(*choice))


def parameters(config: Config, vocab_size: int) -> dict[str, Any]:
    """The parameters' shapes, by branch; nothing is allocated."""
    return jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size))).params


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_builds_a_state_from_any_folder(path: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = read(path.stem)
    params = parameters(config, 50)
    assert params["embeddings"]["table"].shape == (50, config.model.embedding_dim)
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("name", "count", "length", "batch", "steps"), [("paper_base", 147e6, 64, 1024, 1_000_000), ("paper_large", 1.31e9, 256, 2048, 600_000)]
)
def test_the_papers_models_have_the_papers_size(name: str, count: float, length: int, batch: int, steps: int) -> None:
    config = read(name)
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters(config, 32_000)))
    assert size == pytest.approx(count, rel=0.02)
    assert (config.data.vocab_size, config.data.sequence_length, config.train.batch_size, config.train.num_steps) == (32_000, length, batch, steps)


@pytest.mark.parametrize("name", ["paper_base", "paper_large"])
def test_the_papers_models_use_nothing_beyond_the_paper(name: str) -> None:
    config = read(name)
    model, optim, diffusion = config.model, config.optim, config.diffusion
    assert not (model.output_prior or model.posterior_mean_input or model.noisy_vector or model.convolution_width)
    assert model.sigma_conditioning and config.train.self_conditioning
    assert (config.train.position_sigma_fraction, config.train.given_fraction, config.train.prefix_fraction) == (0.0, 1.0, 0.5)
    assert (optim.name, optim.learning_rate, optim.embedding_learning_rate, optim.b1, optim.b2) == ("adam", 1e-4, 1e-4, 0.9, 0.99)
    assert (optim.warmup_steps, optim.decay, optim.clip_norm) == (0, "none", 0.0)
    assert (diffusion.warp_axis, diffusion.warp_bins, diffusion.sigma_min, diffusion.sigma_max) == ("linear", 100, 1.0, 300.0)
    assert (model.embedding_dim, model.embedding_std, config.sample.num_steps, config.sample.solver) == (256, 0.001, 200, "euler")


def test_demo27_is_the_demo_on_another_alphabet() -> None:
    demo, other = read("demo"), read("demo27")
    assert (other.data.source, other.data.alphabet, other.data.tokenizer) == ("kjv", "27", "char")
    assert dataclasses.replace(other, data=demo.data) == demo
    assert dataclasses.replace(other.data, alphabet=demo.data.alphabet, tokenizer=demo.data.tokenizer) == demo.data


@pytest.mark.parametrize("name", ["text8", "c4", "lm1b", "owt"])
def test_the_benchmarks_have_a_model_of_the_usual_size(name: str) -> None:
    config = read(name)
    assert (config.model.num_layers, config.model.width, config.model.mlp_width) == (12, 768, 3072)
    tokens = config.train.num_steps * config.train.batch_size * config.data.sequence_length
    assert tokens == read("paper_base").train.num_steps * read("paper_base").train.batch_size * read("paper_base").data.sequence_length
    assert config.data.vocab_size == 32_000 or config.data.tokenizer == "char"


def test_the_corpora_of_the_configs() -> None:
    """Where each is from, what is held out, and how its rows are made."""
    found = {}
    for name, *choice in (["text8"], ["novels27"], ["wikitext2"], ["lm1b"], ["lm1b", "unwrapped"], ["owt"], ["c4"], ["paper_base"], ["paper_large"]):
        data = read(name, *choice).data
        found[":".join([name, *choice])] = (data.source, data.split, data.valid_split, data.valid_fraction, data.test_fraction, data.packing)
    assert found == {
        "text8": ("text8", "exact", "", 0.05, 0.05, "wrap"),
        "novels27": ("novels100_27/{split}.txt", "auto", "", 0.05, 0.0, "wrap"),
        "wikitext2": ("wikitext2/{split}.txt", "auto", "", 0.05, 0.0, "wrap"),
        "lm1b": ("tfds:lm1b", "auto", "test", 0.05, 0.0, "wrap"),
        "lm1b:unwrapped": ("tfds:lm1b", "auto", "test", 0.05, 0.0, "pad"),
        "owt": ("hf:Skylion007/openwebtext", "hash", "", 0.005, 0.005, "wrap"),
        "c4": ("tfds:c4/en", "auto", "", 0.05, 0.0, "wrap"),
        "paper_base": ("tfds:c4/en", "auto", "", 0.05, 0.0, "wrap"),
        "paper_large": ("tfds:c4/en", "auto", "", 0.05, 0.0, "wrap"),
    }
    assert read("lm1b", "unwrapped") == dataclasses.replace(read("lm1b"), data=dataclasses.replace(read("lm1b").data, packing="pad"))


def test_small_models_are_the_demos() -> None:
    for config in (read("novels27"), read("text8", "small"), read("wikitext2")):
        assert dataclasses.replace(config, data=read("demo").data) == read("demo")
    base = read("novels27", "base")
    assert dataclasses.replace(base, data=read("text8").data) == read("text8") and base.data.source == read("novels27").data.source


@pytest.mark.parametrize("name", ["text8", "novels27", "lm1b"])
def test_a_choice_that_a_config_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match="must be .* or .*, not 'large'"):
        read(name, "large")


@pytest.mark.parametrize("name", ["text8", "novels27", "wikitext2", "lm1b", "owt", "c4", "paper_base", "paper_large"])
def test_a_docstring_has_the_commands(name: str) -> None:
    """To prepare, and to train on the folder that this makes."""
    lines = [line.strip() for line in (FOLDER / f"{name}.py").read_text().splitlines()]
    prepare = next(line for line in lines if line.startswith(f"python -m cdcd_jax.prepare --config=configs/{name}.py"))
    folder = re.search(r"--output=(\S+)", prepare)
    train = [line for line in lines if line.startswith(f"python -m cdcd_jax.train --config=configs/{name}.py")]
    assert folder and train and (name == "wikitext2" or any(f"--config.data.source={folder[1]}" in line for line in train))
