"""The launchers for clusters against stand-ins of the platforms' commands (platforms.py): their restarts, what they say, and what they call."""

import os
import pathlib
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.platforms import COMMANDS, ROOT, Platform, open_platform, wait_until

VM = ["--name=a", "--zone=z"]
TPU = [*VM, "--topology=v5e:4x4"]
TRAINER = ["--", "--config=configs/demo.py", "--workdir=gs://b/runs/a"]
JOB = ["--name=a", "--topology=v5e:4x4", "--image=r/i:1"]
CLUSTER = ["--cluster=c", "--zone=z"]
NODES = ["--name=a", "--nodes=2", "--gpus=2"]


@pytest.fixture
def platform(tmp_path: pathlib.Path) -> Iterator[Platform]:
    with open_platform(tmp_path / "platform") as opened:
        yield opened


# TPU VMs


def test_tpu_vm_from_nothing_to_a_finished_job_in_three_commands(platform: Platform) -> None:
    platform.lives(a_0_w_0="0", a_0_w_1="75 0", a_1_w_0="0 0", a_1_w_1="0 0")
    platform.lives(a_0_w_0="75 0")
    several = [*TPU, "--slices=2", "--spot"]
    assert platform.run("launch/tpu_vm.sh", "create", *several)[0] == 0
    assert platform.run("launch/tpu_vm.sh", "setup", *VM, "--slices=2")[0] == 0
    code, out, err = platform.run("launch/tpu_vm.sh", "run", *several, *TRAINER, MEGASCALE_NUM_SLICES="3", JAX_PROCESS_ID="1")
    assert code == 0 and "starting all workers again (1 of at most 3 times)" in err
    assert err.endswith("the TPUs are still there: launch/tpu_vm.sh delete --name=a --zone=z --slices=2 removes them\n")
    assert f"[a-0-w-0] life of a-0-w-0: -u -m cdcd_jax.train {' '.join(TRAINER[1:])} --config.hosts.meet_seconds=1800\n" in out
    assert platform.run("launch/tpu_vm.sh", "logs", *VM, "--slices=2")[1].count("Error: the last line of it") == 4
    assert platform.run("launch/tpu_vm.sh", "delete", *VM, "--slices=2")[0] == 0
    assert not (platform.folder / "vms").exists()
    installs = (platform.folder / "python").read_text()
    assert installs.count("install --no-build-isolation --requirement requirements.lock jax[tpu]\n") == 4
    # What an earlier job left is gone, the port is the one that Google's firewall rule opens, and what was compiled lies in the bucket.
    found = (platform.folder / "lives" / "a-1-w-1.environment").read_text().splitlines()
    assert sorted(found) == [
        "CDCD_MULTIHOST=1", "JAX_COMPILATION_CACHE_DIR=gs://b/runs/compiled", "JAX_COORDINATOR_PORT=8476", "PLATFORM=tpu_vm"
    ]  # fmt: skip


# What the trainer does on the two workers, life by life; options; the code at the end; how often each restart was said.
RULES = [
    (["75 0", "75 0"], [], 0, "(1 of at most 3 times)"),
    (["kill 0", "75 0"], [], 0, "(1 of at most 3 times)"),
    (["75 75 75", "0 0 0"], ["--max-restarts=1"], 75, "(1 of at most 1 times)"),
    (["75", "75"], ["--max-restarts=0"], 75, ""),
    (["75", "2"], [], 2, ""),
    (["1", "75"], [], 1, ""),
    (["0", "7"], [], 7, ""),
    (["75 0", "told 0"], ["--max-restarts=0"], 0, "(this does not count as a restart)"),
    (["taken 0", "hang 0"], ["--max-restarts=0"], 0, "the platform took a: making it anew (this does not count as a restart)"),
    (["lost", "0"], [], 0, "which the platform calls ready: what runs there goes on"),
    (["hang 0", "75 0"], [], 0, "1 of 2 workers did not end within 1 s of the others: killed."),
    (["deleted", "hang"], [], 2, "there is no a in z: launch/tpu_vm.sh create --name=a --zone=z --topology=v5e:4x4 makes it."),
]


