"""Values that stand in the launchers and that no rule of theirs would miss: names of TPUs."""

import shlex
from typing import Any

import pytest

from tests.platforms import Platform, option
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
