"""The one train step: its numbers, its keys, its averages, and that it is compiled once."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdcd_jax.parallel.mesh import BATCH
from cdcd_jax.training.state import INIT_STREAM, PROBE_STREAM, TRAIN_STREAM, TrainState, stream_key
from cdcd_jax.training.step import average
from tests import tiny

# Of the first three steps of the tiny config on the eight sentences.
GOLDEN: list[dict[str, float]] = [
    {"loss": 2.016479, "warp_loss": 3.014531, "grad_norm": 103.4737},
    {"loss": 2.050253, "warp_loss": 2.613152, "grad_norm": 106.0092},
    {"loss": 2.052352, "warp_loss": 2.811971, "grad_norm": 78.45218},
]
CHANGED = (
    "The step computes other numbers than it did. If you meant to change the method, the initialisation, the random streams or the tiny config, put "
    "the new numbers into GOLDEN and say why in the commit; if not, this is a bug. A new version of JAX alone should stay within the tolerance."
)


def bits(tree: object) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_golden_metrics() -> None:
    work = tiny.shared_trainer()
    _, metrics = work.run(work.init(), len(GOLDEN))
    for step, (found, expected) in enumerate(zip(metrics, GOLDEN, strict=True), start=1):
        # The first step has no rounding to amplify; later ones have Adam's division of small gradients by their own size.
        assert found == pytest.approx(expected, rel=1e-5 if step == 1 else 5e-4), f"step {step}: {CHANGED}"


def test_the_same_state_and_batch_give_the_same_bits() -> None:
    work = tiny.shared_trainer()
    for one, other in zip(*(bits(work.run(work.init(), 3)) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_steps_draw_differently() -> None:
    """The same parameters and the same batch at another step number: other masks, noise levels and noise."""
    work = tiny.shared_trainer()
    losses = []
    for step in (0, 1, 2):
        state = work.init()
        _, metrics = work.step(state.replace(step=jax.device_put(jnp.int32(step), state.step.sharding)), work.batch())
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3


def test_keys_differ_between_seeds_streams_and_steps() -> None:
    configs = [tiny.config(), tiny.config({"train.seed": 1})]
    keys = [
        jax.random.key_data(stream_key(config, stream, step)).tobytes()
        for config in configs
        for stream in (INIT_STREAM, TRAIN_STREAM, PROBE_STREAM)
        for step in (0, 1, 2, 1000)
    ]
    assert len(set(keys)) == 24
    again = jax.random.key_data(stream_key(configs[0], TRAIN_STREAM, jnp.int32(1000))).tobytes()
    assert again == jax.random.key_data(stream_key(configs[0], TRAIN_STREAM, 1000)).tobytes()


def test_it_compiles_once(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is compiled after the second step, with batches made as the loop makes them."""
    work = tiny.shared_trainer()
    state = work.init()
    rows = np.random.default_rng(0)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for step in range(5):
            tokens = rows.integers(0, tiny.TOKENIZER.vocab_size, (work.config.train.batch_size, tiny.LENGTH), np.int32)
            state, metrics = work.step(state, work.batch(tokens))
            jax.block_until_ready(metrics)
            if step == 1:
                caplog.clear()
        assert "XLA compilation" not in caplog.text
        assert work.step._cache_size() == 1
        jax.jit(lambda x: x + 3.25)(1.5)
        assert "XLA compilation" in caplog.text  # so the silence above meant something
    assert int(state.step) == 5


def test_the_state_that_went_in_is_gone() -> None:
    work = tiny.shared_trainer()
    before = work.init()
    work.step(before, work.batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state, before.ema)))


def test_everything_but_the_prior_moves_and_stays_float32() -> None:
    work = tiny.shared_trainer()
    first = jax.tree.map(np.array, work.init())
    state, _ = work.run(work.init(), 3)
    assert int(state.step) == 3
    np.testing.assert_array_equal(state.log_prior, first.log_prior)
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(first.params), jax.tree.leaves(state.params), strict=True):
        assert not np.array_equal(before, after), f"{jax.tree_util.keystr(path)} did not move in three steps"
        assert after.dtype == np.float32
    assert not np.array_equal(first.ema["warp"]["entropy_logits"], state.ema["warp"]["entropy_logits"])


def test_the_averages_follow_the_new_parameters() -> None:
    work = tiny.shared_trainer()
    state, _ = work.run(work.init(), 2)
    ema = jax.tree.map(np.array, state.ema)
    after, _ = work.run(state, 1)
    decay = 3.0 / 12.0  # (1 + step) / (10 + step) at step 2, which is younger than either decay
    for old, new, found in zip(*map(jax.tree.leaves, (ema, after.params, after.ema)), strict=True):
        np.testing.assert_allclose(found, decay * old + (1 - decay) * np.asarray(new), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("step, model, warp", [(0, 0.1, 0.1), (10, 0.55, 0.5), (100_000, 0.999, 0.5)])
def test_decays_of_the_averages(step: int, model: float, warp: float) -> None:
    """The warp has a decay of its own, and young averages have a short memory."""
    config = tiny.config({"optim.ema_decay": 0.999, "diffusion.warp_ema_decay": 0.5})
    zeros, ones = ({name: jnp.full(2, value) for name in ("embeddings", "denoiser", "warp")} for value in (0.0, 1.0))
    state = TrainState(jnp.int32(step), zeros, ones, None, jnp.zeros(2))
    kept = average(state, zeros, config)
    assert {name: float(leaf[0]) for name, leaf in kept.items()} == pytest.approx({"embeddings": model, "denoiser": model, "warp": warp}, abs=1e-6)


def test_a_batch_lies_along_data_and_fsdp() -> None:
    assert tiny.shared_trainer().batch_sharding.spec == BATCH
