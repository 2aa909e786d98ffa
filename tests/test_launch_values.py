"""Values in the launchers that no rule of theirs would miss: names of TPUs, fields of the JobSet, the head of the Slurm script, a wait."""

import re
import shlex
from typing import Any

import pytest

from tests.platforms import ROOT, Platform, option
from tests.test_launch_documented import FLAGS, dry_run, manifest

# As Google documents them (cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, runtimes; GKE: about TPUs in GKE). The names of v4 and v5p count
# TensorCores, two a chip; those of v5e and v6e count chips. Shape, accelerator type, image, node label, and machines of four chips (one for 1x1).
V4, V5E, V5P, V6E = "tpu-ubuntu2204-base", "v2-alpha-tpuv5-lite", "v2-alpha-tpuv5", "v2-alpha-tpuv6e"
NAMES = [
    ("v4:2x2x1", "v4-8", V4, "tpu-v4-podslice", 1),
    ("v4:2x2x2", "v4-16", V4, "tpu-v4-podslice", 2),
    ("v4:8x8x8", "v4-1024", V4, "tpu-v4-podslice", 128),
    ("v5e:1x1", "v5litepod-1", V5E, "tpu-v5-lite-podslice", 1),
    ("v5e:4x4", "v5litepod-16", V5E, "tpu-v5-lite-podslice", 4),
    ("v5e:16x16", "v5litepod-256", V5E, "tpu-v5-lite-podslice", 64),
    ("v5p:2x2x1", "v5p-8", V5P, "tpu-v5p-slice", 1),
    ("v5p:8x8x8", "v5p-1024", V5P, "tpu-v5p-slice", 128),
    ("v5p:16x16x24", "v5p-12288", V5P, "tpu-v5p-slice", 1536),
    ("v6e:2x4", "v6e-8", V6E, "tpu-v6e-slice", 2),
    ("v6e:4x4", "v6e-16", V6E, "tpu-v6e-slice", 4),
    ("v6e:16x16", "v6e-256", V6E, "tpu-v6e-slice", 64),
]


@pytest.mark.parametrize(("topology", "accelerator", "runtime", "label", "hosts"), NAMES)
def test_a_topology_has_the_names_that_google_gives_it(
    platform: Platform, topology: str, accelerator: str, runtime: str, label: str, hosts: int
) -> None:
    def asked(words: str, call: str) -> list[str]:
        return next(shlex.split(line) for line in dry_run(platform, words).splitlines() if line.startswith(call))

    cluster = "--cluster=c --zone=us-a1-b"
    request = asked(f"tpu_vm.sh create --name=a --zone=us-a1-b --topology={topology}", "gcloud compute tpus queued-resources create")
    assert (option(request, "accelerator-type"), option(request, "runtime-version")) == (accelerator, runtime)
    for words in (f"create {cluster} --topology={topology}", f"run --name=a {cluster} --topology={topology} --image=r/i:1 {FLAGS}"):
        verb = "cluster create" if words.startswith("create") else "workload create"
        assert option(asked(f"gke/xpk.sh {words}", f"xpk {verb}"), "tpu-type") == accelerator
    job = at(manifest(platform, f"--topology={topology}"), "spec.replicatedJobs.0.template.spec")
    selector = {"cloud.google.com/gke-tpu-accelerator": label, "cloud.google.com/gke-tpu-topology": topology.partition(":")[2]}
    assert job["parallelism"] == hosts and at(job, "template.spec.nodeSelector") == selector


def at(value: Any, path: str) -> Any:
    """What a manifest holds at a path such as "spec.template.0.name"; a part that begins with a digit counts in a list."""
    for part in path.split("."):
        value = value[int(part) if part.isdigit() else part]
    return value