@pytest.mark.parametrize(("lives", "options", "code", "said"), RULES)
def test_tpu_vm_restarts(platform: Platform, lives: list[str], options: list[str], code: int, said: str) -> None:
    platform.machines("a")
    platform.lives(a_w_0=lives[0], a_w_1=lives[1])
    ended, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *options, *TRAINER, GRACE="1")
    assert ended == code and said in err, err
    assert len(re.findall("again \\(\\d", err)) <= 1
    if code in (1, 2, 7) and "deleted" not in lives:
        host = 1 if lives[1] in ("2", "7") else 0
        assert f"the last lines of a-w-{host}:\n[a-w-{host}] life of" in err and f"[a-w-{host}] Error: the last line of it\n" in err
        assert f"the last lines of a-w-{1 - host}" not in err and not platform.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    if "taken 0" in lives:
        verbs = [call[4] for call in platform.calls("gcloud", "compute", "tpus") if call[4] in ("delete", "create", "scp")]
        assert verbs == ["delete", "create", "scp"]


@pytest.mark.parametrize(("kill", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)])
def test_tpu_vm_goes_on_without_its_terminal_and_stops_on_request(
    platform: Platform, kill: Callable[[int, int], None], number: signal.Signals
) -> None:
    """A terminal sends Ctrl-C to all that it started."""
    platform.machines("a")
    platform.lives(a_w_0="stoppable", a_w_1="stoppable")
    first = platform.start("launch/tpu_vm.sh", "run", *TPU, *TRAINER)
    wait_until(platform.folder / "lives" / "a-w-1.running")
    first.kill()
    first.communicate()
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER, "--config.train.seed=1")
    assert code == 2 and "another job runs on a: launch/tpu_vm.sh logs --name=a --zone=z shows it, and stop ends it." in err
    second = platform.start("launch/tpu_vm.sh", "run", *TPU, *TRAINER)
    assert second.stderr and "this job runs on a already: watching it." in second.stderr.readline()
    kill(second.pid, number)
    _, err = second.communicate(timeout=100)
    assert second.returncode == 75 and "telling all workers to stop: they save first" in err and "again" not in err


def test_tpu_vm_stop_ends_the_job_that_run_watches(platform: Platform) -> None:
    """On the workers that is a SIGTERM, as the platform's is, after which all would be started again."""
    platform.machines("a")
    platform.lives(a_w_0="stoppable 0", a_w_1="stoppable 0")
    watching = platform.start("launch/tpu_vm.sh", "run", *TPU, *TRAINER)
    for index in range(2):
        wait_until(platform.folder / "lives" / f"a-w-{index}.running")
    assert platform.run("launch/tpu_vm.sh", "stop", *VM)[0] == 0
    _, err = watching.communicate(timeout=100)
    assert watching.returncode == 75 and "stopped by launch/tpu_vm.sh stop, or by Ctrl-C in another terminal: not started again;" in err, err
    assert platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER)[0] == 0  # the same command goes on


def test_tpu_vm_stop_between_two_lives_is_heard(platform: Platform) -> None:
    """All have ended with 75, and are about to be started again: the workers say that it is not wanted, and `run` ends."""
    platform.lives(laptop="75 0")
    machine = {"JOBS": str(platform.folder / "jobs"), "STUB_HOST": "laptop", "PYTHON": str(platform.folder / "trainer")}
    calls = ("start 1 none --workdir=gs://b/r", "wait 1 30", "stop last TERM", "start 2 1 --workdir=gs://b/r")
    said = [platform.run("launch/on_vm.sh", *call.split(), **machine)[1].splitlines()[-1] for call in calls]
    assert said == ["@ laptop started 1", "@ laptop ended 75 ", "@ laptop ended 75 stopped", "@ laptop stopped 1"]
    platform.machines("a")
    platform.answer("gcloud compute tpus tpu-vm ssh", (0, said[-1] + "\n", ""))
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER)
    assert code == 75 and "stopped by launch/tpu_vm.sh stop" in err, err


