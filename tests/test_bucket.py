"""A run whose workdir and text are in a bucket, on loopback: trained, killed, gone on with, sampled, scored, reported. Real processes.

And buckets that are not there or refuse: one sentence that names them, at once.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import pytest

from tests import buckets, forked, tiny
from tests.training.test_resume import SAME

STEPS, EVERY = 120, 20
CHANGES = {"train.num_steps": STEPS, "checkpoint.every_steps": EVERY, "checkpoint.keep_last": 2}
SCHEMES = ("gs", "s3")
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"}


class Place:
    """The buckets, and doors that find them."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment
        self.address = {"gs": environment["STORAGE_EMULATOR_HOST"], "s3": environment["AWS_ENDPOINT_URL"]}
        # Each program is compiled once for all of these processes, which changes no bit of it.
        self.cache = {"jax_compilation_cache_dir": str(folder / "cache"), "jax_persistent_cache_min_compile_time_secs": 0}

    def put(self, scheme: str, name: str, content: str) -> None:
        """Makes an object of bucket bkt."""
        url, kind = f"{self.address[scheme]}/bkt/{name}", SIGNED | {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, content.encode(), kind, method="PUT")).close()

    def get(self, scheme: str, name: str) -> str:
        """An object of bucket bkt; "" if it is not there."""
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{self.address[scheme]}/bkt/{name}", headers=SIGNED)) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                assert error.code == 404
            return ""

    def names(self, scheme: str) -> set[str]:
        """Those of all objects of the run."""
        url = {"gs": "storage/v1/b/bkt/o?prefix=run/", "s3": "bkt?list-type=2&prefix=run/"}[scheme]
        with urllib.request.urlopen(f"{self.address[scheme]}/{url}") as answer:
            return set(re.findall({"gs": r'"name": "run/(.*?)"', "s3": r"<Key>run/(.*?)</Key>"}[scheme], answer.read().decode()))

    def lines(self, scheme: str) -> list[dict[str, Any]]:
        """Those of metrics.jsonl."""
        return [json.loads(line) for line in self.get(scheme, "run/metrics.jsonl").splitlines()]

    def door(self, name: str, *args: object, scheme: str = "", kill_after: int = 0) -> forked.Ended:
        """Runs a door to its end; or, if `kill_after` is a step, until the metrics in the bucket are beyond it."""
        streams = [str(self.folder / f"{time.monotonic_ns()}.{stream}") for stream in ("stdout", "stderr")]
        process = forked.begin(name, [str(a) for a in args], streams, self.cache, self.environment)
        deadline = time.monotonic() + 200
        while kill_after and process.poll() is None and time.monotonic() < deadline:
            if (lines := self.lines(scheme)) and lines[-1]["step"] > kill_after:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.1)
        code = process.finish(max(deadline - time.monotonic(), 0))
        return forked.Ended(code, *(pathlib.Path(stream).read_text() for stream in streams))


class Story(NamedTuple):
    """What became of the run in one kind of bucket."""

    first: forked.Ended
    seen: list[dict[str, Any]]  # the lines of metrics.jsonl when the first life had been killed
    second: forked.Ended
    later: dict[str, forked.Ended]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("bucket")
    with buckets.serving(folder / "servers.log") as environment:
        place = Place(folder, environment)
        (folder / "corpus").mkdir()
        for name, number in (("a.txt", 120), ("b.txt", 80)):
            (folder / "corpus" / name).write_text(tiny.corpus(number))
            for scheme in SCHEMES:
                place.put(scheme, f"corpus/{name}", tiny.corpus(number))
        yield place


