"""What launchers refuse before they call anything, and how they say what the platforms' commands lack or refuse (platforms.py stands in for them)."""

import pathlib
import re
import subprocess
import sys

import pytest

from tests.platforms import COMMANDS, ROOT, Platform

VM = ["--name=a", "--zone=us-a1-b"]
TRAINER = ["--", "--config=configs/demo.py", "--workdir=gs://b/runs/a"]
JOB = ["--name=a", "--topology=v5e:4x4", "--image=r/i:1"]
CLUSTER = ["--cluster=c", "--zone=us-a1-b"]
NODES = ["--name=a", "--nodes=2", "--gpus=2"]


# The image: docker's words, and what mends it

DAEMON = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
SOCKET = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock: connect: permission denied"
REFUSED = 'denied: Permission "artifactregistry.repositories.uploadArtifacts" denied on resource "r"'
LOG_IN = "; log docker in with gcloud auth configure-docker r.dev, by an account that may write there (Artifact Registry Writer).\n"


@pytest.mark.parametrize(
    ("failing", "words", "said"),
    [
        ("info", DAEMON, f"error: the image was not built: {DAEMON}; start it: sudo systemctl start docker, or open Docker Desktop.\n"),
        ("info", SOCKET, f"error: the image was not built: {SOCKET}; let this account use docker: sudo usermod -aG docker "),
        ("build", "", "error: the image was not built: docker says why above.\n"),
        ("push", REFUSED, f"error: could not push r.dev/i:1: {REFUSED}{LOG_IN}"),
        ("push", "no basic auth credentials", f"error: could not push r.dev/i:1: no basic auth credentials{LOG_IN}"),
    ],
)
def test_the_image_says_what_docker_lacks(platform: Platform, failing: str, words: str, said: str) -> None:
    platform.answer(f"docker {failing}", (1, "", f"{words}\n"))
    if failing == "info":
        platform.answer("docker build", (1, "", ""))
    code, _, err = platform.run("launch/image.sh", "--image=r.dev/i:1")
    assert code == 2 and err.strip("\n").count("\n") == 0 and err.lstrip("\n").startswith(said), err


# The platforms' words for typical refusals, as they print them, and how what mends each begins
LOGIN = "log in: gcloud auth login"
CAPACITY = "try another zone, or --spot"
WRONG = "the account or the project is not the right one: gcloud config list"
HINTS = [
    ("ERROR: (gcloud.x.create) PERMISSION_DENIED: Request had insufficient authentication scopes.", "log in anew: gcloud auth login (without it one"),
    ("ERROR: (gcloud.x.create) PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/p'", WRONG),
    ("Error 403: Insufficient Permission", WRONG),
    ("ERROR: (gcloud.x.create) PERMISSION_DENIED: Cloud TPU API has not been used in project 1 before or it is disabled.", "switch the service on: "),
    ("Unable to connect to the server: getting credentials: exec: executable gke-gcloud-auth-plugin not found",
     "install it: gcloud components install gke-gcloud-auth-plugin"),
    ("Unable to connect to the server: getting credentials: exec: executable gke-gcloud-auth-plugin failed with exit code 1", LOGIN),
    ("ERROR: (gcloud.x.create) You do not currently have an active account selected.\nPlease run:\n\n  $ gcloud auth login", LOGIN),
    ("ERROR: (gcloud.x.create) UNAUTHENTICATED: Request had invalid authentication credentials.", LOGIN),
    ("error: You must be logged in to the server (Unauthorized)", LOGIN),
    ("ERROR: (gcloud.x.ssh) Could not SSH: Permission denied (publickey).", "put your key into the agent: ssh-add ~/.ssh/google_compute_engine"),
    ('error: the server doesn\'t have a resource type "jobset"', "the cluster needs JobSet v0.10.1 or later: launch/gke/jobset.sh setup"),
    ("[ERROR] code: ZONE_RESOURCE_POOL_EXHAUSTED, The zone 'projects/p/zones/us-a1-b' does not have enough resources available", CAPACITY),
    ("The zone 'projects/p/zones/us-a1-b' does not have enough resources available to fulfill the request.  '(resource type:compute)'.", CAPACITY),
    ("ERROR: (gcloud.x.create) RESOURCE_EXHAUSTED: Insufficient capacity.", CAPACITY),
    ("ERROR: (gcloud.x.create) Insufficient regional quota to satisfy request: resource \"TPUS\"", "ask for quota, or name another zone "),
    ("ERROR: (gcloud.x.create) The tpu.googleapis.com API requires a quota project, which is not set by default.",
     "name the project that is asked for it: "),
    ("ERROR: (gcloud.x.create) The required property [project] is not currently set.\nYou may set it by running:\n\n  $ gcloud config set project V",
     "name the project: --project=P, or gcloud config set project P"),
    ("sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job submission failed: Invalid partition name specified",
     "what the cluster has: sinfo "),
    ("sbatch: error: Batch job submission failed: Requested node configuration is not available", "what the cluster has: sinfo "),
    ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
     "what you may name: sacctmgr show associations user="),
    ("sbatch: error: Batch job submission failed: Invalid qos specification", "what you may name: sacctmgr show associations user="),
    ("ERROR: (gcloud.x.create) INTERNAL: an internal error", "nothing was tried again"),
    ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/usr/lib/x'", "nothing was tried again"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "hint"), HINTS)
