"""launch/tpu_vm.sh against stand-ins of gcloud (platforms.py): its restarts, what becomes of a job while nobody looks, and what it says."""

import os
import re
import signal
import subprocess
from collections.abc import Callable

import pytest

from tests.platforms import ROOT, Platform, wait_until

VM = ["--name=a", "--zone=us-a1-b"]
TPU = [*VM, "--topology=v5e:4x4"]
TRAINER = ["--", "--config=configs/demo.py", "--workdir=gs://b/runs/a"]


def test_tpu_vm_from_nothing_to_a_finished_job_in_three_commands(platform: Platform) -> None:
    platform.lives(a_0_w_0="0", a_0_w_1="75 0", a_1_w_0="0 0", a_1_w_1="0 0")
    platform.lives(a_0_w_0="75 0")
    several = [*TPU, "--slices=2", "--spot"]
    assert platform.run("launch/tpu_vm.sh", "create", *several)[0] == 0
    assert platform.run("launch/tpu_vm.sh", "setup", *VM, "--slices=2")[0] == 0
    code, out, err = platform.run("launch/tpu_vm.sh", "run", *several, *TRAINER, MEGASCALE_NUM_SLICES="3", JAX_PROCESS_ID="1")
    assert code == 0 and "starting all workers again (1 of at most 3 times)" in err
    assert err.endswith("the TPUs are still there: launch/tpu_vm.sh delete --name=a --zone=us-a1-b --slices=2 removes them\n")
    assert f"[a-0-w-0] life of a-0-w-0: -u -m cdcd_jax.train {' '.join(TRAINER[1:])} --config.mesh.slices=2 --config.hosts.meet_seconds=1800\n" in out
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
    (["deleted", "hang"], [], 2, "there is no TPU named a in us-a1-b: launch/tpu_vm.sh create --name=a --zone=us-a1-b --topology=v5e:4x4 makes it ("),
]


@pytest.mark.parametrize(("lives", "options", "code", "said"), RULES)
def test_tpu_vm_restarts(platform: Platform, lives: list[str], options: list[str], code: int, said: str) -> None:
    platform.machines("a")
    platform.lives(a_w_0=lives[0], a_w_1=lives[1])
    hangs = {"hang", "taken"} & set(" ".join(lives).split())
    ended, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *options, *TRAINER, GRACE="1" if hangs else "60")
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
    assert code == 2 and "another job runs on a: launch/tpu_vm.sh logs --name=a --zone=us-a1-b shows it, and stop ends it." in err
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
    assert err.count("a is unknown to the platform: waiting for a clear word, up to ") == 1, err
    assert ended == code and len(re.findall("again \\(\\d", err)) == max(lives) - 1, err
    assert [len(list((platform.folder / "vms/a" / f"a-w-{index}" / "cdcd_jobs").iterdir())) for index in range(2)] == lives


@pytest.mark.parametrize(
    ("suspending", "patience", "code", "said"),
    [(4, "100", 0, "the platform took a: making it anew"), (1000, "1", 2, "error: the platform gave no clear state for a for [1-9][0-9]* s: ")],
)
def test_tpu_vm_waits_until_its_request_is_suspended(platform: Platform, suspending: int, patience: str, code: int, said: str) -> None:
    """A worker was told to stop; for how long the platform is then asked does not depend on how soon it showed the pre-emption."""
    platform.machines("a")
    platform.lives(a_w_0="told 0", a_w_1="75 0")
    request = [(0, "ACTIVE\n", ""), *[(0, "SUSPENDING\n", "")] * suspending, (0, "SUSPENDED\n", ""), (0, "ACTIVE\n", "")]
    platform.answer("gcloud compute tpus queued-resources describe", *request)
    platform.answer("gcloud compute tpus tpu-vm describe", (0, "PREEMPTED\n", ""))
    ended, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER, TAKEN_SECONDS="0", PATIENCE=patience, PAUSE="0.2")
    assert ended == code and re.search(said, err), err


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
    last = err.splitlines()[-1]
    assert code == 2 and "nothing" not in err and last.startswith("error: no contact with a for 1 s (Permission denied (publickey); put your key in")
    assert "launch/tpu_vm.sh stop --name=a --zone=us-a1-b ends it, and launch/tpu_vm.sh delete --name=a --zone=us-a1-b removes all." in err


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("bash: cdcd_jax/launch/on_vm.sh: No such file or directory", "a has not been set up: launch/tpu_vm.sh setup --name=a --zone=us-a1-b"),
        ('Load key "/.ssh/k": No such file or directory', 'no contact with a for 0 s (Load key "/.ssh/k": No such file or directory), '),
    ],
)
def test_tpu_vm_tells_a_missing_project_from_a_missing_key(platform: Platform, missing: str, said: str) -> None:
    platform.machines("a")
    platform.answer("gcloud compute tpus tpu-vm ssh", (255, "", f"{missing}\n"))
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER, FIRST_PATIENCE="0")
    assert code == 2 and err.startswith(f"error: {said}"), err
    code, _, err = platform.run("launch/tpu_vm.sh", "logs", *VM)
    assert code == 2 and err.startswith("error: " + said.replace("no contact with a for 0 s (", "could not reach a: ").split(")")[0]), err