@pytest.fixture(scope="module")
def whole(place: Place) -> list[dict[str, Any]]:
    """The metrics of the same run on disk, which nobody disturbed."""
    ended = place.door("train", *tiny.flags(place.folder / "corpus" / "*.txt", place.folder / "whole", CHANGES))
    assert ended.code == 0, ended.stderr
    return [json.loads(line) for line in (place.folder / "whole" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stories(place: Place, whole: list[dict[str, Any]]) -> "dict[str, Future[Story]]":
    """The run on disk comes first, so that the others find its programs in the cache."""

    def live(scheme: str) -> Story:
        flags = tiny.flags(f"{scheme}://bkt/corpus/*.txt", f"{scheme}://bkt/run", CHANGES)
        first = place.door("train", *flags, scheme=scheme, kill_after=2 * EVERY)
        seen = place.lines(scheme)
        second = place.door("train", *flags)
        run = f"--workdir={scheme}://bkt/run"
        later = {
            "sample": place.door("sample", run, "--num_samples=2", f"--trajectory={scheme}://bkt/run/samples/trajectory.json"),
            "evaluate": place.door("evaluate", run, "--num_samples=2", "--draws=1"),
            "report": place.door("report", run),
        }
        return Story(first, seen, second, later)

    return {scheme: forked.POOL.submit(live, scheme) for scheme in SCHEMES}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_killed_and_gone_on_with_it_has_the_losses_of_the_run_on_disk(scheme: str, place: Place, whole: Any, stories: Any) -> None:
    """Also that the lock of the killed process did not keep the next one waiting, and that a saved step's lines were there."""
    story: Story = stories[scheme].result()
    assert story.first.code == -signal.SIGKILL, story.first.stderr
    assert story.second.code == 0, story.second.stderr
    assert "Traceback" not in story.second.stderr and "waiting up to" not in story.second.stderr
    start = int(re.findall(rf"going on from step (\d+) of {scheme}://bkt/run", story.second.stderr)[0])
    assert start in (EVERY, 2 * EVERY, 3 * EVERY, 4 * EVERY)
    assert [line["step"] for line in story.seen][:start] == list(range(1, start + 1))
    for one, two in zip(whole, place.lines(scheme), strict=True):
        assert [one[key] for key in ("step", *SAME)] == [two[key] for key in ("step", *SAME)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_door_reads_and_writes_there(scheme: str, place: Place, stories: Any) -> None:
    story: Story = stories[scheme].result()
    assert {name: ended.code for name, ended in story.later.items()} == {"sample": 0, "evaluate": 0, "report": 0}, story.later
    names = place.names(scheme)
    kept = {f"checkpoints/{step}/seal.json" for step in (STEPS - EVERY, STEPS)}
    assert {name for name in names if re.fullmatch(r"checkpoints/\d+/seal.json", name)} == kept
    assert {"config.json", "tokenizer/tokenizer.json", "telemetry.jsonl", "eval/nll.json", "samples/trajectory.json", "report.html"} <= names
    assert any(name.startswith("events.out.tfevents.") for name in names)
    assert not names & {"lock", "config.json.writable"} and not any("partial" in name for name in names)
    assert len(place.get(scheme, "run/samples/samples.jsonl").splitlines()) == 2
    report = json.loads(place.get(scheme, "run/report.json"))
    assert report["workdir"] == f"{scheme}://bkt/run" and report["step"] == STEPS and report["nll"]["step"] == STEPS
    assert f"{scheme}://bkt/run/report.html" in story.later["report"].stdout.replace("\n", "")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_damaged_checkpoint_is_named_and_the_way_back_is_open(scheme: str, place: Place, whole: Any, stories: Any) -> None:
    """Nothing is deleted, although a bucket cannot rename; and the run is the unbroken one again."""
    stories[scheme].result()
    run, before = f"{scheme}://bkt/run", place.names(scheme)
    place.put(scheme, f"run/checkpoints/{STEPS}/data.json", "{}")
    ended = place.door("sample", f"--workdir={run}")
    size = len(json.dumps({"global_next_index": STEPS * tiny.TINY["train.batch_size"]}))
    damaged = f"error: the checkpoint {run}/checkpoints/{STEPS} is damaged (data.json has 2 bytes instead of {size}); nothing was changed: "
    assert ended.code == 2 and damaged in ended.stderr and f"with --go_back_to={STEPS - EVERY} goes on" in ended.stderr, ended.stderr
    flags = tiny.flags(f"{scheme}://bkt/corpus/*.txt", run, CHANGES)
    ended = place.door("train", *flags, f"--go_back_to={STEPS - EVERY}")
    assert ended.code == 0 and f"going on from step {STEPS - EVERY} of {run}" in ended.stderr.replace("\n", " "), ended.stderr
    part = f"checkpoints/{STEPS}/"
    moved = {f"checkpoints/set_aside/after_{STEPS - EVERY}/{name.removeprefix('checkpoints/')}" for name in before if name.startswith(part)}
    assert len(moved) > 10 and moved <= place.names(scheme)
    assert not any(name.endswith(".unfinished") for name in place.names(scheme))
    assert [[line[key] for key in ("step", *SAME)] for line in place.lines(scheme)] == [[line[key] for key in ("step", *SAME)] for line in whole]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_data_is_prepared_there(scheme: str, place: Place) -> None:
    """From a text on disk, into the very files that a disk gets; the second call reads and hashes them."""
    flags = [flag for flag in tiny.flags(place.folder / "corpus" / "*.txt", "") if not flag.startswith("--workdir")]
    here, there = place.folder / f"prepared-{scheme}", f"{scheme}://bkt/run-prepared"
    for output in (here, there, there):
        ended = place.door("prepare", *flags, f"--output={output}", "--workers=1")
        assert ended.code == 0, ended.stderr
    assert f"{there} is complete" in ended.stdout
    assert place.get(scheme, "run-prepared/manifest.json") == (here / "manifest.json").read_text()
    assert place.get(scheme, "run-prepared/token_counts.json") == (here / "token_counts.json").read_text()
    assert not place.get(scheme, "run-prepared/unfinished/plan.json")


REFUSALS = {
    "train: no such bucket": ("train", "{scheme}://nobucket/run", "kjv", "the bucket {scheme}://nobucket does not exist"),
    "train: a bucket that refuses": ("train", "{scheme}://closed/run", "kjv", "the bucket {scheme}://closed cannot be used ("),
    "train: a bucket that is only read": ("train", "{scheme}://readonly/run", "kjv", "the workdir {scheme}://readonly/run cannot be written ("),
    "train: the text's bucket refuses": ("train", "{scheme}://bkt/fresh", "{scheme}://closed/a.txt", "the bucket {scheme}://closed cannot be used ("),
    "prepare: a bucket that is only read": ("prepare", "{scheme}://readonly/out", "kjv", "{scheme}://readonly/out"),
    "sample: no such bucket": ("sample", "{scheme}://nobucket/run", "", "the bucket {scheme}://nobucket does not exist"),
    "report: no such run": ("report", "{scheme}://bkt/nothing", "", "there is no workdir '{scheme}://bkt/nothing'"),
}


@pytest.fixture(scope="module")
def refusals(place: Place, stories: Any) -> "dict[tuple[str, str], Future[tuple[forked.Ended, float]]]":
    def run(name: str, scheme: str) -> tuple[forked.Ended, float]:
        began = time.monotonic()
        door, workdir, source, _ = (part.format(scheme=scheme) for part in REFUSALS[name])
        flags = tiny.flags(source, workdir) if door == "train" else [f"--workdir={workdir}"]
        ended = place.door(door, *(["--config=configs/demo.py", f"--output={workdir}"] if door == "prepare" else flags))
        return ended, time.monotonic() - began

    return {(name, scheme): forked.POOL.submit(run, name, scheme) for scheme in SCHEMES for name in REFUSALS}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_line_that_names_the_bucket_and_no_minutes_of_trying(name: str, scheme: str, refusals: Any) -> None:
    ended, seconds = refusals[name, scheme].result()
    assert ended.code == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: " + REFUSALS[name][3].format(scheme=scheme)) and line.endswith(".")
    assert seconds < 40  # of which most is the start of Python on a busy machine


PREPARED = """
import pathlib, sys
import numpy as np
from etils import epath
from cdcd_jax.config import UserError
from cdcd_jax.data import files, pipeline
from tests.data import folders

home, scheme = pathlib.Path(sys.argv[1]), sys.argv[2]
target, cache = files.locate(f"{scheme}://bkt/data"), home / "cache" / "cdcd_jax" / "shards"
folders.make(epath.Path(home / "data"), 8, "pack", {"train": 50, "valid": 12})
for path in (home / "data").rglob("*.*"):
    (target / str(path.relative_to(home / "data"))).write_bytes(path.read_bytes())
wanted, config = folders.rows(8, "pack", 50)["tokens"], folders.config(target, 8, "pack")

def read():
    rows = pipeline.load_corpus(config, share=(0, 2)).train
    assert np.array_equal(rows.read(np.arange(50))["tokens"], wanted)
    return {path: path.stat().st_mtime_ns for path in cache.iterdir()}

first = read()
assert len(first) == 4 and read() == first  # copied once, and all of them by each process
(damaged := min(first)).write_bytes(b"damaged")
again = read()
assert {path for path in first if again[path] != first[path]} == {damaged}
shard = target / "train-00001-of-00003.array_record"
content = shard.read_bytes()
for path in first:
    path.unlink()
for change, word in ((lambda: shard.write_bytes(content[::-1]), "content"), (lambda: shard.write_bytes(b""), "bytes"), (shard.unlink, "missing")):
    change()
    try:
        read()
        raise SystemExit(f"{word}: no error")
    except UserError as error:
        assert str(shard) in str(error) and word in str(error), error
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_prepared_data_is_read_from_verified_copies(scheme: str, place: Place) -> None:
    home = place.folder / f"prepared_{scheme}"
    environment = os.environ | place.environment | {"XDG_CACHE_HOME": str(home / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PREPARED, str(home), scheme]
    done = subprocess.run(command, cwd=forked.ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