def test_what_mends_a_refusal(platform: Platform, words: str, hint: str) -> None:
    """The words go the way that every refusal goes, to one sentence with what mends it."""
    platform.answer("gcloud", (1, "", words + "\n"))
    script = f"source {ROOT}/launch/common.sh; make_scratch; opt_dry_run='' try_to 'do it' 'remove it' gcloud"
    ended = subprocess.run(["bash", "-c", script], env=platform.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: could not do it: ") and f"; {hint}" in ended.stderr, ended.stderr


# Mistakes: the launcher, its words, what the one line says

RUN = "tpu_vm.sh run --name=a --zone=us-a1-b --topology=v5e:4x4"
MANIFEST = "gke/jobset.sh run --name=a --image=r/i:1"
XPK = "gke/xpk.sh run --name=a --cluster=c --zone=us-a1-b --topology=v5e:4x4 --image=r/i:1"
SLURM = "slurm.sh run --name=a --nodes=1 --gpus=8"
GOOD = "-- --config=configs/demo.py --workdir=gs://b/r"
MISTAKES = [
    ("tpu_vm.sh create --name=a --zone=us-a1-b", "--topology=... is missing: tpu_vm.sh --help tells what it is."),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topology=v9:4x4", "unknown topology 'v9:4x4': it is a chip and a shape, v4:, v5e:, v5p: or v6e:"),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topology=v5e:4x5", "unknown topology 'v5e:4x5': v5e has the shapes 1x1 2x2 2x4 4x4 4x8 8x8 "),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topology=v5p", "unknown topology 'v5p': v5p has the shapes 2x2x1 "),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topology=2xv5e:4x4", "how plan writes several slices: here it is --topology=v5e:4x4 --slices=2.\n"),
    ("tpu_vm.sh create --name=A_b --zone=us-a1-b --topology=v5e:4x4", "--name=A_b must be lower-case letters, digits and dashes"),
    ("tpu_vm.sh logs --name=a --zone=us-central1", "--zone=us-central1 is a region: name one of its zones, as us-central1-a.\n"),
    ("tpu_vm.sh logs --name=a --zone=central", "--zone=central must be a zone, as us-central1-a.\n"),
    ("gke/xpk.sh logs --name=a --cluster=c --zone=us-central1", "--zone=us-central1 is a region"),
    ("gke/xpk.sh delete-cluster --cluster=C_1 --zone=us-a1-b", "--cluster=C_1 must be lower-case letters, digits and dashes, at most 40"),
    ("gke/jobset.sh logs --name=a --namespace=my_space", "--namespace=my_space must be lower-case letters, digits and dashes, at most 63.\n"),
    (f"{MANIFEST} --topology=v5e:4x4 --service-account=a@p.iam.gserviceaccount.com {GOOD}", "must be the name of one of Kubernetes"),
    ("image.sh --image=cdcd_jax:1", "--image=cdcd_jax:1 must be a place in a registry and a tag, as us-docker.pkg.dev/"),
    ("image.sh --image=r/i", "--image=r/i must be a place in a registry and a tag"),
    (f"{MANIFEST}/x:y:z --topology=v5e:4x4 {GOOD}", "--image=r/i:1/x:y:z must be a place in a registry and a tag"),
    (f"{SLURM} --time=24h {GOOD}", "--time=24h must be minutes (0: no limit), or written as 24:00:00 (hours) or 2-12:00:00 (two days"),
    (f"{SLURM} --time=00:09:59 {GOOD}", "--time=00:09:59 is 9 min to Slurm, of which the last three are for saving: give at least 10, or hours"),
    (f"{SLURM} --time=9:59 {GOOD}", "--time=9:59 is 9 min to Slurm"),
    (f"{SLURM} --time=0-0:09 {GOOD}", "--time=0-0:09 is 9 min to Slurm"),
    (f"{RUN} -- --config=configs/demo.py --workdir=gs://BUCKET/r", "--workdir=gs://BUCKET/r names no bucket, whose name has no capitals: put yours "),
    ("image.sh --image=us-docker.pkg.dev/PROJECT/r/i:1", "--image=us-docker.pkg.dev/PROJECT/r/i:1 has capitals, which only a tag may have: "),
    (f"{SLURM} --time=1:00:00:00 {GOOD}", "--time=1:00:00:00 must be minutes"),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topology=v5e:4x4 --spot --reserved", "--spot and --reserved exclude each other."),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topology=v5e:4x4 --slices=0", "--slices=0 must be a whole number from 1 to 99999"),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --topolgy=v5e:4x4", "unknown option --topolgy=v5e:4x4 (known: --name=... --zone=... "),
    ("tpu_vm.sh logs --nam=a", "unknown option --nam=a (known: --name=... --zone=... --project=... --slices=... --dry-run --help).\n"),
    ("tpu_vm.sh logs a", "unexpected word 'a': options are written --name=value.\n"),
    ("image.sh --tag=a", "unknown option --tag=a (known: --image=... --accelerator=... --no-push --dry-run --help).\n"),
    (f"{RUN} a", "unexpected word 'a': options are written --name=value, and after -- the trainer's flags.\n"),
    (f"{RUN} --a", "--dry-run --help, and after -- the trainer's flags).\n"),
    ("tpu_vm.sh creat --name=a", "usage: launch/tpu_vm.sh create|setup|run|logs|stop|delete --name=N --zone=Z ..., not 'creat'"),
    ("tpu_vm.sh setup --name=a --zone=us-a1-b -- --config=c", "only run takes the trainer's flags, not setup."),
    ("tpu_vm.sh setup --name --zone=us-a1-b", "--name needs a value, as in --name=..."),
    ("tpu_vm.sh create --name=a --zone=us-a1-b --spot=1", "--spot takes no value, not '1'."),
    (f"{RUN} --config=c", "unknown option --config=c (known: "),
    (f"{RUN} -- --config=configs/dmo.py", "the config file configs/dmo.py does not exist in "),
    (f"{RUN} -- --config=tests/tiny.py", "the config file tests/tiny.py is not among what the machines get of "),
    (f"{RUN} -- --config=/shared/demo.py", "the machines have no /shared/demo.py: put the config into configs/, and write --config=configs/...\n"),
    (f"{SLURM} -- --config=/shared/demo.py", "the config file /shared/demo.py does not exist"),
    (f"{RUN} -- --config configs/demo.py", "the trainer's flag '--config' has no value: each is one word, --name=value.\n"),
    (f"{RUN} {GOOD} --confg=x", "the trainer has no flag --confg: it has --config, --config.SECTION.KEY, --workdir and --go_back_to.\n"),
    (f"{RUN} -- --config=configs/demo.py --workdir=gs://", "--workdir=gs:// must name a bucket and a folder in it: gs://BUCKET/FOLDER.\n"),
    (f"{RUN} -- --config=configs/demo.py --workdir=gs:///r", "--workdir=gs:///r must name a bucket"),
    (f"{RUN} -- --config=configs/demo.py --workdir=gs://b/", "--workdir=gs://b/ must name a bucket"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=s3:///r", "--workdir=s3:///r must name a bucket"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=/tmp/r", "--workdir=/tmp/r is another folder on each node: name one that all nodes see"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=/dev/shm", "--workdir=/dev/shm is another folder on each node"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=/tmp/", "--workdir=/tmp is another folder on each node"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=ftp://x/y", "--workdir=ftp://x/y is no place for a run: name a folder, or one in a bucket, gs://"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=gs:/b/r", "--workdir=gs:/b/r is no place for a run"),
    (f"{SLURM} -- --config=configs/demo.py --workdir=~ann/r", "--workdir=~ann/r is in the home of somebody, which is not looked up here"),
    (f"{RUN} -- --config=configs/demo.py --workdir=~/r", "--workdir=~/r must begin with gs://"),
    (f"{RUN} -- --config=./docs/RESULTS.md", "the config file docs/RESULTS.md is not among what the machines get of "),
    (f"{RUN} -- --config=configs/demo.py", "the trainer needs --config and --workdir, each with =: -- --config=configs/... --workdir=gs://..."),
    (f"{RUN} -- --workdir=gs://b/a", "the trainer needs --config and --workdir, each with =: -- --config=configs/..."),
    (f"{RUN} -- --config=configs/demo.py --workdir=runs/a", "--workdir=runs/a must begin with gs://: only there all machines see it"),
    (f"{RUN} --slices=2 {GOOD} --config.mesh.slices=4", "--slices=2 and --config.mesh.slices=4 differ: give --slices alone, the trainer is told.\n"),
    (f"{RUN} {GOOD} --config.mesh.slices=2", "--slices=1 and --config.mesh.slices=2 differ: "),
    (f"{MANIFEST} --topology=v5e:4x4 {GOOD} --config.mesh.slices=2", "--slices=1 and --config.mesh.slices=2 differ: "),
    (f"{XPK} {GOOD} --config.mesh.slices=2", "--slices=1 and --config.mesh.slices=2 differ: "),
    (f"{RUN} --max-restarts=x {GOOD}", "--max-restarts=x must be a whole number from 0 to 99999, without leading zeros."),
    (f"{SLURM} --max-restarts=08 {GOOD}", "--max-restarts=08 must be a whole number"),
    (f"{MANIFEST} --topology=v5e:2x2 --slices=2 {GOOD}", "GKE has no multislice of v5e:2x2, which is"),
    (f"gke/jobset.sh run --name=a --topology=v5e:4x4 {GOOD}", "--image=... is missing"),
    ("gke/xpk.sh create --cluster=c --topology=v5e:4x4", "--zone=... is missing"),
    ("slurm.sh run --name=a --nodes=0 --gpus=8 -- --config=configs/demo.py --workdir=r", "--nodes=0 must be a whole number from 1 to 99999"),
    (SLURM, "the trainer needs --config and --workdir"),
    ("slurm.sh setup --accelerator=cuda11 --dry-run", "--accelerator=cuda11 is none of tpu, cuda12, cuda13 and cpu."),
    ("image.sh --image=r/i:1 --accelerator=gpu", "--accelerator=gpu is none of tpu, cuda12, cuda13 and cpu."),
    ("install.sh gpu", "usage: launch/install.sh [--dry-run] tpu|cuda12|cuda13|cpu, not 'gpu'."),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_mistakes(platform: Platform, words: str, said: str) -> None:
    code, _, err = platform.run(f"launch/{words.split()[0]}", *words.split()[1:])
    assert code == 2 and err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not platform.calls()


@pytest.mark.parametrize(
    "words",
    [
        *(
            f"slurm.sh run --name=a --nodes=1 --gpus=8 --time={form}"
            for form in ("0", "90", "90:30", "08:08:08", "24:00:00", "2-12", "2-12:30", "2-12:30:00", "UNLIMITED")
        ),
        f"image.sh --image=localhost:5000/a/b@sha256:{'0' * 64}",
        f"image.sh --image=r/i:V1@sha256:{'0' * 64}",
        "image.sh --image=cdcd_jax --no-push",
        "image.sh --image=r/i:V1",
        "tpu_vm.sh logs --name=a --zone=us-central1-ai1a",
    ],
)
def test_what_the_platforms_take_is_taken(platform: Platform, words: str) -> None:
    flags = GOOD.split() if " run " in words else []
    assert platform.run(f"launch/{words.split()[0]}", *words.split()[1:], "--dry-run", *flags)[0] == 0


def test_a_count_that_bash_cannot_read_is_refused_where_the_job_is_submitted_by_hand(platform: Platform) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}
    code, _, err = platform.run("launch/slurm.sbatch", "--max-restarts=08", *TRAINER[1:], **job)
    assert (code, err) == (2, "error: --max-restarts=08 must be a whole number from 0 to 99999, without leading zeros.\n")
    assert not platform.calls()


@pytest.mark.parametrize("words", [f"local_multihost.sh 2 {GOOD}", f"{RUN} {GOOD}", f"{SLURM} {GOOD}", f"slurm.sbatch {GOOD}"])
def test_a_grace_that_bash_cannot_read_is_refused(platform: Platform, words: str) -> None:
    script, *rest = words.replace(" --", " --dry-run --", 1).split() if "sbatch" not in words else words.split()
    code, _, err = platform.run(f"launch/{script}", *rest, GRACE="08", SLURM_JOB_ID="7", SLURM_NTASKS="1")
    assert (code, err) == (2, "error: GRACE=08 must be a whole number from 0 to 99999, without leading zeros.\n")
    assert not platform.calls()


@pytest.mark.parametrize(
    ("given", "meant"),
    [("~/x", "/home/ann/x"), ("~", "/home/ann"), ("/shared/runs/a//", "/shared/runs/a"), ("s3://b/r/", "s3://b/r"), ("/shared/~/a", "/shared/~/a")],
)
def test_a_workdir_is_passed_on_as_it_is_meant(platform: Platform, given: str, meant: str) -> None:
    """bash leaves the ~ of --workdir=~/x as it is."""
    for words in (SLURM, "local_multihost.sh 1"):
        script, *options = words.split()
        flags = ["--config=configs/demo.py", f"--workdir={given}", "--verbosity=0"]
        code, out, err = platform.run(f"launch/{script}", *options, "--dry-run", "--", *flags, HOME="/home/ann")
        assert (code, err) == (0, "") and f" --config=configs/demo.py {quoted(f'--workdir={meant}')} --verbosity=0\n" in out, out


def quoted(word: str) -> str:
    return f"'{word}'" if "~" in word else word


def test_a_value_of_several_words_is_refused(platform: Platform) -> None:
    for option in ("partition", "account", "qos"):
        code, _, err = platform.run(f"launch/{SLURM.split()[0]}", *SLURM.split()[1:], f"--{option}=a b", *TRAINER)
        assert code == 2 and err == f"error: --{option}=a b must be one word.\n"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.train.batch_size=0", "error: config key 'train.batch_size' must be above 0, not 0.\n"),
        ("--config.train.batch_size=64", ""),
        ("--config.train.batch_size=40", "error: train.batch_size = 40 is not a multiple of mesh.data x fsdp = 16 x 1 (with mesh.tensor = 1 and "
         "mesh.slices = 1 on 16 devices): take 32 or 48, or other axes.\n"),
        ("--config.data.source=my.txt", "error: the machines have no my.txt: lay what is there, or for a text what prepare makes of it "
         "(docs/DATA.md), where they see it, at gs://...\n"),
        ("--config.data.tokenizer_from=runs/demo", "error: the machines have no runs/demo: lay what is there"),
        ("--config.data.source=configs/demo.py", ""),
    ],
)
def test_the_trainer_is_asked_about_its_flags_where_it_is_installed(platform: Platform, flag: str, said: str) -> None:
    code, _, err = platform.run("launch/tpu_vm.sh", *RUN.split()[1:], "--dry-run", *TRAINER, flag, CHECKER=sys.executable)
    assert code == (2 if said else 0) and err.startswith(said) and err.count("\n") == bool(said)
    # An installation that is broken has no say.
    assert platform.run("launch/tpu_vm.sh", *RUN.split()[1:], "--dry-run", *TRAINER, flag, CHECKER="/bin/false")[0] == 0


