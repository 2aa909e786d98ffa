"""The training loop: data in, steps out, and everything that a run leaves in its workdir."""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from cdcd_jax.config import Config, UserError, to_json
from cdcd_jax.data import pipeline, tokenizers
from cdcd_jax.parallel.mesh import batch_sharding, make_mesh
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training import telemetry, workdir
from cdcd_jax.training.checkpoint import Checkpoints, newest_step
from cdcd_jax.training.optim import factor
from cdcd_jax.training.progress import console, progress
from cdcd_jax.training.state import PROBE_STREAM, TrainState, init_state, stream_key
from cdcd_jax.training.step import Step, make_apply, make_step

if TYPE_CHECKING:
    from clu.metric_writers import MetricWriter

DONE, INTERRUPTED, AGAIN = 0, 130, 75  # exit codes: finished; Ctrl-C, saved; told to stop (SIGTERM), saved: start me again


class Stop:
    """Remembers that a signal asked the run to stop, so that the step under way can end and be saved. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.code: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catches SIGINT and SIGTERM inside the block."""
        codes = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: AGAIN}

        def note(number: int, _: Any) -> None:
            if self.code is not None:
                raise KeyboardInterrupt
            self.code = codes[signal.Signals(number)]

        before = {number: signal.signal(number, note) for number in codes}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train(config: Config, directory: epath.Path) -> int:
    """Trains, or goes on training, the run in `directory`; returns the exit code.

    Raises UserError for every mistake of the user's, and for a loss that is not finite; nothing that was saved is lost.
    """
    there = workdir.prepare(directory, config)
    saved = newest_step(directory)
    before = workdir.read_config(directory) if there else config
    if there:
        reached = workdir.last_step(directory / "metrics.jsonl")
        # The first save is under way until the second begins, and a run that was killed by then has lost it.
        if saved is None and reached > 2 * before.checkpoint.every_steps:
            raise UserError(
                f"{directory} has trained to step {reached:,} but holds no checkpoint: put its checkpoints/ back, or name another --workdir; "
                "nothing was changed."
            )
    if saved is not None and saved >= config.train.num_steps:
        if before != config:  # in what may change
            workdir.write_whole(directory / "config.json", to_json(config))
        console.print(f"{directory} is complete: {saved:,} steps of {config.train.num_steps:,} are done.", soft_wrap=True)
        return DONE
    mesh = make_mesh(config)
    corpus = pipeline.load_corpus(config.data, tokenizers.load(directory / "tokenizer") if there else None)
    batches = pipeline.batches(
        corpus.train, config.data.sequence_length, config.train.batch_size, config.train.seed, jax.process_index(), jax.process_count()
    )
    if not there:
        workdir.write(directory, config, corpus.tokenizer)
    log_prior = jnp.asarray(pipeline.unigram_log_probabilities(corpus.train, corpus.tokenizer.vocab_size))
    meta = {
        "config": json.loads(to_json(config)),
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
        "data_fingerprint": corpus.fingerprint,
    }
    abstract = jax.eval_shape(lambda: init_state(config, log_prior))
    sharding = shardings(config, abstract, mesh)
    lock = contextlib.ExitStack()
    lock.enter_context(workdir.locked(directory))
    checkpoints = Checkpoints(directory, config.checkpoint)
    try:
        if saved is None:
            state, start = jax.jit(lambda: init_state(config, log_prior), out_shardings=sharding)(), 0
        else:
            targets = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)
            state, position, saved_meta = checkpoints.restore(targets)
            for what in ("tokenizer_fingerprint", "data_fingerprint"):
                if saved_meta[what] != meta[what]:
                    kind = what.removesuffix("_fingerprint")
                    raise UserError(f"{directory} was trained with another {kind} than {config.data.source!r} gives now; nothing was changed.")
            batches.set_state(position)
            start = saved
            console.print(f"going on from step {start:,} of {directory}")
        if before != config:
            workdir.write_whole(directory / "config.json", to_json(config))
        for name in ("metrics.jsonl", "telemetry.jsonl"):
            workdir.cut_after(directory / name, start)
        step = make_step(config, sharding, batch_sharding(mesh))
        return Loop(config, directory, corpus, checkpoints, meta).run(step, state, start, batches, batch_sharding(mesh))
    finally:
        batches.close()
        checkpoints.close()
        lock.close()