# What the workers of TPUs under repair come back with: a worker that had lost contact, and the other one; the code at the end, and the lives of both.
REPAIRED = [("lost", "2 0", 2, [1, 1]), ("lost", "0", 0, [1, 1]), ("lost 0", "gone 0", 0, [2, 2])]


@pytest.mark.parametrize(("lost", "other", "code", "lives"), REPAIRED)
def test_tpu_vm_watches_the_same_life_on_after_a_repair(platform: Platform, lost: str, other: str, code: int, lives: list[int]) -> None:
    """What has ended with 0, 1 or 2 is never started again; where a process is gone, that is one restart."""
    platform.machines("a")
    platform.lives(a_w_0=lost, a_w_1=other)
    platform.answer("gcloud compute tpus tpu-vm describe", (0, "REPAIRING\n", ""), (0, "REPAIRING\n", ""), (0, "READY\n", ""))
    ended, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER, PAUSE="0.5", GRACE="20")
    assert ended == code and len(re.findall("again \\(\\d", err)) == max(lives) - 1, err
    assert [len(list((platform.folder / "vms/a" / f"a-w-{index}" / "cdcd_jobs").iterdir())) for index in range(2)] == lives


def test_tpu_vm_watches_on_what_has_ended_on_some_while_nobody_looked(platform: Platform) -> None:
    platform.machines("a")
    platform.lives(a_w_0="2 0", a_w_1="stoppable")
    left = platform.start("launch/tpu_vm.sh", "run", *TPU, *TRAINER, GRACE="60")
    wait_until(platform.folder / "lives" / "a-w-1.running")
    left.kill()
    left.communicate()
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER, GRACE="1")
    assert code == 2 and "this job runs on a already: watching it." in err, err
    assert "workers ended with 2 137\n" in err or "workers ended with 137 2\n" in err, err


def test_tpu_vm_starts_on_the_slice_that_a_failed_call_did_not_reach(platform: Platform) -> None:
    platform.machines("a-0", "a-1")
    platform.lives(a_0_w_0="0 0", a_0_w_1="0 0", a_1_w_0="0 0", a_1_w_1="0 0")
    (platform.folder / "unreachable").touch()  # one call fails
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, "--slices=2", *TRAINER)
    assert code == 0 and "no connection to 'a-" in err and "what runs there goes on; trying again." in err, err
    assert all(len(list(home.iterdir())) == 1 for home in platform.folder.glob("vms/*/*/cdcd_jobs"))


def test_tpu_vm_says_how_to_end_what_it_cannot_reach(platform: Platform) -> None:
    platform.machines("a")
    platform.answer("gcloud compute tpus tpu-vm ssh", (255, "", "Permission denied (publickey).\n"))
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER, FIRST_PATIENCE="1")
    assert code == 2 and "nothing" not in err and err.splitlines()[-1].startswith("error: no contact with a for 1 s (Permission denied (publickey))")
    assert "launch/tpu_vm.sh stop --name=a --zone=z ends it, and launch/tpu_vm.sh delete --name=a --zone=z removes all." in err


def test_a_call_that_is_ended_before_it_began_takes_nothing_along(platform: Platform) -> None:
    """Until a forked shell has become its command it is the launcher's copy, and has its traps."""
    calls = "for call in {1..20}; do sleep 9 >/dev/null 2>&1 & kill $!; wait $!; done"
    script = f'source {ROOT}/launch/common.sh; make_scratch; trap : TERM; {calls}; ls -d "$scratch"'
    ended = subprocess.run(["bash", "-c", script], env=platform.environment(), capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0 and ended.stdout.startswith(f"{platform.folder}/tmp/") and not list((platform.folder / "tmp").iterdir())


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "ALREADY_EXISTS: Resource 'a' already exists",
            "the name is taken: choose another, or remove that one with: launch/tpu_vm.sh delete --name=a --zone=z.",
        ),
        (
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded.\nLimit: 0 in region us-east5.",
            "Limit: 0 in region us-east5; ask for quota, or name another zone or a smaller topology.",
        ),
        ("There is no more capacity in the zone \"z\"", "try another zone, or --spot."),
        ("PERMISSION_DENIED: no access", "the account or the project is not the right one: gcloud config list."),
    ],
)  # fmt: skip
def test_tpu_vm_says_a_refusal_in_the_platforms_words(platform: Platform, answer: str, said: str) -> None:
    platform.answer("gcloud compute tpus queued-resources create", (1, "", f"ERROR: (gcloud.compute.tpus.queued-resources.create) {answer}\n"))
    code, _, err = platform.run("launch/tpu_vm.sh", "create", *TPU)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(f"error: could not ask for a in z: {answer.split('.')[0]}") and err.rstrip("\n").endswith(said)


