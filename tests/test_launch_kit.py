"""Launchers other than tpu_vm.sh, and the process on a machine, against stand-ins of the platforms' commands (platforms.py)."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

from tests.platforms import Platform, wait_until

VM = ["--name=a", "--zone=us-a1-b"]
TRAINER = ["--", "--config=configs/demo.py", "--workdir=gs://b/runs/a"]
JOB = ["--name=a", "--topology=v5e:4x4", "--image=r/i:1"]
CLUSTER = ["--cluster=c", "--zone=us-a1-b"]
NODES = ["--name=a", "--nodes=2", "--gpus=2"]


# One process

LEFT_OVER = ["JAX_PLATFORMS", "TPU_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "TPU_CHIPS_PER_PROCESS_BOUNDS"]


def worker(platform: Platform, *words: str, kind: str = "gke", **changes: str) -> tuple[int, str, str]:
    trainer = {"PYTHON": str(platform.folder / "trainer"), "PLATFORM": kind}
    return platform.run("launch/worker.sh", *words, **trainer, **changes)


@pytest.mark.parametrize(
    ("kind", "kept", "port"),
    [("gke", f"MEGASCALE_SLICE_ID TPU_WORKER_ID {' '.join(LEFT_OVER)}", ""), ("tpu_vm", "", "8476"), ("slurm", "", str(61440 + (4000 + 100) % 4096))],
)
def test_worker_keeps_what_its_platform_sets_and_nothing_else(platform: Platform, kind: str, kept: str, port: str) -> None:
    platform.lives(laptop="0", _0="0")
    names = ["MEGASCALE_SLICE_ID", "TPU_WORKER_ID", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", *LEFT_OVER]
    slurm = {"SLURM_JOB_ID": "4000", "SLURM_RESTART_COUNT": "100", "SLURM_PROCID": "0"} if kind == "slurm" else {}
    code, _, err = worker(platform, "--workdir=gs://b/r", kind=kind, **dict.fromkeys(names, "5"), **slurm, STUB_HOST="laptop")
    assert code == 0
    written = (platform.folder / "lives" / f"{'0' if slurm else 'laptop'}.environment").read_text()
    found = dict(line.split("=", 1) for line in written.splitlines())
    assert set(found) & set(names) == set(kept.split()) and found.get("JAX_COORDINATOR_PORT", "") == port
    assert all((f"left over from before, and removed: {name}=5" in err) == (name not in found) for name in names)


@pytest.mark.parametrize(
    ("workdir", "compiled"), [("~/x", "/home/ann/compiled"), ("/shared/runs/a/", "/shared/runs/compiled"), ("gs://b/r//", "gs://b/compiled")]
)
def test_worker_keeps_what_is_compiled_beside_the_workdir(platform: Platform, workdir: str, compiled: str) -> None:
    platform.lives(laptop="0")
    assert worker(platform, f"--workdir={workdir}", STUB_HOST="laptop", HOME="/home/ann")[0] == 0
    assert f"JAX_COMPILATION_CACHE_DIR={compiled}" in (platform.folder / "lives" / "laptop.environment").read_text().splitlines()


def test_worker_waits_for_devices_that_another_process_holds(platform: Platform) -> None:
    device = platform.folder / "vfio0"
    device.touch()
    platform.lives(laptop="0 0")
    place = {"STUB_HOST": "laptop", "DEVICES": str(device)}

    def holds_it(name: str, **changes: str) -> subprocess.Popen[bytes]:
        with device.open() as held:
            holder = subprocess.Popen(["bash", "-c", f"exec -a {name} sleep 60"], stdin=held, env=os.environ | changes)
        end = time.monotonic() + 60
        while not pathlib.Path(f"/proc/{holder.pid}/cmdline").read_bytes().startswith(name.encode()):  # until then it is bash
            assert time.monotonic() < end
            time.sleep(0.01)
        return holder

    for name in ("another", "cdcd_jax.train"):  # the second one was started by hand
        with holds_it(name) as other:
            code, _, err = worker(platform, "--workdir=gs://b/r", **place)
            other.kill()
        said = f"error: process {other.pid} ({name} 60 ) on laptop holds the device: end it there with kill {other.pid}.\n"
        assert code == 75 and said in err, err  # it may have ended when the job is started again
    with holds_it("cdcd_jax.train", PLATFORM="gke") as crashed:
        code, _, err = worker(platform, "--workdir=gs://b/r", **place)
        crashed.kill()
    assert code == 0 and f"process {crashed.pid} of an earlier life still holds the device: killed." in err


def test_worker_passes_a_stop_on_and_remembers_it(platform: Platform) -> None:
    platform.lives(laptop="stoppable")
    changes = {"PYTHON": str(platform.folder / "trainer"), "PLATFORM": "gke", "CODES": str(platform.folder), "STUB_HOST": "laptop"}
    process = platform.start("launch/worker.sh", "--workdir=gs://b/r", **changes)
    wait_until(platform.folder / "lives" / "laptop.running")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode == 75 and (platform.folder / "0.code").read_text() == "75 told\n"


# Slurm


@pytest.mark.parametrize(
    ("lives", "options", "code", "starts"),
    [
        ("75 0|75 0|75 0|75 0", [], 0, 2),
        ("0 0|kill 0|75 0|75 0", [], 0, 2),
        ("75 75 75|0 0 0|0 0 0|0 0 0", ["--max-restarts=1"], 75, 2),
        ("75|75|2|75", [], 2, 1),
        ("75|1|75|75", [], 1, 1),
        ("told told told 0|75 75 75 0|75 75 75 0|75 75 75 0", ["--max-restarts=0"], 0, 4),
    ],
)
def test_slurm_restarts(platform: Platform, lives: str, options: list[str], code: int, starts: int) -> None:
    platform.lives(**{f"_{index}": words for index, words in enumerate(lives.split("|"))})
    project = platform.project()
    assert platform.run(project / "launch" / "slurm.sh", "run", *NODES, *options, *TRAINER)[0] == 0
    said = platform.run(project / "launch" / "slurm.sh", "logs", "--name=a")[1]
    assert int((platform.folder / "code").read_text()) == code
    assert said.count("processes ended with") == starts == len(platform.calls("srun")), said
    if code in (1, 2):
        index = lives.split("|").index(str(code))
        assert f"the last lines of process {index} (slurm/7/0/{index}.log):" in said and said.rstrip().endswith("Error: the last line of it")
        assert not platform.calls("scontrol")


def test_slurm_logs_are_those_of_the_name(platform: Platform) -> None:
    launch = platform.project() / "launch"
    (launch.parent / "slurm").mkdir()
    for name in ("a-7", "a-b-8", "a-2-9"):
        (launch.parent / "slurm" / f"{name}.out").write_text(f"said by {name}\n")
    assert platform.run(launch / "slurm.sh", "logs", "--name=a")[:2] == (0, "said by a-7\n")
    shown = [platform.run(launch / "slurm.sh", "logs", f"--name={name}", "--dry-run") for name in ("a", "b")]
    assert shown == [(0, f"tail -n 40 {launch.parent}/slurm/{name}.out\n", "") for name in ("a-7", "b-JOB")]
    code, _, err = platform.run(launch / "slurm.sh", "logs", "--name=b")
    assert code == 2 and err == "error: the job b has written nothing yet: squeue --me tells why.\n"


def test_slurm_does_not_queue_a_cancelled_job_again(platform: Platform) -> None:
    platform.lives(_0="told", _1="75", _2="75", _3="75")
    platform.answer("squeue", (0, "", ""), (0, "COMPLETING\n", ""))
    platform.run(platform.project() / "launch" / "slurm.sh", "run", *NODES, *TRAINER)
    assert not platform.calls("scontrol") and "the job is COMPLETING: not queued again." in (platform.folder / "project/slurm/a-7.out").read_text()


def test_slurm_queues_a_job_again_though_its_controller_does_not_answer_at_once(platform: Platform) -> None:
    platform.lives(_0="75 0", _1="0 0", _2="0 0", _3="0 0")
    busy = (1, "", "slurm_load_jobs error: Socket timed out on send/recv operation\n")
    platform.answer("squeue", (0, "", ""), busy, busy, (0, "RUNNING\n", ""))
    assert platform.run(platform.project() / "launch" / "slurm.sh", "run", *NODES, *TRAINER)[0] == 0
    assert (platform.folder / "code").read_text() == "0" and len(platform.calls("srun")) == 2
    assert "squeue failed (2 of 5 times).\n" in (platform.folder / "project/slurm/a-7.out").read_text()


# GKE

ENDS = [("Completed;0;", "", 0), ("Failed;3;x", "a-0=75\na-1=75\n", 75), ("Failed;0;x", "a-0=75\na-1=2\n", 2), ("Failed;0;x", "a-0=\na-1=1\n", 1)]


@pytest.mark.parametrize(
    ("script", "words", "end", "pods", "code"),
    [*(("jobset.sh", JOB, *end) for end in ENDS), *(("xpk.sh", [*JOB, *CLUSTER], *end) for end in ENDS[1:3])],
)
def test_gke_watches_a_job_and_ends_as_it_does(platform: Platform, script: str, words: list[str], end: str, pods: str, code: int) -> None:
    platform.answer("kubectl get jobset", (0, "", ""), (0, ";0;", ""), (0, ";1;", ""), (0, end, ""))
    platform.answer("kubectl get pods", (0, "Pending: 0/3 nodes are available: out of quota.", ""), (0, "Running: ", ""), (0, "", ""), (0, pods, ""))
    platform.answer("kubectl logs", (0, "the last line of it\n", ""))
    ended, _, err = platform.run(f"launch/gke/{script}", "run", *words, *TRAINER)
    assert ended == code and "a: restarts: 0; Pending: 0/3 nodes are available: out of quota.\n" in err and "a: restarts: 1; Running" in err, err
    if code:
        failed = next(pair.split("=")[0] for pair in pods.split() if pair.endswith(f"={code}"))
        assert f"the last lines of {failed}:\nthe last line of it" in err
        assert platform.calls("kubectl", "logs", failed)[0][3:] == ["--tail=20", "--namespace=default"]


def test_gke_refuses_a_name_that_is_taken(platform: Platform) -> None:
    platform.answer("kubectl get jobset", (0, "jobset.jobset.x-k8s.io/a\n", ""))
    for script, words in (("jobset.sh", JOB), ("xpk.sh", [*JOB, *CLUSTER])):
        code, _, err = platform.run(f"launch/gke/{script}", "run", *words, *TRAINER)
        assert code == 2 and f"is taken by a job on this cluster: choose another, or remove that one with: launch/gke/{script} delete --name=a" in err
    assert not platform.calls("xpk", "workload", "create") and not platform.calls("kubectl", "create")


def test_gke_says_that_there_is_no_such_job(platform: Platform) -> None:
    missing = (1, "", 'Error from server (NotFound): jobsets.jobset.x-k8s.io "a" not found\n')
    platform.answer("kubectl delete jobset", missing)
    platform.answer("xpk workload delete", missing)
    platform.answer("kubectl logs", (0, "", "No resources found in default namespace.\n"))
    for script, words in (("jobset.sh", ["--name=a"]), ("xpk.sh", ["--name=a", *CLUSTER])):
        for verb in ("logs", "delete"):
            code, _, err = platform.run(f"launch/gke/{script}", verb, *words)
            assert (code, err) == (2, "error: there is no job named a on this cluster, or it has no pods yet: run makes one.\n")