class Loop:
    """One life of a run: the loop over steps, and what it writes."""

    def __init__(self, config: Config, directory: epath.Path, corpus: pipeline.Corpus, checkpoints: Checkpoints, meta: dict[str, Any]):
        self.config, self.directory, self.checkpoints, self.meta = config, directory, checkpoints, meta
        self.characters_per_token = corpus.valid_characters / len(corpus.valid)
        windows = pipeline.windows(corpus.valid, config.data.sequence_length)
        chosen = np.linspace(0, len(windows) - 1, min(config.log.probe_sequences, len(windows))).astype(int)
        self.probe_windows = windows[chosen]
        self.measure = telemetry.make_measure(config, make_apply(config, corpus.tokenizer.vocab_size))
        self.read_out = ""  # what the last probe said, for the progress bar
        self.paused = 0.0  # seconds spent on probes since the last line of metrics

    def run(self, step: Step, state: TrainState, start: int, batches: Any, sharding: NamedSharding) -> int:
        """Runs steps start + 1 .. num_steps; returns the exit code."""
        steps, stop, c = self.config.train.num_steps, Stop(), self.config
        began = said = time.monotonic()
        said_step, before = start, None
        from clu import metric_writers  # here, because it imports TensorFlow: seconds, which a user's mistake need not wait for

        # Summaries go to a writer of their own thread; the loop never waits for the disk.
        writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(self.directory.as_posix()))
        with stop.listening(), progress(steps, "training", start) as bar:
            for done in range(start + 1, steps + 1):
                state, metrics = step(state, jax.make_array_from_process_local_data(sharding, next(batches)["tokens"]))
                # Wait for the step before, not for this one: the device always has a step to do.
                if before is not None:
                    self.check(done - 1, before)
                before = metrics
                stopping = done < steps and stop.code is not None  # asked once: a signal may come at any time
                last = done == steps or stopping
                if done % c.log.every_steps == 0 or last:
                    values = self.check(done, metrics)
                    now = time.monotonic()
                    tokens = (done - said_step) * c.train.batch_size * c.data.sequence_length
                    speed = tokens / max(now - said - self.paused, 1e-9)
                    self.log(writer, done, values | {"tokens_per_second": speed, "seconds": now - began})
                    bar.update(done, f"{self.read_out}loss {values['loss']:.2f}  {speed:,.0f} tokens/s")
                    said, said_step, self.paused = now, done, 0.0
                if done % c.checkpoint.every_steps == 0 or last:
                    self.check(done, metrics)
                    # The iterator's state is taken before the next batch is.
                    self.checkpoints.save(done, state, batches.get_state(), self.meta)
                if stopping:
                    break
                if done % c.log.probe_every_steps == 0 or last:
                    self.probe(writer, done, state)
            writer.close()
            self.checkpoints.wait()
        if stopping and stop.code is not None:
            console.print(f"stopped and saved at step {done:,} of {steps:,}; the same command goes on from there.")
            return stop.code
        return DONE

    def check(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
        """The metrics of a step as numbers, once it is done. Raises UserError if one is not finite."""
        values = {name: float(value) for name, value in metrics.items()}
        if not all(map(math.isfinite, values.values())):
            self.checkpoints.wait()
            saved = self.checkpoints.latest_step()
            what = "loss" if not math.isfinite(values["loss"]) else "gradient"
            there = f"the last checkpoint is step {saved}" if saved is not None else "nothing is saved yet"
            raise UserError(
                f"the {what} is not finite at step {step}, and {there}: "
                f"train in another workdir with lower rates than optim.learning_rate = {self.config.optim.learning_rate}, or with optim.clip_norm."
            )
        return values

    def log(self, writer: "MetricWriter", step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same to TensorBoard."""
        line = {"step": step, **values, "learning_rate": self.config.optim.learning_rate * float(factor(self.config, step - 1, np))}
        append(self.directory / "metrics.jsonl", line)
        writer.write_scalars(step, {f"train/{name}": value for name, value in line.items() if name != "step"})

    def probe(self, writer: "MetricWriter", step: int, state: TrainState) -> None:
        """A line of telemetry.jsonl, its scalars to TensorBoard, its warnings to the log, its bound to the progress bar."""
        began = time.monotonic()
        # The same windows, noise levels and noise in every probe, so that what changes between two of them is the model.
        key = stream_key(self.config, PROBE_STREAM, 0)
        line = {"step": step} | telemetry.probe(
            self.config, self.measure, state.ema, state.log_prior, self.probe_windows, self.characters_per_token, key
        )
        append(self.directory / "telemetry.jsonl", line)
        writer.write_scalars(step, {f"probe/{name}": value for name, value in line.items() if isinstance(value, float)})
        for sentence in telemetry.warnings(line):
            console.print(f"warning at step {step}: {sentence}", style="yellow")
        self.read_out = f"bound {line['bits_per_char']:.2f} bits/char  half known at σ {line['half_information_sigma']:.2f}  "
        self.paused += time.monotonic() - began


def append(path: epath.Path, line: dict[str, Any]) -> None:
    """Adds a line to a .jsonl file."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
