"""Checkpoints of several real processes with gloo between them: saved by two and read by one, and the other way round."""

import os
import pathlib
import socket
import sys
import types
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from cdcd_jax.config import CheckpointConfig, UserError
from cdcd_jax.training import folders
from cdcd_jax.training.checkpoint import Checkpoints, newest_step
from cdcd_jax.training.state import TrainState
from tests import forked, tiny

# The life of a process, run below in processes of their own: (folder) -> None.
Life = Callable[[pathlib.Path], None]


def machines() -> tuple[tiny.Trainer, Callable[[TrainState], TrainState]]:
    """The tiny run over all devices, and an update of its state that gives the same bits on every mesh."""
    work = tiny.trainer(tiny.config(), tiny.mesh(1, jax.device_count(), 1))
    sharding = jax.tree.map(lambda a: a.sharding, work.abstract)
    return work, jax.jit(lambda state: jax.tree.map(lambda a: a * 3 + 1, state), out_shardings=sharding, donate_argnums=0)


def numbers(state: TrainState) -> list[np.ndarray]:
    """All values of a state, in each process."""
    return [np.asarray(multihost_utils.process_allgather(leaf, tiled=True)) for leaf in jax.tree.leaves(state)]


def opened(folder: pathlib.Path) -> Checkpoints:
    return Checkpoints(epath.Path(folder / "run"), CheckpointConfig(keep_last=2))


def begin_and_save(folder: pathlib.Path) -> None:
    work, update = machines()
    state = work.init()
    checkpoints = opened(folder)
    for step in (1, 2, 3):
        state = update(state)
        checkpoints.save(step, state, {"global_next_index": step}, {})
    checkpoints.finish()
    assert checkpoints.steps == [2, 3]
    checkpoints.close()
    np.savez(folder / f"expected{jax.process_index()}.npz", *numbers(update(state)))


def restored(checkpoints: Checkpoints, folder: pathlib.Path, step: int) -> TrainState:
    """The state of the newest step; updated as often as it must be, it is the one that the first two processes ended with."""
    work, update = machines()
    assert checkpoints.latest_step() == newest_step(epath.Path(folder / "run")) == step
    state, data, _ = checkpoints.restore(work.abstract)
    assert data == {"global_next_index": step}
    if step == 3:
        state = update(state)
    for found, expected in zip(numbers(state), np.load(folder / f"expected{jax.process_index()}.npz").values(), strict=True):
        np.testing.assert_array_equal(found, expected)
    return state


def restore_and_save(folder: pathlib.Path) -> None:
    checkpoints = opened(folder)
    checkpoints.save(4, restored(checkpoints, folder, 3), {"global_next_index": 4}, {})
    checkpoints.finish()
    checkpoints.close()


def restore_and_fail(folder: pathlib.Path) -> None:
    """Whichever process cannot write, all learn why, and the next save is whole; so with a damage, which only the first looks for."""
    checkpoints = opened(folder)
    state, me = restored(checkpoints, folder, 4), jax.process_index()
    for step, culprit, part in ((5, 0, "warp"), (6, 1, "state")):
        handler = checkpoints._handlers[part]
        checkpoints._handlers[part] = types.SimpleNamespace(async_save=refuse) if culprit == me else handler
        checkpoints.save(step, state, {}, {})
        checkpoints.wait()
        checkpoints._handlers[part] = handler
        said = f"the checkpoint of step {step} could not be saved (No space left on device): the last good one is of step 4."
        assert checkpoints.failures() == [said]
    checkpoints.save(7, state, {"global_next_index": 7}, {})
    checkpoints.finish()
    assert checkpoints.failures() == []
    assert checkpoints.steps == folders.listed(checkpoints.directory) == [4, 7] and folders.damage(checkpoints.directory, 7) == ""
    multihost_utils.sync_global_devices("saved")
    if me == 0:
        (checkpoints.directory / "7" / "data.json").write_text("{}")
    abstract = machines()[0].abstract
    try:
        checkpoints.restore(abstract)
    except UserError as error:
        assert "7 is damaged (data.json has 2 bytes instead of 24); nothing was changed: python -m cdcd_jax.train with --go_back_to=4" in str(error)
    else:
        raise AssertionError("the damage was not noticed")
    checkpoints.restore(abstract, 4)
    assert checkpoints.set_aside_after(4).startswith("went back to the checkpoint of step 4; that of step 7 is in ")
    assert checkpoints.steps == folders.listed(checkpoints.directory) == [4]
    checkpoints.close()


async def refuse(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def process(life: Life, me: int, count: int, port: int, folder: pathlib.Path) -> None:
    """Runs in a new process."""
    os.dup2(os.open(folder / f"{life.__name__}{me}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    if count > 1:
        jax.distributed.initialize(f"localhost:{port}", count, me)
    life(folder)
    if count > 1:
        jax.distributed.shutdown()  # waits for the others, which may still have to hear from the first
    sys.stderr.flush()


def together(count: int, life: Life, folder: pathlib.Path) -> None:
    """Runs a life in that many processes at once, to its end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [forked.CONTEXT.Process(target=process, args=(life, me, count, port, folder)) for me in range(count)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
        one.kill()
        one.join()
    logs = [(folder / f"{life.__name__}{me}.log").read_text()[-4000:] for me in range(count)]
    assert [one.exitcode for one in processes] == [0] * count, "\n".join(logs)


def test_two_processes_and_one(tmp_path: pathlib.Path) -> None:
    together(2, begin_and_save, tmp_path)
    together(1, restore_and_save, tmp_path)
    together(2, restore_and_fail, tmp_path)
