"""What checkpoints cost: the trainer's wait for them, and the seal that makes every damage seen."""

import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks.ratios import Result, random_tokens, start
from cdcd_jax.config import CheckpointConfig, Config
from cdcd_jax.parallel.mesh import batch_sharding
from cdcd_jax.training import seal
from cdcd_jax.training.checkpoint import Checkpoints
from cdcd_jax.training.state import TrainState


def filled(state: TrainState) -> TrainState:
    """The same state with random numbers in it: zeros, of which an optimiser is full at the start, would be packed into nothing on the disk."""
    generator = np.random.default_rng(0)
    values = [generator.standard_normal(leaf.shape, dtype=np.float32) if leaf.dtype == np.float32 else leaf for leaf in jax.tree.leaves(state)]
    return jax.device_put(jax.tree.unflatten(jax.tree.structure(state), values), jax.tree.map(lambda leaf: leaf.sharding, state))


def checkpoint_wait(config: Config, repeats: int, num_steps: int) -> Result:
    """The share of a run's time that the loop waits for checkpoints, when it saves every num_steps steps and trains on meanwhile.

    The wait is the whole of `Checkpoints.save`: for the save before it, should it still be under way, and for the copy of the state. The state is
    computed beforehand: it is waited for whether it is saved or not.
    """
    step, state, mesh = start(config)
    batch = jax.device_put({"tokens": random_tokens(config, (config.train.batch_size, config.data.sequence_length))}, batch_sharding(mesh))
    state, metrics = step(filled(state), batch)
    shares, waits = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(epath.Path(folder), CheckpointConfig())
        for repeat in range(repeats + 1):  # the first is not counted: orbax warms up
            began = time.perf_counter()
            for _ in range(num_steps):
                before = metrics
                state, metrics = step(state, batch)
                jax.block_until_ready(before)
            jax.block_until_ready(state)
            asked = time.perf_counter()
            checkpoints.save(repeat, state, {"global_next_index": repeat}, {})
            ended = time.perf_counter()
            shares.append((ended - asked) / (ended - began))
            waits.append(ended - asked)
        checkpoints.finish()
        checkpoints.close()
    details = {"steps": num_steps, "repeats": repeats, "seconds": statistics.median(waits[1:]), "largest": max(shares[1:])}
    return Result(statistics.median(shares[1:]), "fraction of the run's time", f"wall time of {num_steps} steps and the save after them", details)


def seal_ratio(config: Config, repeats: int, num_steps: int) -> Result:
    """The time to seal a checkpoint of the config's state over the time to write it, both in the background; and the time to verify and to restore.

    Written: arrays, index, data position and meta, from the call of `save` until all is on the disk (in its cache). Sealed: every file read and
    hashed. Verified: the same and compared. Restored: the state read into place, with the verification before it.
    """
    del num_steps
    _, state, _ = start(config)
    state = filled(state)
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    times: dict[str, list[float]] = {"save": [], "seal": [], "verify": [], "restore": []}

    def timed(name: str, call: Any, *args: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(call(*args))
        times[name].append(time.perf_counter() - began)
        return result

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(epath.Path(folder), CheckpointConfig(keep_last=1))

        def save(step: int) -> None:
            checkpoints.save(step, state, {}, {})
            checkpoints.finish()

        for step in range(repeats + 1):
            timed("save", save, step)
            path = epath.Path(folder) / "checkpoints" / str(step)
            (path / seal.NAME).unlink()
            timed("seal", seal.write, path, step)
            assert timed("verify", seal.faults, path, step) == []
            timed("restore", checkpoints.restore, abstract)
        size = sum(file.size for file in seal.listing(path).values())
        number = len(seal.listing(path))
        checkpoints.close()
    seconds = {f"{name}_seconds": statistics.median(values[1:]) for name, values in times.items()}
    write = seconds["save_seconds"] - seconds["seal_seconds"]
    return Result(seconds["seal_seconds"] / write, "ratio", "writing the checkpoint", seconds | {"bytes": size, "files": number, "repeats": repeats})