@pytest.mark.parametrize(("options", "said"), [("", "error: --slices=1 and the config's mesh.slices=2 differ: "), ("--slices=2", "")])
def test_a_config_file_that_asks_for_slices_is_held_against_those_that_are_made(platform: Platform, options: str, said: str) -> None:
    """With one slice it would only fail on the machines."""
    project = platform.project()
    (project / "configs" / "two.py").write_text((project / "configs" / "demo.py").read_text().replace("return c", "c.mesh.slices = 2\n    return c"))
    flags = ["--dry-run", "--", "--config=configs/two.py", "--workdir=gs://b/r", "--config.train.batch_size=64"]
    words = [*RUN.split()[1:], *options.split(), *flags]
    code, _, err = platform.run(project / "launch" / "tpu_vm.sh", *words, CHECKER=sys.executable, PYTHONPATH=str(ROOT))
    assert code == (2 if said else 0) and err.startswith(said) and err.count("\n") == bool(said), err


def test_each_launcher_tells_the_trainer_its_devices(platform: Platform) -> None:
    asked = platform.folder / "asked"
    checker = platform.folder / "checker"
    checker.write_text(f"#!/bin/sh\nprintf '%s' \"$2\" >{asked}\nprintf 'hello\\nerror: it does not fit.\\nbye\\n' >&2\nexit 2\n")
    checker.chmod(0o755)
    for words, devices in ((RUN, 16), (f"{RUN} --slices=3", 48), (f"{MANIFEST} --topology=v5p:2x2x2 --slices=2", 16), (XPK, 16), (SLURM, 8)):
        code, _, err = platform.run(f"launch/{words.split()[0]}", *words.split()[1:], *GOOD.split(), CHECKER=str(checker))
        assert (code, err) == (2, "error: it does not fit.\n") and f"mesh.sizes(config, int('{devices}'))" in asked.read_text()
    assert not platform.calls()