JOB = "spec.replicatedJobs.0.template.spec"
POD = f"{JOB}.template.spec"
TRAIN = f"{POD}.containers.0"
FIELDS = [  # where, what, and what would happen without it
    ("metadata.annotations", {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}, "a slice would lie in two pools"),
    ("spec.ttlSecondsAfterFinished", 86400, "the logs would be gone at once, or for ever there"),
    ("spec.failurePolicy.maxRestarts", 3, "the page says so"),
    ("spec.failurePolicy.restartStrategy", "BlockingRecreate", "new pods would start while the old ones still hold the TPUs"),
    (f"{JOB}.backoffLimit", 0, "one pod would be started again alone, which the others never meet"),
    (f"{JOB}.completionMode", "Indexed", "pods would have no number, and so no name that process 0 is found by"),
    (f"{POD}.restartPolicy", "Never", "a code would be judged by the kubelet, and not by the policies"),
    (f"{POD}.terminationGracePeriodSeconds", 120, "30 are too few to save"),
    (f"{POD}.hostNetwork", True, "slices would talk through the pods' slow network"),
    (f"{POD}.dnsPolicy", "ClusterFirstWithHostNet", "in the host's network the names of pods would not be found"),
    (f"{POD}.tolerations", [{"key": key, "operator": "Exists"} for key in ("google.com/tpu", "cloud.google.com/gke-spot")], "taints of GKE"),
    (f"{TRAIN}.env", [{"name": "PLATFORM", "value": "gke"}], "launch/worker.sh asks for it"),
    (f"{TRAIN}.ports", [{"containerPort": port} for port in (8471, 8080, 8482)], "TPUs' runtimes, slices, process 0"),
    (f"{TRAIN}.securityContext", {"privileged": True}, "TPUs of nodes before GKE 1.28 could not be opened"),
    (f"{TRAIN}.terminationMessagePolicy", "FallbackToLogsOnError", "the status of a failed pod would not say why"),
    (f"{TRAIN}.volumeMounts", [{"name": "shm", "mountPath": "/dev/shm"}], "64 MB are too few for the runtime"),
    (f"{POD}.volumes", [{"name": "shm", "emptyDir": {"medium": "Memory"}}], "64 MB are too few for the runtime"),
]  # fmt: skip


def test_fields_of_the_jobset(platform: Platform) -> None:
    made = manifest(platform)
    assert [(path, at(made, path), why) for path, _, why in FIELDS] == FIELDS


HEAD = {  # what, and what would happen without it
    "job-name=cdcd_jax": "it would be named after the script",
    "requeue": "neither a lost node nor the script could queue it again where the cluster's default forbids that",
    "open-mode=append": "each life would overwrite the words of the one before",
    "signal=TERM@180": "the end of its time would come with half a minute to save; with B: before it the script would be told, not the processes",
}


def test_the_head_of_the_slurm_script() -> None:
    assert re.findall(r"^#SBATCH --(.*)$", (ROOT / "launch" / "slurm.sbatch").read_text(), re.MULTILINE) == list(HEAD)


# What the trainer does on a platform, and how long its process then stays: Kubernetes looks at the pod that fails first, which the one that was told
# to stop must be, or a pre-emption would count as a failure of the others.
STAYS = [
    ("gke", "75", "", ["10"]),
    ("gke", "75", "0.3", ["0.3"]),
    ("gke", "told", "0.3", []),
    ("gke", "1", "0.3", []),
    ("gke", "0", "0.3", []),
    ("tpu_vm", "75", "0.3", []),
    ("slurm", "75", "0.3", []),
]


@pytest.mark.parametrize(("kind", "life", "seconds", "stays"), STAYS)
def test_a_pod_that_was_not_told_to_stop_lets_the_one_that_was_fail_first(
    platform: Platform, kind: str, life: str, seconds: str, stays: list[str]
) -> None:
    asked = platform.folder / "asked"
    asked.touch()
    stub = platform.folder / "bin" / "sleep"  # ten seconds are not waited for; what else sleeps here does so really
    stub.write_text(f'#!/bin/sh\necho "$1" >>{asked}\n[ "$1" = 10 ] || exec /bin/sleep "$1"\n')
    stub.chmod(0o755)
    platform.lives(laptop=life, _0=life)
    changes = {"PYTHON": str(platform.folder / "trainer"), "PLATFORM": kind, "YIELD_SECONDS": seconds, "STUB_HOST": "laptop"}
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"} if kind == "slurm" else {}
    assert platform.run("launch/worker.sh", "--workdir=gs://b/r", **changes, **slurm)[0] == int(life.replace("told", "75"))
    assert [words for words in asked.read_text().split() if words not in ("0.2", "5")] == stays  # the looks at the child, and the stand-in's
