"""A run that trains in seconds: a tiny config with all of the demo's options, a corpus of eight sentences, and a state to step from."""

import dataclasses
import functools
import hashlib
import pathlib
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cdcd_jax.config import Config, defaults, from_dict
from cdcd_jax.data.pipeline import unigram_log_probabilities
from cdcd_jax.data.tokenizers import CharTokenizer
from cdcd_jax.evaluation.model import Model
from cdcd_jax.parallel.mesh import AXES, batch_sharding
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training.checkpoint import newest_step
from cdcd_jax.training.state import TrainState, init_state
from cdcd_jax.training.step import Step, make_step

LENGTH = 16
SENTENCES = [
    s.ljust(LENGTH) for s in ("the cat is black", "a dog ran to me.", "we sang all day", "my red hat fell", "two owls hoot", "no fish can fly",
                              "give him a pear", "rain fell on us.")
]  # fmt: skip
TOKENIZER = CharTokenizer("".join(SENTENCES))

# All that configs/demo.py changes is told here again, so that the golden numbers do not move when the demo's recipe does.
TINY: dict[str, Any] = {
    "data.tokenizer": "char", "data.vocab_size": 64, "data.sequence_length": LENGTH, "data.valid_fraction": 0.2,
    "model.num_layers": 1, "model.scan_unroll": 1, "model.width": 16, "model.num_heads": 2, "model.mlp_width": 32, "model.embedding_dim": 8,
    "model.sigma_conditioning": False, "model.output_prior": True, "model.posterior_mean_input": True, "model.noisy_vector": True,
    "model.convolution_width": 3,
    "diffusion.sigma_min": 0.45, "diffusion.sigma_max": 30.0, "diffusion.warp_axis": "log", "diffusion.warp_floor": 0.01,
    "train.num_steps": 20, "train.batch_size": 8, "train.given_fraction": 0.25, "train.position_sigma_fraction": 0.5,
    "optim.name": "muon", "optim.learning_rate": 3e-3, "optim.embedding_learning_rate": 2e-3, "optim.muon_learning_rate": 0.02,
    "optim.warmup_steps": 5, "optim.decay": "linear", "optim.ema_decay": 0.99,
    "log.every_steps": 1, "log.probe_every_steps": 1000, "log.probe_sequences": 8, "checkpoint.every_steps": 10, "sample.num_steps": 5,
}  # fmt: skip

OVERFIT = {
    "model.width": 64, "model.num_heads": 4, "model.mlp_width": 128, "model.embedding_dim": 16, "train.num_steps": 1200, "train.batch_size": 32,
    "train.given_fraction": 0.25, "optim.learning_rate": 3e-3, "optim.embedding_learning_rate": 3e-4, "sample.num_steps": 30,
}  # fmt: skip


def config(changes: dict[str, Any] | None = None) -> Config:
    """The tiny config with some keys changed, such as {"train.seed": 1}."""
    values = defaults()
    for key, value in (TINY | (changes or {})).items():
        section, name = key.split(".")
        values[section][name] = value
    return from_dict(values)


def flags(source: pathlib.Path | str, workdir: pathlib.Path | str, changes: dict[str, Any] | None = None) -> list[str]:
    """The flags with which the train door runs the tiny config."""
    keys = TINY | {"data.source": source} | (changes or {})
    return ["--config=configs/demo.py", f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in keys.items())]


def corpus(number: int = 200) -> str:
    """That many of the sentences, drawn at random, always the same."""
    generator = random.Random(0)
    return " ".join(generator.choice(SENTENCES).strip() for _ in range(number))


def saved(workdir: pathlib.Path) -> int:
    """The newest checkpoint that counts; 0 if there is none."""
    return newest_step(epath.Path(workdir)) or 0


def tokens(rows: int = 8) -> np.ndarray:
    """[rows, LENGTH]: the sentences, one after the other, again and again."""
    return np.stack([TOKENIZER.encode(SENTENCES[i % len(SENTENCES)]) for i in range(rows)])