def test_tpu_vm_does_not_wait_for_an_account(platform: Platform) -> None:
    words = "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login\n"
    platform.answer("gcloud compute tpus queued-resources describe", (1, "", f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {words}"))
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER)
    assert code == 2 and err.startswith("error: could not ask for a in z: You do not currently have an active account") and err.count("\n") == 1
    assert err.endswith("; log in: gcloud auth login.\n") and len(platform.calls()) == 1


def test_tpu_vm_says_how_to_remove_a_request_that_failed(platform: Platform) -> None:
    words = "Quota limit has been exceeded"
    platform.answer("gcloud compute tpus queued-resources describe", (0, "WAITING_FOR_RESOURCES\t\n", ""), (0, f"FAILED\t{words}\n", ""))
    code, _, err = platform.run("launch/tpu_vm.sh", "create", *TPU)
    assert code == 2 and "a: WAITING_FOR_RESOURCES" in err
    assert f"a was not made in z (FAILED: {words}); ask for quota" in err
    assert err.endswith("remove the request with launch/tpu_vm.sh delete --name=a --zone=z.\n")


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


def test_worker_waits_for_devices_that_another_process_holds(platform: Platform) -> None:
    device = platform.folder / "vfio0"
    device.touch()
    platform.lives(laptop="0 0")
    place = {"STUB_HOST": "laptop", "DEVICES": str(device)}

    def holds_it(name: str, **changes: str) -> subprocess.Popen[bytes]:
        with device.open() as held:
            return subprocess.Popen(["bash", "-c", f"exec -a {name} sleep 60"], stdin=held, env=os.environ | changes)

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
    code, _, err = platform.run(launch / "slurm.sh", "logs", "--name=b")
    assert code == 2 and err == "error: the job b has written nothing yet: squeue --me tells why.\n"


def test_slurm_does_not_queue_a_cancelled_job_again(platform: Platform) -> None:
    platform.lives(_0="told", _1="75", _2="75", _3="75")
    platform.answer("squeue", (0, "", ""), (0, "COMPLETING\n", ""))
    platform.run(platform.project() / "launch" / "slurm.sh", "run", *NODES, *TRAINER)
    assert not platform.calls("scontrol") and "the job is COMPLETING: not queued again." in (platform.folder / "project/slurm/a-7.out").read_text()


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


# Mistakes: the launcher, its words, what the one line says

RUN = "tpu_vm.sh run --name=a --zone=z --topology=v5e:4x4"
MANIFEST = "gke/jobset.sh run --name=a --image=i"
MISTAKES = [
    ("tpu_vm.sh create --name=a --zone=z", "--topology=... is missing: tpu_vm.sh --help tells what it is."),
    ("tpu_vm.sh create --name=a --zone=z --topology=v9:4x4", "unknown topology 'v9:4x4': it is a chip and a shape, v4:, v5e:, v5p: or v6e: with"),
    ("tpu_vm.sh create --name=a --zone=z --topology=v5e:4x5", "unknown topology 'v5e:4x5': v5e has the shapes 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16."),
    ("tpu_vm.sh create --name=a --zone=z --topology=v5p", "unknown topology 'v5p': v5p has the shapes 2x2x1 "),
    ("tpu_vm.sh create --name=A_b --zone=z --topology=v5e:4x4", "--name=A_b must be lower-case letters, digits and dashes"),
    ("tpu_vm.sh create --name=a --zone=z --topology=v5e:4x4 --spot --reserved", "--spot and --reserved exclude each other."),
    ("tpu_vm.sh create --name=a --zone=z --topology=v5e:4x4 --slices=0", "--slices=0 must be a whole number of at least 1."),
    ("tpu_vm.sh create --name=a --zone=z --topolgy=v5e:4x4", "unknown option --topolgy=v5e:4x4 (known: --name=... --zone=... "),
    ("tpu_vm.sh creat --name=a", "usage: launch/tpu_vm.sh create|setup|run|logs|stop|delete --name=N --zone=Z ..., not 'creat'"),
    ("tpu_vm.sh setup --name=a --zone=z -- --config=c", "only run takes the trainer's flags, not setup."),
    ("tpu_vm.sh setup --name --zone=z", "--name needs a value, as in --name=..."),
    ("tpu_vm.sh create --name=a --zone=z --spot=1", "--spot takes no value, not '1'."),
    (f"{RUN} --config=c", "unknown option --config=c (known: "),
    (f"{RUN} -- --config=configs/dmo.py", "the config file configs/dmo.py does not exist in "),
    (f"{RUN} -- --config=tests/tiny.py", "the config file tests/tiny.py is not among what the machines get of "),
    (f"{RUN} -- --config=./docs/RESULTS.md", "the config file docs/RESULTS.md is not among what the machines get of "),
    (f"{RUN} -- --config=configs/demo.py", "the trainer's flags are missing: -- --config=configs/... --workdir=gs://..."),
    (f"{RUN} -- --workdir=runs/a", "--workdir=runs/a must begin with gs://: only there all machines see it"),
    (f"{RUN} --max-restarts=x -- --workdir=gs://b/r", "--max-restarts=x must be a whole number of at least 0."),
    (f"{MANIFEST} --topology=v5e:2x2 --slices=2 -- --workdir=gs://b/r", "GKE has no multislice of v5e:2x2, which is one host."),
    ("gke/jobset.sh run --name=a --topology=v5e:4x4 -- --workdir=gs://b/r", "--image=... is missing"),
    ("gke/xpk.sh create --cluster=c --topology=v5e:4x4", "--zone=... is missing"),
    ("slurm.sh run --name=a --nodes=0 --gpus=8 -- --workdir=r", "--nodes=0 must be a whole number of at least 1."),
    ("slurm.sh run --name=a --nodes=1 --gpus=8", "the trainer's flags are missing"),
    ("slurm.sh setup --accelerator=cuda11 --dry-run", "--accelerator=cuda11 is none of tpu, cuda12, cuda13 and cpu."),
    ("image.sh --image=i --accelerator=gpu", "--accelerator=gpu is none of tpu, cuda12, cuda13 and cpu."),
    ("install.sh gpu", "usage: launch/install.sh [--dry-run] tpu|cuda12|cuda13|cpu, not 'gpu'."),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_mistakes(platform: Platform, words: str, said: str) -> None:
    code, _, err = platform.run(f"launch/{words.split()[0]}", *words.split()[1:])
    assert code == 2 and err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not platform.calls()


@pytest.mark.parametrize(
    ("words", "missing", "said"),
    [
        (["tpu_vm.sh", "setup", *VM], "gcloud", "install it from https://cloud.google.com/sdk/docs/install, then gcloud init."),
        (["gke/jobset.sh", "run", *JOB, *TRAINER], "kubectl", "install it with gcloud components install kubectl"),
        (["gke/xpk.sh", "run", *JOB, *CLUSTER, *TRAINER], "xpk", "install it with pip install xpk."),
        (["slurm.sh", "run", *NODES, *TRAINER], "sbatch", "this is no login node of a Slurm cluster"),
        (["image.sh", "--image=i"], "docker", "install it from https://docs.docker.com/engine/install."),
    ],
)
def test_a_missing_tool(tmp_path: pathlib.Path, words: list[str], missing: str, said: str) -> None:
    platform = Platform(tmp_path / "platform", tuple(name for name in COMMANDS if name != missing))
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "awk", "dirname", "basename", "sed", "seq", "mktemp", "rm", "grep", "tr", "cut"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    code, _, err = platform.run(f"launch/{words[0]}", *words[1:], PATH=str(tools))
    assert code == 2 and err.startswith(f"error: there is no {missing} here: {said}") and err.count("\n") == 1
