"""Small stand-ins for gcloud, xpk, kubectl, docker and Slurm's commands: they note how they are called, and keep machines as folders.

`open_platform` gives a test its `Platform`, and ends what that leaves running. The commands call this file with the name they are called by;
TPU VMs are folders in which the command of `gcloud ... ssh` really runs, and srun and sbatch really run what they are given. Nothing here imports
more than Python itself: it starts often.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = ("gcloud", "xpk", "kubectl", "docker", "sbatch", "srun", "squeue", "scontrol", "scancel", "hostname")
# Python on a machine: ends with the next code of its host's, or does what the word says. `told`: something told the machine to stop.
TRAINER = """#!/bin/bash
case "$*" in
*cdcd_jax.train*) ;;
*) echo "$*" >>{folder}/python; exit 0 ;;
esac
me={folder}/lives/${{SLURM_PROCID:-$STUB_HOST}}
word=$(head -1 $me); sed -i 1d $me
env | grep -E '^(JAX|CDCD|MEGASCALE|TPU|PLATFORM)' >$me.environment
echo "life of $STUB_HOST: $*"; echo "Error: the last line of it" >&2
case $word in
kill) kill -9 $$ ;;
hang) printf 'half a line'; exec sleep 30 ;;
told) trap 'exit 75' TERM; kill -TERM $PPID; sleep 5 >/dev/null 2>&1 & wait ;;
stoppable) trap 'exit 75' TERM; touch $me.running; sleep 30 >/dev/null 2>&1 & wait ;;
taken) echo PREEMPTED >{folder}/vms/${{STUB_HOST%%-w-*}}/state; exec sleep 30 ;;
gone) kill -9 $PPID; exit ;;
lost) touch {folder}/unreachable; sleep 1; exit 0 ;;
deleted) rm -r {folder}/vms {folder}/queue; exec sleep 30 ;;
*) exit $word ;;
esac
"""


class Platform:
    """A place where the launchers find only stand-ins; `folder` holds their state."""

    def __init__(self, folder: pathlib.Path, commands: tuple[str, ...] = COMMANDS) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        for name in ("bin", "lives", "answers", "tmp"):
            (folder / name).mkdir(parents=True)
        for name in commands:
            path = folder / "bin" / name
            command = "echo ${STUB_HOST:-laptop}" if name == "hostname" else f'exec {sys.executable} -S {__file__} {name} "$@"'
            path.write_text(f"#!/bin/sh\n{command}\n")
            path.chmod(0o755)
        write_trainer(folder, folder / "trainer")

    def project(self) -> pathlib.Path:
        """A copy of the project with a trainer that is a stand-in."""
        project = self.folder / "project"
        for name in ("launch", "configs"):
            shutil.copytree(ROOT / name, project / name)
        write_trainer(self.folder, project / ".venv" / "bin" / "python")
        return project

    def lives(self, **codes: str) -> None:
        """What the trainer on each host does in each of its lives: a_w_0="75 0" for host a-w-0, or _0 for process 0."""
        for host, words in codes.items():
            (self.folder / "lives" / host.strip("_").replace("_", "-")).write_text(words.replace(" ", "\n") + "\n")

    def machines(self, *nodes: str) -> None:
        """TPUs that were made and set up, of a request with the name of the first node up to its number."""
        (self.folder / "queue").mkdir()
        (self.folder / "queue" / nodes[0].removesuffix("-0")).write_text("ACTIVE")
        for node in nodes:
            make_node(self.folder, node)
            for home in homes_of(self.folder / "vms" / node):
                shutil.copytree(ROOT / "launch", home / "cdcd_jax" / "launch")
                write_trainer(self.folder, home / "cdcd_jax" / ".venv" / "bin" / "python")

    def answer(self, call: str, *answers: tuple[int, str, str]) -> None:
        """The code, stdout and stderr of the next calls of this kind; the last one stays."""
        (self.folder / "answers" / call.replace(" ", "_")).write_text("".join(json.dumps(answer) + "\n" for answer in answers))

    def environment(self, **changes: str) -> dict[str, str]:
        strange = ("JAX_", "SLURM_", "MEGASCALE_", "TPU_", "PYTHON")  # the last as `make PYTHON=... test` passes it on
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        path = f"{self.folder / 'bin'}:{changes.pop('PATH', '/usr/bin:/bin')}"
        speed = {"PAUSE": "0.05", "POLL": "1", "TAKEN_SECONDS": "1", "YIELD_SECONDS": "0", "GRACE": "5", "BUSY_SECONDS": "0", "DEVICES": "/nowhere"}
        speed |= {"CHECKER": ""}  # where this is a project that is installed, the trainer would be asked by each launcher
        return kept | speed | {"PATH": path, "STUBS": str(self.folder), "TMPDIR": str(self.folder / "tmp")} | changes

    def start(self, script: str | pathlib.Path, *words: str, **changes: str) -> subprocess.Popen[str]:
        command = [str(ROOT / script), *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.started.append(subprocess.Popen(command, env=self.environment(**changes), cwd=ROOT, text=True, start_new_session=True, **pipes))  # type: ignore[call-overload]
        return self.started[-1]

    def run(self, script: str | pathlib.Path, *words: str, **changes: str) -> tuple[int, str, str]:
        """The code, stdout and stderr of a launcher."""
        with self.start(script, *words, **changes) as process:
            out, err = process.communicate(timeout=200)
        return process.returncode, out, err

    def calls(self, *start: str) -> list[list[str]]:
        """All calls so far that begin with these words."""
        path = self.folder / "calls"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line[: len(start)] == list(start)]


@contextmanager
def open_platform(folder: pathlib.Path, commands: tuple[str, ...] = COMMANDS) -> Iterator[Platform]:
    """A Platform; at the end no process that came of it is left, whether its launcher meant it to stay or not."""
    platform = Platform(folder, commands)
    try:
        yield platform
    finally:
        while left := [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if belongs(pid, folder)]:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in platform.started:
            with process:  # closes its pipes
                pass


def belongs(pid: int, folder: pathlib.Path) -> bool:
    """Whether a process has the environment of this Platform; one that has ended has none."""
    try:
        return f"STUBS={folder}\0".encode() in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def wait_until(path: pathlib.Path) -> None:
    """Returns when the file is there."""
    end = time.monotonic() + 100
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.02)


def write_trainer(folder: pathlib.Path, path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TRAINER.format(folder=folder))
    path.chmod(0o755)


def option(words: list[str], name: str) -> str:
    """The value of --name=value; empty when it is not there."""
    return next((word.partition("=")[2] for word in words if word.startswith(f"--{name}=")), "")


def main() -> int:
    stubs, name, words = pathlib.Path(os.environ["STUBS"]), sys.argv[1], sys.argv[2:]
    with (stubs / "calls").open("a") as calls:
        calls.write(json.dumps([name, *words]) + "\n")
    verb = " ".join([name, *(word for word in words if not word.startswith("-"))][: 5 if name == "gcloud" else 3])
    for key in (verb, verb.rpartition(" ")[0]):
        path = stubs / "answers" / key.replace(" ", "_")
        if path.is_file():
            first, *rest = path.read_text().splitlines()
            path.write_text("\n".join(rest or [first]) + "\n")
            code, out, err = json.loads(first)
            print(out, end="")
            print(err, end="", file=sys.stderr)
            return int(code)
    if name == "gcloud":
        return gcloud(stubs, words)
    if name == "srun":
        return srun(words)
    if name == "sbatch":
        return sbatch(stubs, words)
    if name == "scontrol":
        (stubs / "requeued").touch()
    if name == "squeue" and option(words, "jobs"):
        print("RUNNING")
    if words[:1] == ["create"]:
        shutil.copy(option(words, "filename"), stubs / "manifest.yaml")
    return 0


def make_node(stubs: pathlib.Path, node: str) -> None:
    for worker in range(2):
        (stubs / "vms" / node / f"{node}-w-{worker}").mkdir(parents=True)
    (stubs / "vms" / node / "state").write_text("READY")


def homes_of(node: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in node.iterdir() if path.is_dir())


def gcloud(stubs: pathlib.Path, words: list[str]) -> int:
    if words[:2] != ["compute", "tpus"]:
        return 0
    kind, verb, name = words[2:5]
    queue = stubs / "queue" / name
    if kind == "queued-resources":
        if verb == "create":
            count = int(option(words, "node-count") or 0)
            for node in [f"{option(words, 'node-prefix')}-{index}" for index in range(count)] or [option(words, "node-id")]:
                make_node(stubs, node)
            queue.parent.mkdir(exist_ok=True)
            queue.write_text("ACTIVE")
        elif not queue.exists():
            print(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: Resource '{name}' was not found", file=sys.stderr)
            return 1
        elif verb == "describe":
            print(queue.read_text())
        elif verb == "delete":
            queue.unlink()
            shutil.rmtree(stubs / "vms")
        return 0
    node = stubs / "vms" / (words[5].partition(":")[0] if verb == "scp" else name)
    state = (node / "state").read_text().strip() if node.exists() else "NOT_FOUND"
    if verb == "describe" and node.exists():
        print(state)
        return 0
    if verb == "scp" and node.exists():
        for home in homes_of(node):
            shutil.copy(name, home)
        return 0
    if state != "READY" or (stubs / "unreachable").exists():
        (stubs / "unreachable").unlink(missing_ok=True)
        print(f"ERROR: (gcloud.compute.tpus.tpu-vm.{verb}) {state}: no connection to '{node.name}'", file=sys.stderr)
        return 1
    return max(run_on(homes_of(node), option(words, "command")))


def run_on(homes: list[pathlib.Path], command: str) -> Iterator[int]:
    """Runs a command on all of these machines at once, as ssh would, and gives their codes."""
    running = []
    for home in homes:
        if "install.sh" in command:
            write_trainer(pathlib.Path(os.environ["STUBS"]), home / "cdcd_jax" / ".venv" / "bin" / "python")
        environment = os.environ | {"HOME": str(home), "STUB_HOST": home.name}
        running.append(subprocess.Popen(["bash", "-c", command], cwd=home, env=environment, stdin=subprocess.DEVNULL))
    for process in running:
        yield process.wait()


def srun(words: list[str]) -> int:
    """Its code is the highest of its tasks', as Slurm's is."""
    command = words[next(index for index, word in enumerate(words) if not word.startswith("-")) :]
    running = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        with open(option(words, "output").replace("%t", str(task)), "w") as log:
            environment = os.environ | {"SLURM_PROCID": str(task), "STUB_HOST": f"node{task}"}
            running.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
    return max(process.wait() % 256 for process in running)


def sbatch(stubs: pathlib.Path, words: list[str]) -> int:
    """Runs the script at once, and again for as long as it asks to be queued again."""
    script = next(index for index, word in enumerate(words) if not word.startswith("-"))
    tasks = str(int(option(words, "nodes")) * int(option(words, "ntasks-per-node")))
    code = 0
    for life in range(9):
        environment = os.environ | {"SLURM_JOB_ID": "7", "SLURM_NTASKS": tasks, "SLURM_RESTART_COUNT": str(life)}
        with open(option(words, "output").replace("%x", option(words, "job-name")).replace("%j", "7"), "a") as log:
            code = subprocess.run(["bash", *words[script:]], cwd=option(words, "chdir"), env=environment, stdout=log, stderr=log).returncode
        if not (stubs / "requeued").exists():
            break
        (stubs / "requeued").unlink()
    print("Submitted batch job 7")
    (stubs / "code").write_text(str(code))
    return 0


if __name__ == "__main__":
    sys.exit(main())
