"""python -m benchmarks.kills [--kills=25] [--seed=0]: a run that is killed with SIGKILL at random moments, saving included, against one that is not.

Both train the demo's method on a small config. After every kill the checkpoints that count are listed, and the next life must go on from the newest
of them or a later one; in the end the losses of all steps must be those of the undisturbed run, to the bit. Half of the kills wait for a save to be
under way. Prints a line of JSON and ends with 1 if anything was lost.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from etils import epath

from cdcd_jax.training import folders, workdir
from cdcd_jax.training.checkpoint import newest_step

KILLS = flags.DEFINE_integer("kills", 25, "How often the run is killed.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")

ROOT = pathlib.Path(__file__).resolve().parent.parent
EVERY = 20  # steps between two saves
STEPS = 2500
CHANGES = {
    "data.tokenizer": "char", "data.sequence_length": 16, "model.num_layers": 2, "model.scan_unroll": 1, "model.width": 64, "model.num_heads": 4,
    "model.mlp_width": 128, "model.embedding_dim": 16, "train.num_steps": STEPS, "train.batch_size": 16, "checkpoint.every_steps": EVERY,
    "log.every_steps": 1, "log.probe_every_steps": 500, "log.probe_sequences": 8,
}  # fmt: skip


class Run:
    """The small config in a workdir of its own."""

    def __init__(self, folder: pathlib.Path, name: str):
        self.workdir, self.log = folder / name, folder / f"{name}.log"
        flags_given = [f"--config.{key}={value}" for key, value in CHANGES.items()]
        self.command = [sys.executable, "-m", "cdcd_jax.train", "--config=configs/demo.py", f"--workdir={self.workdir}", *flags_given]
        # Each program is compiled once for all lives, which changes no bit of it.
        self.environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(self) -> "subprocess.Popen[bytes]":
        with self.log.open("w") as log:
            return subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def saving(self) -> bool:
        return any((self.workdir / "checkpoints").glob(f"*{folders.UNFINISHED}"))

    def saved(self) -> int:
        """The newest checkpoint that counts; 0 if there is none."""
        return newest_step(epath.Path(self.workdir)) or 0

    def began_at(self) -> int:
        """The step that the last life went on from."""
        began = re.search(r"going on from step ([\d,]+)", self.log.read_text())
        return int(began[1].replace(",", "")) if began else 0

    def lines(self) -> list[dict]:
        return workdir.lines(epath.Path(self.workdir / "metrics.jsonl"))

    def reached(self) -> int:
        return workdir.last_step(epath.Path(self.workdir / "metrics.jsonl"))


def main(_: list[str]) -> None:
    generator = random.Random(SEED.value)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole, killed = Run(folder, "whole"), Run(folder, "killed")
        if whole.start().wait():
            sys.exit(whole.log.read_text())
        saving, wrong, expected = 0, [], 0
        for kill in range(KILLS.value):
            process = killed.start()
            target = killed.saved() + generator.randrange(1, 2 * STEPS // KILLS.value // 2)
            wait_for_save = kill % 2 == 0
            end = time.monotonic() + 300
            # The life has begun, and has taken away what the one before left unfinished, when it compiles.
            begun = False
            while not begun or killed.reached() < min(target, STEPS - 2 * EVERY) or (wait_for_save and not killed.saving()):
                begun = begun or "compiling" in killed.log.read_text()
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"it ended by itself: {killed.log.read_text()}")
                time.sleep(0.0005)
            time.sleep(generator.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            if killed.began_at() != expected:
                wrong.append(f"life {kill + 1} began at {killed.began_at()}, and step {expected} was saved")
            saving += killed.saving()
            expected = killed.saved()
            print(f"kill {kill + 1} of {KILLS.value} at step {killed.reached()}, saved {expected}{', saving' if killed.saving() else ''}", flush=True)
        if killed.start().wait():
            sys.exit(killed.log.read_text())
        if killed.began_at() != expected:
            wrong.append(f"the last life began at {killed.began_at()}, and step {expected} was saved")
        same = [(a["step"], a["loss"], a["grad_norm"]) for a in whole.lines()] == [(b["step"], b["loss"], b["grad_norm"]) for b in killed.lines()]
        last = killed.lines()[-1]
        found = {
            "name": "kills", "value": KILLS.value, "unit": "SIGKILLs", "during_a_save": saving, "saved_steps_lost": len(wrong), "wrong": wrong,
            "same_losses": same, "steps": STEPS, "goodput": round(last["goodput"], 3), "wall_seconds": last["wall_seconds"],
        }  # fmt: skip
        print(json.dumps(found))
        sys.exit(0 if same and not wrong else 1)


if __name__ == "__main__":
    app.run(main)
