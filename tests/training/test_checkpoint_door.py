"""Damaged checkpoints and full disks at the train door: what is said, the exit code, and that the run is the unbroken one in the end."""

import json
import os
import pathlib
import re
import resource
import shutil
import time
from typing import Any

import pytest
from etils import epath

from cdcd_jax.training.checkpoint import listed
from tests import forked, tiny

SAME = ("step", "loss", "warp_loss", "grad_norm", "learning_rate")  # of a line of metrics.jsonl; the others are times


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a corpus, a cache of compiled programs, and a whole run of 20 steps with the checkpoints of 10 and 20."""
    folder = tmp_path_factory.mktemp("door")
    (folder / "corpus.txt").write_text(tiny.corpus())
    code, said = life(folder, folder / "run")
    assert code == 0, said
    return folder


def life(folder: pathlib.Path, workdir: pathlib.Path, *flags: str, limit: int = 0, **changes: Any) -> tuple[int | None, str]:
    """The exit code and stderr of a training door. With a limit, no file may be larger once there is a first checkpoint."""
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    log = folder / f"{workdir.name}.log"
    cache = {"jax_compilation_cache_dir": str(folder / "cache"), "jax_persistent_cache_min_compile_time_secs": 0}
    process = forked.begin("train", [*tiny.flags(folder / "corpus.txt", workdir, keys), *flags], [os.devnull, str(log)], cache)
    deadline = time.monotonic() + 200
    while limit and not listed(epath.Path(workdir)):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    if limit:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    code = process.finish(max(0.0, deadline - time.monotonic()))
    return code, " ".join(log.read_text().split())


def lines(workdir: pathlib.Path) -> list[list[float]]:
    return [[json.loads(line)[key] for key in SAME] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_damaged_checkpoint_is_refused_and_going_back_gives_the_same_run(place: pathlib.Path) -> None:
    workdir = pathlib.Path(shutil.copytree(place / "run", place / "damaged"))
    tiny.largest(workdir / "checkpoints" / "20" / "state").write_bytes(b"")
    before = tiny.snapshot(workdir)
    code, said = life(place, workdir, train__num_steps=30)
    assert code == 2 and re.search(r"error: the checkpoint \S+/20 is damaged \(state/\S+ has 0 bytes .*with --go_back_to=10 goes on", said), said
    assert tiny.snapshot(workdir) == before
    code, said = life(place, workdir, "--go_back_to=10")
    assert code == 0, said
    assert f"went back to the checkpoint of step 10; that of step 20 is in {workdir}/checkpoints/set_aside/after_10. going on from step 10" in said
    assert lines(workdir) == lines(place / "run")
    assert (workdir / "checkpoints" / "set_aside" / "after_10" / "20").is_dir()
    # The launcher gives the same command once more.
    code, said = life(place, workdir, "--go_back_to=10", train__num_steps=21)
    assert code == 0 and "went back to step 10 before, so it goes on from its newest checkpoint" in said and "going on from step 20" in said, said


def test_a_full_disk_is_told_and_does_not_end_the_run(place: pathlib.Path) -> None:
    """The limit is below the largest files of a checkpoint, and above whatever else the run writes."""
    workdir, changes = place / "full", {"train__num_steps": 400, "checkpoint__every_steps": 50, "log__every_steps": 50}
    code, said = life(place, workdir, limit=16_000, **changes)
    good = listed(epath.Path(workdir))[-1]
    why = rf"\(File too large\): the last good one is of step {good}\."
    failed = re.findall(rf"warning at step \d+: the checkpoint of step (\d+) could not be saved {why}", said)
    assert code == 2 and [int(step) for step in failed] == list(range(good + 50, 400, 50)), said
    assert said.endswith(
        f"error: the last checkpoint, of step 400, could not be saved (File too large): the last good one is of step {good}; once that is put right, "
        "the same command goes on from there."
    )
    assert "Traceback" not in said
    code, said = life(place, workdir, **changes)
    assert code == 0 and f"going on from step {good} of" in said, said
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["300", "350", "400"]
