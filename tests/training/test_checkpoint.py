"""Checkpoints: what comes back is what was saved, bit for bit, or an error that says what is wrong and changes nothing."""

import dataclasses
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from cdcd_jax.config import CheckpointConfig, UserError
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training.checkpoint import Checkpoints, read_json
from cdcd_jax.training.state import TrainState
from tests import tiny

CONFIG = CheckpointConfig(every_steps=1, keep_last=3)
# Reads that orbax gave up on fail once more when nobody waits for them.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
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


@pytest.fixture
def workdir(saved: tuple[pathlib.Path, dict[int, TrainState]], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of it, to damage."""
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"


def opened(folder: pathlib.Path) -> Checkpoints:
    return Checkpoints(epath.Path(folder), CONFIG)


def refusal(folder: pathlib.Path, abstract: Any = None) -> str:
    """The sentence with which restoring is refused, once it is seen that nothing was changed."""
    before = tiny.snapshot(folder)
    checkpoints = opened(folder)
    with pytest.raises(UserError) as error:
        checkpoints.restore(tiny.shared_trainer().abstract if abstract is None else abstract)
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
    like = TrainState(jnp.int32(0), {"a": jnp.zeros(3)}, {"warp": {"axis_logits": jnp.zeros(3)}}, large, jnp.zeros(2))
    step = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(epath.Path(tmp_path), CONFIG)
    state = step(like)
    checkpoints.save(1, state, {}, {})
    under_way = 0
    for _ in range(40):
        state = step(state)
        under_way += checkpoints.manager.is_saving_in_progress()
    jax.block_until_ready(state)
    checkpoints.close()
    assert under_way, "the save was over before the steps began: make the state larger"
    checkpoints = opened(tmp_path)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restored, _, _ = checkpoints.restore(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), jax.eval_shape(lambda: like)))
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
    checkpoints = opened(saved[0])
    part, meta = checkpoints.restore_part({"step": abstract.step, "ema": abstract.ema, "log_prior": abstract.log_prior})
    checkpoints.close()
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


def test_the_oldest_are_dropped(saved: tuple[pathlib.Path, dict[int, TrainState]], workdir: pathlib.Path) -> None:
    state, _ = tiny.shared_trainer().run(tiny.shared_trainer().init(), 1)
    checkpoints = Checkpoints(epath.Path(workdir), dataclasses.replace(CONFIG, keep_last=2))
    checkpoints.save(8, state, {}, META)
    checkpoints.close()
    assert sorted(os.listdir(workdir / "checkpoints")) == ["6", "8"]


def test_a_step_is_saved_once(workdir: pathlib.Path) -> None:
    """The last step may be one at which a checkpoint is due anyway."""
    before = tiny.snapshot(workdir)
    checkpoints = opened(workdir)
    checkpoints.save(6, tiny.shared_trainer().init(), {}, {})
    checkpoints.close()
    assert tiny.snapshot(workdir) == before


def test_no_checkpoint(tmp_path: pathlib.Path) -> None:
    checkpoints = opened(tmp_path)
    assert checkpoints.latest_step() is None
    with pytest.raises(UserError, match=f"there is no checkpoint in {tmp_path / 'checkpoints'}: train first."):
        checkpoints.restore(tiny.shared_trainer().abstract)
    checkpoints.close()


def test_a_save_that_was_cut_short_does_not_count(saved: tuple[pathlib.Path, dict[int, TrainState]], workdir: pathlib.Path) -> None:
    """As `kill -9` leaves it: a folder under the name of work in progress, with some of the files."""
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "6" / "state", folder / "8.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp")
    checkpoints = opened(workdir)
    assert checkpoints.latest_step() == 6
    state, _, _ = checkpoints.restore(tiny.shared_trainer().abstract)
    checkpoints.close()
    assert_same(state, saved[1][6])


def halve(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "the state is missing": lambda step: shutil.rmtree(step / "state"),
    "the arrays are missing": lambda step: [shutil.rmtree(path) for path in (step / "state").glob("*") if path.is_dir()],
    "the largest file is missing": lambda step: tiny.largest(step).unlink(),
    "the largest file is truncated": lambda step: halve(tiny.largest(step)),
    "the largest file is empty": lambda step: tiny.largest(step).write_bytes(b""),
    "the manifest is missing": lambda step: [path.unlink() for path in step.rglob("manifest.ocdbt")],
    "the tree is garbage": lambda step: (step / "state" / "_METADATA").write_text("{"),
    "the data position is missing": lambda step: shutil.rmtree(step / "data"),
    "the data position is garbage": lambda step: [path.write_text("{") for path in (step / "data").rglob("*") if path.is_file()],
    "the meta is missing": lambda step: shutil.rmtree(step / "meta"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_nothing_is_changed(what: str, workdir: pathlib.Path) -> None:
    DAMAGE[what](workdir / "checkpoints" / "6")
    said = refusal(workdir)
    assert said.startswith(f"the checkpoint {workdir / 'checkpoints' / '6'} cannot be read (")
    assert said.endswith("nothing was changed: move it away to go on from step 4.")


def test_moving_it_away_helps(saved: tuple[pathlib.Path, dict[int, TrainState]], workdir: pathlib.Path) -> None:
    tiny.largest(workdir / "checkpoints" / "6").unlink()
    shutil.move(workdir / "checkpoints" / "6", workdir / "moved")
    checkpoints = opened(workdir)
    state, data, _ = checkpoints.restore(tiny.shared_trainer().abstract)
    checkpoints.close()
    assert_same(state, saved[1][4])
    assert data == {"global_next_index": 32}


def test_without_an_older_one_it_says_so(workdir: pathlib.Path) -> None:
    for step in ("2", "4"):
        shutil.rmtree(workdir / "checkpoints" / step)
    tiny.largest(workdir / "checkpoints" / "6").unlink()
    assert refusal(workdir).endswith("nothing was changed: there is no older one, so train again in another workdir.")


def test_a_damaged_checkpoint_is_no_model_either(workdir: pathlib.Path) -> None:
    tiny.largest(workdir / "checkpoints" / "6").unlink()
    abstract = tiny.shared_trainer().abstract
    checkpoints = opened(workdir)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.restore_part({"ema": abstract.ema})
    checkpoints.close()


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
def test_other_shapes_and_types_are_found(change: dict[str, Any], workdir: pathlib.Path) -> None:
    """orbax would cast the type without a word."""
    said = refusal(workdir, with_leaf(["embeddings", "table"], **change))
    assert "params/embeddings/table is ((24, 8), 'float32') there, and (" in said


def test_a_parameter_more_or_less_is_found(workdir: pathlib.Path) -> None:
    abstract = tiny.shared_trainer().abstract
    more = abstract.replace(params=abstract.params | {"new": abstract.step})
    assert "params/new is absent there, and" in refusal(workdir, more)
    less = abstract.replace(params={name: branch for name, branch in abstract.params.items() if name != "warp"})
    assert "and absent in this run" in refusal(workdir, less)


def test_read_json(tmp_path: pathlib.Path) -> None:
    (tmp_path / "good.json").write_text('{"a": 1}')
    assert read_json(epath.Path(tmp_path / "good.json")) == {"a": 1}
    (tmp_path / "bad.json").write_text("{")
    for name in ("bad.json", "none.json"):
        with pytest.raises(UserError, match=f"{name} cannot be read .*: name a run's workdir, whole"):
            read_json(epath.Path(tmp_path / name))