LOG_PRIOR = unigram_log_probabilities(np.bincount(tokens().reshape(-1), minlength=TOKENIZER.vocab_size))


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    """A mesh of the first devices: make_mesh of parallel/ always takes all of them."""
    devices = jax.devices()[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3, devices=devices)


@dataclasses.dataclass
class Trainer:
    """A jitted step on a mesh, and how to make its state and batches."""

    config: Config
    step: Step
    abstract: TrainState  # shapes, types and shardings
    batch_sharding: jax.sharding.NamedSharding
    make_state: Callable[[], TrainState]

    def init(self) -> TrainState:
        """The state before the first step."""
        return self.make_state()

    def batch(self, rows: np.ndarray | None = None, **others: np.ndarray) -> dict[str, jax.Array]:
        """A batch on the mesh, the eight sentences if not told otherwise; `others` are segments."""
        return jax.device_put({"tokens": tokens(self.config.train.batch_size) if rows is None else rows} | others, self.batch_sharding)

    def lowered(self) -> jax.stages.Lowered:
        """The step's program. What is compiled from it is not compiled again when the step is called."""
        rows = jax.ShapeDtypeStruct((self.config.train.batch_size, LENGTH), jnp.int32, sharding=self.batch_sharding)
        return self.step.lower(self.abstract, {"tokens": rows})

    def run(self, state: TrainState, steps: int) -> tuple[TrainState, list[dict[str, float]]]:
        """The state after some steps on the same batch, and each step's metrics."""
        batch, metrics = self.batch(), []
        for _ in range(steps):
            state, values = self.step(state, batch)
            metrics.append({name: float(value) for name, value in values.items()})
        return state, metrics


def trainer(config: Config, mesh: jax.sharding.Mesh) -> Trainer:
    """A Trainer, whose step compiles when it is first called."""
    abstract = jax.eval_shape(lambda: init_state(config, jnp.asarray(LOG_PRIOR)))
    sharding = shardings(config, abstract, mesh)
    step = make_step(config, sharding, batch_sharding(mesh))
    abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)
    make_state = jax.jit(lambda: init_state(config, jnp.asarray(LOG_PRIOR)), out_shardings=sharding)
    return Trainer(config, step, abstract, batch_sharding(mesh), make_state)


@functools.cache
def shared_trainer() -> Trainer:
    """The tiny config's step on one device, compiled once for all tests."""
    return trainer(config(), mesh())


def small_state(number: float = 0.0) -> TrainState:
    """A state of a few bytes, which is saved and restored in no time."""
    a, b, c, d = (jnp.full(3, number, jnp.float32) for _ in range(4))
    return TrainState(jnp.int32(0), {"a": a}, {"warp": {"axis_logits": b}}, {"c": c}, d)


def like(state: Any) -> Any:
    """The shapes and types of a state, on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state)


def model(config: Config, state: TrainState) -> Model:
    """What evaluation reads from a checkpoint of this state."""
    return Model(config, TOKENIZER, state.ema, state.log_prior, int(state.step))


@functools.cache
def untrained() -> Model:
    """The tiny model before its first step."""
    return model(config(), shared_trainer().init())


@functools.cache
def overfitted() -> Model:
    """A model that knows the eight sentences by heart, trained once for all tests.

    The rows are shuffled at each step, since every other one is conditioned on its own estimate.
    """
    chosen = config(OVERFIT)
    work = trainer(chosen, mesh())
    rows, generator, state = tokens(chosen.train.batch_size), np.random.default_rng(0), work.init()
    for _ in range(chosen.train.num_steps):
        state, _ = work.step(state, work.batch(generator.permutation(rows)))
    return model(chosen, state)


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, str]]:
    """Every path below a folder with its time of change and its content; but for a workdir's lock, which names its last holder."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.name != "lock"):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = (path.stat().st_mtime_ns, content)
    return found


def largest(folder: pathlib.Path) -> pathlib.Path:
    """The largest file below a folder; of a checkpoint, one with arrays in it."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
