"""What the launchers' dry runs print against what they really call, as the stand-ins of platforms.py note it."""

import pathlib
import re
import shlex
import signal

import pytest

from tests.platforms import COMMANDS, ROOT, Platform, wait_until

VM = "--name=a --zone=us-a1-b --slices=2"
TPU = f"{VM} --topology=v5e:4x4 --spot"
FLAGS = "-- --config=configs/demo.py --workdir=gs://b/r"
CLUSTER = "--cluster=c --zone=us-a1-b"
JOB = f"--name=a --topology=v5e:4x4 --image=r/i:1 {FLAGS}"


def named(call: list[str]) -> str:
    """A call as a dry run writes it: what is another at each run has a name there."""
    text = shlex.join(call)
    text = re.sub(r"/\S*/tmp\.\w+/", "SCRATCH/", text)
    text = re.sub(r"\d{10}\.\d+\.\d+", "LIFE", text)
    return re.sub(r"start LIFE (none|LIFE|BEFORE) ", "start LIFE BEFORE ", text).replace("kubectl logs a-0 ", "kubectl logs POD ")


def shown(platform: Platform, launch: pathlib.Path, command: str) -> set[str]:
    """The commands of the platform that a dry run prints; it must call none."""
    script, verb, *options = command.split()
    before = len(platform.calls())
    code, out, err = platform.run(launch / script, verb, "--dry-run", *options)
    assert code == 0 and len(platform.calls()) == before, err
    return {named(shlex.split(line)) for line in out.splitlines() if line.split(" ")[0] in COMMANDS}


def called(platform: Platform) -> set[str]:
    """What was called, without what the job itself calls on Slurm's machines."""
    return {named(call) for call in platform.calls() if call[0] not in ("srun", "scontrol") and "--jobs=7" not in call}


EVERY = [
    "tpu_vm.sh logs " + VM,
    "tpu_vm.sh stop " + VM,
    f"gke/xpk.sh create {CLUSTER} --topology=v5e:4x4 --slices=2 --reservation=r",
    f"gke/xpk.sh run {CLUSTER} {JOB}",
    f"gke/xpk.sh logs {CLUSTER} --name=a",
    f"gke/xpk.sh delete {CLUSTER} --name=a",
    f"gke/xpk.sh delete-cluster {CLUSTER}",
    "gke/jobset.sh setup",
    f"gke/jobset.sh run {JOB}",
    "gke/jobset.sh logs --name=a",
    "gke/jobset.sh delete --name=a",
    f"slurm.sh run --name=a --nodes=1 --gpus=1 --max-restarts=9 --time=1:00:00 {FLAGS}",
    "slurm.sh delete --name=a",
    "image.sh --image=r/i:1 --accelerator=tpu",
]


@pytest.mark.parametrize("command", EVERY)
def test_a_dry_run_prints_what_is_called(platform: Platform, command: str) -> None:
    platform.machines("a-0", "a-1")
    platform.lives(_0="0")
    platform.answer("kubectl get jobset", (0, "", ""), (0, ";0;", ""), (0, "Failed;0;x", ""))
    platform.answer("kubectl get pods", (0, "Running: ", ""), (0, "", ""), (0, "a-0=2\n", ""))
    launch = platform.project() / "launch" if command.startswith("slurm.sh") else ROOT / "launch"  # Slurm runs the job where the launcher is
    expected = shown(platform, launch, command)
    script, *words = command.split()
    code, _, err = platform.run(launch / script, *words)
    assert code == (2 if script.startswith("gke/") and words[0] == "run" else 0), err
    assert called(platform) == expected != set()


def test_tpu_vm_run_calls_what_its_dry_run_prints(platform: Platform) -> None:
    """In three lives: a worker hangs when another has ended, the platform takes a slice, and Ctrl-C. With it create, setup and delete."""
    platform.machines("a-0", "a-1")
    platform.lives(a_0_w_0="75 hang stoppable", a_0_w_1="hang hang stoppable", a_1_w_0="75 taken stoppable", a_1_w_1="75 hang stoppable")
    expected = shown(platform, ROOT / "launch", f"tpu_vm.sh run {TPU} {FLAGS}")
    process = platform.start("launch/tpu_vm.sh", "run", *TPU.split(), *FLAGS.split(), GRACE="1")
    for host in ("a-0-w-0", "a-0-w-1", "a-1-w-0", "a-1-w-1"):
        wait_until(platform.folder / "lives" / f"{host}.running")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    assert called(platform) == expected


def test_slurm_setup_prints_what_pip_is_told(platform: Platform) -> None:
    launch = platform.project() / "launch"
    code, out, _ = platform.run(launch / "slurm.sh", "setup", "--accelerator=cuda12", "--dry-run")
    said = [" ".join(shlex.split(line)[1:]) for line in out.splitlines() if line.startswith(".venv/bin/python -m pip")]
    assert code == 0 and not (platform.folder / "python").exists()
    assert platform.run(launch / "slurm.sh", "setup", "--accelerator=cuda12")[0] == 0
    assert said == [line for line in (platform.folder / "python").read_text().splitlines() if line.startswith("-m pip")] and len(said) == 3