def test_what_makes_tpus_anew_makes_the_same(platform: Platform) -> None:
    """On demand they would be dearer."""
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, "--spot", "--network=n", *TRAINER)
    assert code == 2 and "create --name=a --zone=us-a1-b --topology=v5e:4x4 --spot --network=n makes it" in err, err


def test_tpu_vm_does_not_wait_for_a_request_that_was_deleted(platform: Platform) -> None:
    gone = (1, "", "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource 'a' was not found\n")
    platform.answer("gcloud compute tpus queued-resources describe", (0, "WAITING_FOR_RESOURCES\t\n", ""), (1, "", "ERROR: no route\n"), gone)
    code, _, err = platform.run("launch/tpu_vm.sh", "create", *TPU)
    assert code == 2 and "no answer about a (no route): asking again." in err
    assert err.endswith("error: the request for a in us-a1-b is gone: somebody deleted it (NOT_FOUND: Resource 'a' was not found).\n"), err


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
            "the name is taken: choose another, or remove that one with: launch/tpu_vm.sh delete --name=a --zone=us-a1-b.",
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
    assert err.startswith(f"error: could not ask for a in us-a1-b: {answer.split('.')[0]}") and err.rstrip("\n").endswith(said)


@pytest.mark.parametrize("verb", ["setup", "logs", "stop", "delete"])
def test_tpu_vm_says_that_there_is_no_such_tpu(platform: Platform, verb: str) -> None:
    code, _, err = platform.run("launch/tpu_vm.sh", verb, *VM)
    assert code == 2 and err.count("\n") == 1
    mends = {"delete": ", so nothing is to be deleted.\n"}.get(verb, ": launch/tpu_vm.sh create --name=a --zone=us-a1-b --topology=... makes it (")
    assert err.startswith(f"error: there is no TPU named a in us-a1-b{mends}")


def test_tpu_vm_does_not_wait_for_an_account(platform: Platform) -> None:
    words = "You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login\n"
    platform.answer("gcloud compute tpus queued-resources describe", (1, "", f"ERROR: (gcloud.compute.tpus.queued-resources.describe) {words}"))
    code, _, err = platform.run("launch/tpu_vm.sh", "run", *TPU, *TRAINER)
    assert code == 2 and err.startswith("error: could not ask for a in us-a1-b: You do not currently have an active account") and err.count("\n") == 1
    assert err.endswith("; log in: gcloud auth login.\n") and len(platform.calls()) == 1


def test_tpu_vm_says_how_to_remove_a_request_that_failed(platform: Platform) -> None:
    words = "Quota limit has been exceeded"
    platform.answer("gcloud compute tpus queued-resources describe", (0, "WAITING_FOR_RESOURCES\t\n", ""), (0, f"FAILED\t{words}\n", ""))
    code, _, err = platform.run("launch/tpu_vm.sh", "create", *TPU)
    assert code == 2 and "a: WAITING_FOR_RESOURCES" in err
    assert f"a was not made in us-a1-b (FAILED: {words}); ask for quota" in err
    assert err.endswith("remove the request with launch/tpu_vm.sh delete --name=a --zone=us-a1-b.\n")
