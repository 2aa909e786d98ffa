"""Checkpoints: what comes back is what was saved, bit for bit, or an error that says what is wrong and changes nothing."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import CheckpointConfig, UserError
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training.checkpoint import Checkpoints, read_json, restore_part
from cdcd_jax.training.state import TrainState
from tests import tiny

CONFIG = CheckpointConfig(every_steps=1, keep_last=3)
META = {"config": {"a": [1, "b"]}, "tokenizer_fingerprint": "t", "data_fingerprint": "d"}


def copy(tree: Any) -> Any:
    """On the host, in memory of its own."""
    return jax.tree.map(lambda a: np.array(a, copy=True), tree)


def assert_same(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, dict[int, TrainState]]:
    """A workdir with the checkpoints of steps 2, 4 and 6, and those states. Read only."""
    folder = tmp_path_factory.mktemp("saved")
    work, states = tiny.shared_trainer(), {}
    checkpoints = Checkpoints(epath.Path(folder), CONFIG)
    state = work.init()
    for step in (2, 4, 6):
        state, _ = work.run(state, 2)
        states[step] = copy(state)
        checkpoints.save(step, state, {"global_next_index": 8 * step}, META)
    checkpoints.close()
    return folder, states


def opened(folder: pathlib.Path) -> Checkpoints:
    return Checkpoints(epath.Path(folder), CONFIG)


def refusal(folder: pathlib.Path, abstract: Any) -> str:
    """The sentence with which restoring is refused, once it is seen that nothing was changed."""
    before = tiny.snapshot(folder)
    checkpoints = opened(folder)
    with pytest.raises(UserError) as error:
        checkpoints.restore(abstract)
    checkpoints.close()
    assert tiny.snapshot(folder) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_of_it_comes_back(saved: tuple[pathlib.Path, dict[int, TrainState]]) -> None:
    checkpoints = opened(saved[0])
    state, data, meta = checkpoints.restore(tiny.shared_trainer().abstract)
    checkpoints.close()
    assert_same(state, saved[1][6])
    assert (data, meta) == ({"global_next_index": 48}, META)


def test_going_on_from_it_gives_the_same_bits(saved: tuple[pathlib.Path, dict[int, TrainState]]) -> None:
    work = tiny.shared_trainer()
    checkpoints = opened(saved[0])
    restored, _, _ = checkpoints.restore(work.abstract)
    checkpoints.close()
    went_on = work.run(restored, 2)
    never_left = work.run(work.init(), 8)
    assert went_on[1] == never_left[1][6:]
    assert_same(went_on[0], copy(never_left[0]))


def test_saving_in_the_background_is_not_disturbed_by_the_steps_after_it(tmp_path: pathlib.Path) -> None:
    """The state is donated to the next step while the save is under way. It is large enough for the save to take longer than the steps."""
    large = {f"a{i}": jnp.zeros((256, 1024)) for i in range(32)}
    first = tiny.small_state().replace(opt_state=large)
    wanted = tiny.like(first)
    step = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(epath.Path(tmp_path), CONFIG)
    state = step(first)
    checkpoints.save(1, state, {}, {})
    under_way = 0
    for _ in range(40):
        state = step(state)
        under_way += checkpoints.saving()
    jax.block_until_ready(state)
    checkpoints.close()
    assert under_way, "the save was over before the steps began: make the state larger"
    checkpoints = opened(tmp_path)
    restored, _, _ = checkpoints.restore(wanted)
    checkpoints.close()
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
        assert (np.asarray(leaf) == 1).all(), jax.tree_util.keystr(path)


def test_saving_a_real_step_while_stepping_on(tmp_path: pathlib.Path) -> None:
    work = tiny.shared_trainer()
    state, _ = work.run(work.init(), 3)
    expected = copy(state)
    checkpoints = Checkpoints(epath.Path(tmp_path), CONFIG)
    checkpoints.save(3, state, {"global_next_index": 24}, META)
    batch = work.batch()
    for _ in range(20):
        state, _ = work.step(state, batch)
    checkpoints.close()
    checkpoints = opened(tmp_path)
    restored, _, _ = checkpoints.restore(work.abstract)
    checkpoints.close()
    assert_same(restored, expected)


def test_only_the_averages_for_sampling(saved: tuple[pathlib.Path, dict[int, TrainState]]) -> None:
    abstract = tiny.shared_trainer().abstract
    part, meta = restore_part(epath.Path(saved[0]), {"step": abstract.step, "ema": abstract.ema, "log_prior": abstract.log_prior})
    expected = saved[1][6]
    assert_same(part, {"step": expected.step, "ema": expected.ema, "log_prior": expected.log_prior})
    assert meta == META


def test_onto_another_mesh(saved: tuple[pathlib.Path, dict[int, TrainState]]) -> None:
    abstract = tiny.shared_trainer().abstract
    sharding = shardings(tiny.config(), abstract, tiny.mesh(2, 2, 2))
    targets = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)
    checkpoints = opened(saved[0])
    state, _, _ = checkpoints.restore(targets)
    checkpoints.close()
    assert_same(state, saved[1][6])
    assert not state.params["embeddings"]["table"].sharding.is_fully_replicated


def with_leaf(path: list[str], shape: tuple[int, ...] | None = None, dtype: Any = None) -> Any:
    """The abstract state with another shape or type at one place of its params."""
    abstract = tiny.shared_trainer().abstract
    params = jax.tree.map(lambda a: a, abstract.params)
    branch = params
    for name in path[:-1]:
        branch = branch[name]
    leaf = branch[path[-1]]
    branch[path[-1]] = jax.ShapeDtypeStruct(shape or leaf.shape, dtype or leaf.dtype, sharding=leaf.sharding)
    return abstract.replace(params=params)


@pytest.mark.parametrize("change", [{"shape": (25, 8)}, {"shape": (24, 16)}, {"dtype": jnp.bfloat16}, {"dtype": jnp.int32}])
def test_other_shapes_and_types_are_found(change: dict[str, Any], saved: tuple[pathlib.Path, dict[int, TrainState]]) -> None:
    """orbax would cast the type without a word."""
    said = refusal(saved[0], with_leaf(["embeddings", "table"], **change))
    assert "does not fit: params/embeddings/table is float32[24, 8] there, and " in said and "float32[24, 8] by" not in said


def test_a_parameter_more_or_less_is_found(saved: tuple[pathlib.Path, dict[int, TrainState]]) -> None:
    abstract = tiny.shared_trainer().abstract
    more = abstract.replace(params=abstract.params | {"new": abstract.step})
    assert "params/new is absent there, and" in refusal(saved[0], more)
    less = abstract.replace(params={name: branch for name, branch in abstract.params.items() if name != "warp"})
    assert "and absent by this config and code" in refusal(saved[0], less)


def test_read_json(tmp_path: pathlib.Path) -> None:
    (tmp_path / "good.json").write_text('{"a": 1}')
    assert read_json(epath.Path(tmp_path / "good.json")) == {"a": 1}
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read .*: name a run's workdir, whole"):
            read_json(epath.Path(tmp_path / name))
