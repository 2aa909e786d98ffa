"""The training loop: data in, steps out, and everything that a run leaves in its workdir."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding

from cdcd_jax.config import DONE, Config, TryAgain, UserError, to_json
from cdcd_jax.data import files, pipeline, tokenizers
from cdcd_jax.parallel import agreement, hosts
from cdcd_jax.parallel.clock import Clock
from cdcd_jax.parallel.mesh import batch_sharding, constrain, make_mesh, rows_of
from cdcd_jax.parallel.sharding import shardings
from cdcd_jax.training import goodput, telemetry, workdir
from cdcd_jax.training.checkpoint import Checkpoints, check_sealed, newest_step, step_to_go_back_to
from cdcd_jax.training.journal import Journal
from cdcd_jax.training.lock import locked
from cdcd_jax.training.optim import factor
from cdcd_jax.training.progress import Progress, console, progress
from cdcd_jax.training.state import PROBE_STREAM, TrainState, init_state, stream_key
from cdcd_jax.training.step import Step, make_apply, make_step
from cdcd_jax.training.stop import Interrupted, Stop


def train(config: Config, directory: epath.Path, clock: Clock, go_back_to: int | None = None) -> int:
    """Trains, or goes on training, the run in `directory`, from its newest checkpoint or from that of step `go_back_to`; returns the exit code.

    Every process of a job calls it; the first one writes.

    Raises UserError for every mistake of the user's, and for a loss that is not finite; nothing that was saved is lost.
    """
    stop = Stop(clock)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop.listening())
        agreement.compare("start", workdir.flat(dataclasses.asdict(config)) | {"--workdir": directory.as_posix(), "--go_back_to": go_back_to})
        first = hosts.first()
        mesh = make_mesh(config)
        there, still_ours = True, never
        if first:
            there = workdir.prepare(directory, config)
            still_ours = stack.enter_context(locked(directory))
        newest = newest_step(directory)
        back = None if go_back_to is None else step_to_go_back_to(directory, go_back_to)
        saved = (newest if back is None else back) or 0
        if first:
            workdir.check_saved(directory, newest)
        if saved > config.train.num_steps:
            raise UserError(
                f"{directory} has a checkpoint of step {saved:,}, beyond train.num_steps = {config.train.num_steps:,}: give at least {saved:,}."
            )
        probed = workdir.last_step(directory / "telemetry.jsonl") if first else 0
        complete = saved == config.train.num_steps and back is None and int(agreement.largest(probed)) >= saved
        if complete:
            with clock.phase("checkpoint"):
                check_sealed(directory, saved)
            # Whoever names another text for it must not be told that this one is trained on.
            if not int(agreement.largest(first and workdir.moved(directory, config))):
                return say_complete(directory, saved)
        if not first:
            agreement.barrier("the tokenizer is there")
        tokenizer = tokenizers.load(directory / "tokenizer") if there else None
        began = workdir.read_fingerprint(directory) if first and there else ""
        corpus = pipeline.load_corpus(config.data, tokenizer, (jax.process_index(), jax.process_count()), began)
        batches = pipeline.batches(corpus.train, config.train.batch_size, config.train.seed, *rows_of(mesh, config.train.batch_size), corpus.pads)
        stack.callback(batches.close)
        if first:
            if not there:
                workdir.write(directory, config, corpus.tokenizer, corpus.fingerprint)
            agreement.barrier("the tokenizer is there")
        # What all train on must be one text, read alike on all hosts.
        agreement.compare("text", {"the text": corpus.fingerprint, "the tokenizer": corpus.tokenizer.fingerprint})
        if complete:
            if first:
                files.write_whole(directory / "config.json", to_json(config))  # where its text lies now
            return say_complete(directory, saved)
        checkpoints = Checkpoints(directory, config.checkpoint)
        # A save that another process has part in cannot end when something failed.
        stack.push(lambda kind, *_: None if kind and hosts.several() else checkpoints.close())
        log_prior = pipeline.unigram_log_probabilities(corpus.token_counts)
        meta = {
            "config": json.loads(to_json(config)),
            "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
            "data_fingerprint": corpus.fingerprint,
        }
        abstract = jax.eval_shape(lambda: init_state(config, jnp.asarray(log_prior)))
        sharding = shardings(config, abstract, mesh)
        if saved == 0:
            state = jax.jit(lambda: init_state(config, jnp.asarray(log_prior)), out_shardings=sharding)()
        else:
            targets = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, sharding)
            with clock.phase("checkpoint"):
                state, position, saved_meta = checkpoints.restore(targets, saved)
            for what, other in (("tokenizer_fingerprint", "another tokenizer"), ("data_fingerprint", "other data")):
                if saved_meta[what] != meta[what]:
                    raise UserError(f"{directory} was trained with {other} than {config.data.source!r} gives now; nothing was changed.")
            batches.set_state(position)
            if back is not None:
                said = checkpoints.set_aside_after(back)
                if first:
                    console.print(said, soft_wrap=True)
            elif go_back_to is not None and first:
                console.print(
                    f"this run went back to step {go_back_to} before, so it goes on from its newest checkpoint; to go back once more, remove "
                    f"{directory / 'checkpoints' / 'set_aside' / f'after_{go_back_to}.json'} first.",
                    soft_wrap=True,
                )
        loop = Loop(config, directory, corpus, checkpoints, meta, mesh, clock, stop, still_ours)
        return loop.run(make_step(config, sharding, batch_sharding(mesh)), state, saved, batches)


def say_complete(directory: epath.Path, steps: int) -> int:
    """Says that nothing is left to do, in the first process; returns the exit code."""
    if hosts.first():
        console.print(f"{directory} is complete: {steps:,} steps of {steps:,} are done.", soft_wrap=True)
    return DONE


class Loop:
    """One life of a run: the loop over steps, and what its first process writes."""

    def __init__(
        self,
        config: Config,
        directory: epath.Path,
        corpus: pipeline.Corpus,
        checkpoints: Checkpoints,
        meta: dict[str, Any],
        mesh: Mesh,
        clock: Clock,
        stop: Stop,
        still_ours: Callable[[], None],
    ):
        self.config, self.directory, self.checkpoints, self.meta, self.clock, self.stop = config, directory, checkpoints, meta, clock, stop
        self.still_ours = still_ours
        self.first = hosts.first()
        self.sharding: NamedSharding = batch_sharding(mesh)
        self.batch_shape = (config.train.batch_size, config.data.sequence_length)
        held_out = corpus.splits["valid"]
        self.characters_per_token = held_out.num_characters / held_out.num_tokens
        self.probe_rows = pipeline.Spread(held_out.rows, config.log.probe_sequences)
        self.measure = telemetry.make_measure(config, make_apply(config, corpus.tokenizer.vocab_size, constrain(batch_sharding(mesh))), mesh)
        self.journal: Journal | None = None
        self.bar: Progress | None = None
        self.marked: int | None = None  # the checkpoint that is written down as complete
        self.read_out = ""  # what the last probe said, for the progress bar
        self.before = goodput.nothing()  # the lives before
        self.said = (0, 0.0)  # the last logged step, and the seconds spent on steps until then

    def go_on(self, saved: int, journal: Journal) -> bool:
        """Brings the workdir's records back to the step that this life begins with; whether that step has yet to be examined."""
        if saved:
            console.print(f"going on from step {saved:,} of {self.directory}")
        there = workdir.read_config(self.directory)
        if there.train.num_steps != self.config.train.num_steps and self.config.optim.decay != "none":
            console.print(
                f"train.num_steps was {there.train.num_steps:,} and is {self.config.train.num_steps:,} now: the rates go on as in a run of that "
                "length, so this will not be the run that it would have been from the start.", soft_wrap=True
            )
        if there != self.config:  # in what may change
            files.write_whole(self.directory / "config.json", to_json(self.config))
        if not workdir.read_fingerprint(self.directory):  # of an older version, and its checkpoint had the same
            workdir.write_fingerprint(self.directory, self.meta["data_fingerprint"])
        self.before = goodput.carried(journal.amend("metrics.jsonl", saved), saved, self.clock.began)
        probed = max((line["step"] for line in journal.amend("telemetry.jsonl", saved) if line["step"] <= saved), default=0)
        return saved > 0 and self.probe_due(saved) and probed < saved

    def run(self, step: Step, state: TrainState, start: int, batches: pipeline.Batches) -> int:
        """Runs steps start + 1 .. num_steps; returns the exit code."""
        c, stop = self.config, self.stop
        steps, code, done = c.train.num_steps, 0, start
        self.said = (start, 0.0)
        missing = False  # the line of the evaluation after the last saved step
        with contextlib.ExitStack() as stack:
            if self.first:
                self.journal = stack.enter_context(Journal(self.directory, self.still_ours))
                missing = self.go_on(start, self.journal)
                self.bar = stack.enter_context(progress(steps, "training", start))
                console.print("compiling the train step ...")
            self.clock.enter("compile")
            stop.begin()
            if int(agreement.largest(missing)):  # it was cut short
                code = 0 if self.probe(start, state) else self.cut_short(start)
            before, asked = None, agreement.largest(stop.code)
            for done in range(start + 1, steps + 1) if not code else ():
                with self.clock.phase("data"):
                    rows = next(batches)
                batch = {name: jax.make_array_from_process_local_data(self.sharding, values, self.batch_shape) for name, values in rows.items()}
                state, metrics = step(state, batch)
                # Wait for the step before, not for this one: the device always has a step to do. The hosts agree in the same rhythm.
                if before is not None:
                    self.finish(done - 1, before)
                before, code, asked = metrics, int(asked), agreement.largest(stop.code)
                if code:
                    stop.tell(f"finishing step {done:,}")
                last = done == steps or code != 0
                if done % c.checkpoint.every_steps == 0 or last:
                    self.finish(done, metrics, line=True)
                    before = None
                    # The iterator's state is taken before the next batch is.
                    self.save(done, state, batches.get_state())
                self.look_at_saves(done)
                if code and done < steps:
                    break
                if self.probe_due(done):
                    if before is not None:
                        self.finish(done, metrics)
                        before = None
                    if not self.probe(done, state):  # it was cut short by a signal, and is done again in the next life
                        code = self.cut_short(done)
                        self.save(done, state, batches.get_state())
                        break
            self.clock.enter("checkpoint")  # and for all that is closed from here on
            try:
                self.checkpoints.finish()
            finally:
                self.look_at_saves(done)
        if code:
            if self.first:
                console.print(f"stopped and saved at step {done:,} of {steps:,}; the same command goes on from there.")
            return code
        return DONE

    def probe_due(self, step: int) -> bool:
        """Whether the model is examined after this step."""
        return step % self.config.log.probe_every_steps == 0 or step == self.config.train.num_steps

    def save(self, step: int, state: TrainState, position: dict[str, int]) -> None:
        """Begins to save a step in the background."""
        with self.clock.phase("checkpoint"):
            if self.journal:
                self.still_ours()
                self.journal.flush()  # the lines up to a saved step are in place before it is saved
            self.checkpoints.save(step, state, position, self.meta)

    def look_at_saves(self, step: int) -> None:
        """Says what has failed, and writes down what is complete: from then on a workdir without any checkpoint is no new run, but a damaged one."""
        for sentence in self.checkpoints.failures():
            if self.first:
                console.print(f"warning at step {step}: {sentence}", style="yellow", soft_wrap=True)
        complete = self.checkpoints.latest_step()
        if self.first and complete != self.marked and complete is not None:
            try:
                workdir.mark_saved(self.directory, complete)
            except (UserError, TryAgain) as error:  # a full disk, say; the next checkpoint is written down again
                console.print(f"warning at step {step}: {error}", style="yellow", soft_wrap=True)
        self.marked = complete

    def finish(self, step: int, metrics: dict[str, jax.Array], line: bool = False) -> None:
        """Waits for a step, checks its metrics and logs them when they are due. Raises UserError if one is not finite."""
        values = {name: float(value) for name, value in metrics.items()}
        self.clock.finished(step)
        if not all(map(math.isfinite, values.values())):
            with self.clock.phase("checkpoint"):
                self.checkpoints.wait()
            saved = self.checkpoints.latest_step()
            what = "loss" if not math.isfinite(values["loss"]) else "gradient"
            there = f"the last checkpoint is step {saved}" if saved is not None else "nothing is saved yet"
            raise UserError(
                f"the {what} is not finite at step {step}, and {there}: "
                f"train in another workdir with lower rates than optim.learning_rate = {self.config.optim.learning_rate}, or with optim.clip_norm."
            )
        if self.first and (line or step % self.config.log.every_steps == 0):
            self.log(step, values)

    def log(self, step: int, values: dict[str, float]) -> None:
        """A line of metrics.jsonl, and the same to TensorBoard."""
        c, seconds = self.config, self.clock.seconds
        spent = seconds["compile"] + seconds["data"] + seconds["step"]
        tokens = (step - self.said[0]) * c.train.batch_size * c.data.sequence_length
        speed = tokens / max(spent - self.said[1], 1e-9)
        self.said = (step, spent)
        rate = c.optim.learning_rate * float(factor(c, step - 1, np))
        line = {"step": step, **values, "learning_rate": rate, "tokens_per_second": speed, "seconds": sum(seconds.values())}
        line |= goodput.account(self.before, seconds, time.time())
        if self.journal and self.bar:
            self.journal.append("metrics.jsonl", line)
            self.journal.scalars(step, {f"train/{name}": value for name, value in line.items() if isinstance(value, float) and name != "time"})
            self.bar.update(step, f"{self.read_out}loss {values['loss']:.2f}  {speed:,.0f} tokens/s")

    def probe(self, step: int, state: TrainState) -> bool:
        """A line of telemetry.jsonl, its scalars to TensorBoard, its warnings to the log, its bound to the progress bar; False if cut short."""
        # The same rows, noise levels and noise in every probe, so that what changes between two of them is the model.
        key = stream_key(self.config, PROBE_STREAM, 0)
        try:
            with self.clock.phase("evaluation"):
                found = telemetry.probe(
                    self.config, self.measure, state.ema, state.log_prior, self.probe_rows, self.characters_per_token, key, self.heed
                )
        except Interrupted:
            return False
        if self.journal:
            line = {"step": step} | found
            self.journal.append("telemetry.jsonl", line)
            self.journal.scalars(step, {f"probe/{name}": value for name, value in line.items() if isinstance(value, float)})
            for sentence in telemetry.warnings(line):
                console.print(f"warning at step {step}: {sentence}", style="yellow")
            self.read_out = f"bound {line['bits_per_char']:.2f} bits/char  half known at σ {line['half_information_sigma']:.2f}  "
        return True

    def cut_short(self, step: int) -> int:
        """Says that an evaluation was cut short; the exit code that the signal asks for."""
        self.stop.tell(f"cutting the evaluation of step {step:,} short")
        return int(agreement.largest(self.stop.code))

    def heed(self) -> None:
        """Raises Interrupted when a signal came to any process."""
        if int(agreement.largest(self.stop.code)):
            raise Interrupted


def never() -> None:
    """The lock of a process that holds none is never lost."""