def test_the_flags_that_launchers_let_through_are_the_trainers(platform: Platform) -> None:
    defined = re.findall(r'DEFINE_\w+\("(\w+)"', (ROOT / "cdcd_jax" / "train.py").read_text())
    assert set(defined) == {"config", "workdir", "go_back_to"}
    assert platform.run("launch/tpu_vm.sh", *RUN.split()[1:], "--dry-run", *TRAINER, "--go_back_to=1", "--verbosity=1")[0] == 0
    for flag in ("--noconfig.train.self_conditioning", "--config.train.self_conditioning", "-config.train.seed=1", "--logtostderr", "--log_dir=/l"):
        assert platform.run("launch/tpu_vm.sh", *RUN.split()[1:], "--dry-run", *TRAINER, flag)[0] == 0


@pytest.mark.parametrize(
    ("words", "missing", "said"),
    [
        (["tpu_vm.sh", "setup", *VM], "gcloud", "install it from https://cloud.google.com/sdk/docs/install, then gcloud init."),
        (["gke/jobset.sh", "run", *JOB, *TRAINER], "kubectl", "install it with gcloud components install kubectl"),
        (["gke/xpk.sh", "run", *JOB, *CLUSTER, *TRAINER], "xpk", "install it with pip install xpk."),
        (["slurm.sh", "run", *NODES, *TRAINER], "sbatch", "this is no login node of a Slurm cluster"),
        (["image.sh", "--image=r/i:1"], "docker", "install it from https://docs.docker.com/engine/install."),
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
