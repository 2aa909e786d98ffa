"""The launchers against what the platforms document: options, the JobSet API, what it decides on an exit code, and the page for newcomers."""

import re
import runpy
import shlex
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api import models

from cdcd_jax.config import UserError, from_dict
from cdcd_jax.parallel import mesh
from tests.platforms import ROOT, Platform

# Options of the commands that are called, as `gcloud help` (528), `xpk --help` (1.16), `kubectl help` (1.32), `docker help` (28) and Slurm's manual
# pages (22.05) list them; of the longer lists those that could be meant here.
WIDE = "project quiet format"
DOCUMENTED = {
    "gcloud compute tpus queued-resources create": f"{WIDE} zone runtime-version accelerator-type topology type node-id node-count node-prefix async "
    "data-disk description guaranteed internal-ips labels metadata metadata-from-file network range reserved scopes service-account "
    "shielded-secure-boot spot subnetwork tags valid-after-duration valid-after-time valid-until-duration valid-until-time",
    "gcloud compute tpus queued-resources describe": f"{WIDE} zone",
    "gcloud compute tpus queued-resources delete": f"{WIDE} zone async force",
    "gcloud compute tpus tpu-vm describe": f"{WIDE} zone",
    "gcloud compute tpus tpu-vm scp": f"{WIDE} zone worker recurse compress dry-run internal-ip plain scp-flag ssh-key-file",
    "gcloud compute tpus tpu-vm ssh": f"{WIDE} zone worker command output-directory dry-run internal-ip plain ssh-flag ssh-key-file",
    "gcloud container node-pools create": f"{WIDE} cluster location node-locations machine-type tpu-topology num-nodes spot scopes service-account "
    "placement-type reservation reservation-affinity workload-metadata",
    "gcloud storage buckets add-iam-policy-binding": f"{WIDE} member role condition",
    "xpk cluster create": "cluster zone project tpu-type device-type num-slices on-demand spot reservation flex quiet dry-run",
    "xpk cluster delete": "cluster zone project quiet force dry-run",
    "xpk workload list": "cluster zone project filter-by-job filter-by-status wait-for-job-completion timeout quiet",
    "xpk workload delete": "cluster zone project workload filter-by-job filter-by-status quiet force",
    "xpk workload create": "cluster zone project workload command tpu-type device-type num-slices docker-image env env-file max-restarts "
    "restart-on-exit-codes termination-grace-period-seconds ttl-seconds-after-finished priority scheduler docker-name quiet",
    "kubectl get jobset": "namespace ignore-not-found output selector",
    "kubectl get pods": "namespace output selector",
    "kubectl create": "filename dry-run validate namespace",
    "kubectl apply": "filename server-side force-conflicts",
    "kubectl logs": "namespace selector tail prefix max-log-requests follow container",
    "kubectl delete jobset": "namespace ignore-not-found wait",
    "docker build": "file build-arg tag platform",
    "docker push": "quiet all-tags",
    "squeue": "me noheader name format jobs states",
    "scancel": "me name signal",
    "sbatch": "job-name chdir output nodes ntasks-per-node gpus-per-node cpus-per-task time partition account qos requeue open-mode signal",
    "srun": "kill-on-bad-exit wait output error",
}
NAMED = "--name=a --zone=us-a1-b --project=p --slices=2"
FLAGS = "-- --config=configs/demo.py --workdir=gs://b/r"
EVERY = [
    f"tpu_vm.sh create {NAMED} --topology=v6e:16x16 --spot --runtime=r --service-account=s --network=n --subnetwork=m",
    f"tpu_vm.sh setup {NAMED}",
    f"tpu_vm.sh run {NAMED} --topology=v5p:8x8x8 --reserved --max-restarts=9 {FLAGS}",
    f"tpu_vm.sh logs {NAMED}",
    f"tpu_vm.sh stop {NAMED}",
    f"tpu_vm.sh delete {NAMED}",
    "gke/xpk.sh create --cluster=c --zone=us-a1-b --project=p --topology=v5e:4x4 --slices=2 --reservation=r",
    f"gke/xpk.sh run --name=a --cluster=c --zone=us-a1-b --topology=v5e:4x4 --image=r/i:1 {FLAGS}",
    "gke/xpk.sh logs --name=a --cluster=c --zone=us-a1-b",
    "gke/xpk.sh delete --name=a --cluster=c --zone=us-a1-b",
    "gke/xpk.sh delete-cluster --cluster=c --zone=us-a1-b",
    "gke/jobset.sh setup",
    f"gke/jobset.sh run --name=a --topology=v5e:4x4 --image=r/i:1 {FLAGS}",
    "gke/jobset.sh logs --name=a --namespace=n",
    "gke/jobset.sh delete --name=a",
    f"slurm.sh run --name=a --nodes=2 --gpus=8 --time=1:00:00 --partition=p --account=a --qos=q --cpus=4 {FLAGS}",
    "slurm.sh delete --name=a",
    "image.sh --image=r/i:1 --accelerator=cuda13",
]


def dry_run(platform: Platform, words: str) -> str:
    """What a launcher would do; it must do nothing."""
    before, _, after = words.partition(" -- ")
    code, out, err = platform.run(f"launch/{before.split()[0]}", *before.split()[1:], "--dry-run", *(["--", *after.split()] if after else []))
    assert code == 0 and not platform.calls(), err
    return out


@pytest.mark.parametrize("words", EVERY)
def test_dry_runs_print_commands_that_the_platforms_document(platform: Platform, words: str) -> None:
    called = [line for line in dry_run(platform, words).splitlines() if re.match("(gcloud|xpk|kubectl|docker|sbatch|squeue|scancel) ", line)]
    assert called
    for line in called:
        command = next(name for name in sorted(DOCUMENTED, key=len, reverse=True) if line.startswith(name + " "))
        flags = [word for word in shlex.split(line.removeprefix(command)) if word.startswith("--")]
        if command == "sbatch":
            flags = flags[: next(index for index, flag in enumerate(flags) if flag.startswith("--max-restarts"))]  # after it come the script's own
        unknown = {flag[2:].partition("=")[0] for flag in flags} - set(DOCUMENTED[command].split())
        assert not unknown, (line, unknown)


def test_slurm_script_asks_for_what_slurm_documents() -> None:
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    for name in re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE):
        assert name in DOCUMENTED["sbatch"].split()
    call = next(line for line in text.splitlines() if " srun " in line).partition(" srun ")[2]
    assert set(re.findall(r"--([a-z-]+)=", call)) == set(DOCUMENTED["srun"].split())


def test_what_is_shipped_is_what_the_image_copies() -> None:
    shipped = set(re.search('^shipped="(.*)"', (ROOT / "launch" / "common.sh").read_text(), re.MULTILINE)[1].split())  # type: ignore[index]
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text()
    assert shipped == set(re.findall("^!(.*)", ignored, re.MULTILINE))
    copied = " ".join(re.findall(r"^COPY (.*) \S+$", (ROOT / "launch" / "Dockerfile").read_text(), re.MULTILINE)).split()
    assert shipped == {word for word in copied if "/" not in word} and all((ROOT / name).exists() for name in shipped)


# The JobSet manifest. Facts of jobset.x-k8s.io/v1alpha2 (api/jobset/v1alpha2/jobset_types.go at v0.10.1), batch/v1 and core/v1 (Kubernetes 1.31):
# each field that is used, with its type; a set holds the values that an enumeration has, and "!" marks what is required.

ENV = [{"name!": str, "value": str}]
POD = {
    "restartPolicy!": {"Never"}, "terminationGracePeriodSeconds": int, "hostNetwork": bool, "dnsPolicy": {"ClusterFirstWithHostNet"},
    "serviceAccountName": str, "nodeSelector": {"*": str}, "tolerations": [{"key": str, "operator": {"Exists", "Equal"}, "effect": str}],
    "containers!": [{
        "name!": str, "image!": str, "args": [str], "env": ENV, "ports": [{"containerPort!": int}], "resources": {"limits": {"*": int}},
        "securityContext": {"privileged": bool}, "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
        "volumeMounts": [{"name!": str, "mountPath!": str}],
    }],
    "volumes": [{"name!": str, "emptyDir": {"medium": {"", "Memory"}}}],
}  # fmt: skip
JOB = {
    "parallelism": int, "completions": int, "completionMode": {"Indexed", "NonIndexed"}, "backoffLimit": int, "template!": {"spec!": POD},
    "podFailurePolicy": {"rules!": [{
        "action!": {"FailJob", "Ignore", "Count", "FailIndex"},
        "onExitCodes": {"containerName": str, "operator!": {"In", "NotIn"}, "values!": [int]},
        "onPodConditions": [{"type!": str, "status!": {"True", "False", "Unknown"}}],
    }]},
}  # fmt: skip
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"}, "kind!": {"JobSet"}, "metadata!": {"name!": str, "namespace": str, "annotations": {"*": str}},
    "spec!": {
        "ttlSecondsAfterFinished": int,
        "failurePolicy": {
            "maxRestarts": int, "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [{"name!": str, "action!": ACTIONS, "onJobFailureReasons": [{"PodFailurePolicy"}], "onJobFailureMessagePatterns": [str]}],
        },
        "replicatedJobs": [{"name!": str, "replicas": int, "template!": {"spec!": JOB}}],
    },
}  # fmt: skip


def check(value: Any, schema: Any, path: str = "") -> None:
    """Fails with the path of the first field that the API does not have, misses, or has with another type."""
    if isinstance(schema, set):
        assert value in schema, (path, value)
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for index, item in enumerate(value):
            check(item, schema[0], f"{path}[{index}]")
    elif isinstance(schema, dict):
        known = {key.rstrip("!"): inner for key, inner in schema.items()}
        assert isinstance(value, dict), path
        assert "*" in known or set(value) <= set(known), (path, set(value) - set(known))
        assert {key[:-1] for key in schema if key.endswith("!")} <= set(value), path
        for key, item in value.items():
            check(item, known.get(key, known.get("*")), f"{path}.{key}")
    else:
        assert type(value) is schema, (path, value)


def manifest(platform: Platform, options: str = "") -> Any:
    out = dry_run(platform, f"gke/jobset.sh run --name=a --topology=v5p:4x4x4 --image=r/i:1 {options} {FLAGS}")
    return yaml.safe_load(out[out.index("apiVersion") : out.index("# the above is the file:")])


@pytest.mark.parametrize("options", ["", "--slices=2 --spot --service-account=s --namespace=n --max-restarts=0"])
def test_jobset_manifest_is_the_published_apis(platform: Platform, options: str) -> None:
    made = manifest(platform, options)
    check(made, JOBSET)
    job = made["spec"]["replicatedJobs"][0]
    flags = FLAGS.split()[1:] + ["--config.mesh.slices=2"] * bool(options)
    pod = job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"], job["template"]["spec"]["completions"]) == (2 if options else 1, 16, 16)
    assert pod["containers"][0]["args"] == flags and pod["containers"][0]["resources"] == {"limits": {"google.com/tpu": 4}}
    spot = {"cloud.google.com/gke-spot": "true"} if options else {}
    chips = {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice", "cloud.google.com/gke-tpu-topology": "4x4x4"}
    assert pod["nodeSelector"] == chips | spot and pod.get("serviceAccountName") == ("s" if options else None)
    # What the API asks beyond types: names of rules, sorted out codes without 0, the container that a rule names.
    rules = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert all(re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]) for rule in made["spec"]["failurePolicy"]["rules"])
    codes = rules[0]["onExitCodes"]
    assert codes["containerName"] == pod["containers"][0]["name"] and codes["values"] == sorted(set(codes["values"])) and 0 not in codes["values"]
    assert len(codes["values"]) <= 255 and all(len({"onExitCodes", "onPodConditions"} & set(rule)) == 1 for rule in rules)


def test_jobset_manifest_survives_the_published_models(platform: Platform) -> None:
    """The models that are generated from the API drop what they do not know."""
    made = manifest(platform, "--slices=2 --spot --service-account=s")

    def lost(before: Any, after: Any, path: str) -> list[str]:
        if isinstance(before, dict):
            return [name for key, item in before.items() for name in (lost(item, after[key], f"{path}.{key}") if key in after else [f"{path}.{key}"])]
        if isinstance(before, list):
            return [name for index, item in enumerate(before) for name in lost(item, after[index], f"{path}[{index}]")]
        return [] if before == after else [path]

    assert not lost(made, models.JobsetV1alpha2JobSet.from_dict(made).to_dict(), "")


def decision(made: Any, code: int, disrupted: bool) -> str:
    """What Kubernetes and JobSet document that they do when a pod ends with a code: the first matching rule of each counts."""
    policy = made["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(policy):
        exits, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if exits and (code in exits["values"]) == (exits["operator"] == "In"):
            reason, message = "PodFailurePolicy", f"Container train for pod n/a failed with exit code {code} matching FailJob rule at index {index}"
            break
        if conditions and disrupted:
            reason, message = "PodFailurePolicy", f"Pod n/a has condition DisruptionTarget matching FailJob rule at index {index}"
            break
    for rule in made["spec"]["failurePolicy"]["rules"]:
        if reason in rule["onJobFailureReasons"] and any(re.search(pattern, message) for pattern in rule["onJobFailureMessagePatterns"]):
            return str(rule["action"])
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("code", "disrupted", "action"),
    [
        (1, False, "FailJobSet"),
        (2, False, "FailJobSet"),
        (2, True, "FailJobSet"),
        (7, False, "FailJobSet"),
        (130, False, "FailJobSet"),
        (75, False, "RestartJobSet"),
        (137, False, "RestartJobSet"),
        (139, False, "RestartJobSet"),
        (75, True, "RestartJobSetAndIgnoreMaxRestarts"),
        (143, True, "RestartJobSetAndIgnoreMaxRestarts"),
    ],
)
def test_jobset_decides_by_the_code_as_the_other_launchers_do(platform: Platform, code: int, disrupted: bool, action: str) -> None:
    assert decision(manifest(platform), code, disrupted) == action


# The page for newcomers


def test_the_page_takes_a_newcomer_there_in_three_commands(platform: Platform) -> None:
    page = (ROOT / "docs" / "LAUNCH.md").read_text()
    sections = {part.partition("\n")[0]: re.findall("^```\n(.*?)^```", part, re.MULTILINE | re.DOTALL) for part in page.split("\n## ")[1:]}
    places = {title: blocks for title, blocks in sections.items() if blocks}
    assert len(places) == 4
    for title, blocks in places.items():
        first = blocks[0].splitlines()
        # The demo's text is there wherever the project is: with a config whose text must be prepared first, this would end in no running job.
        assert len(first) <= 3 and " run " in first[-1] and "--config=configs/demo.py" in first[-1], title
        for line in "".join(blocks).splitlines():
            assert dry_run(platform, line.removeprefix("launch/")), line


def test_the_page_names_options_that_gcloud_documents() -> None:
    commands = re.findall(r"`(gcloud (?:container|storage)[^`]*--[^`]*)`", (ROOT / "docs" / "LAUNCH.md").read_text())
    assert len(commands) == 2
    for command in commands:
        known = next(options for name, options in DOCUMENTED.items() if command.startswith(name + " "))
        assert set(re.findall(" --([a-z-]+)", command.replace("\n", " "))) <= set(known.split()), command


def test_the_demo_fits_the_chips_that_the_page_names() -> None:
    config = runpy.run_path(str(ROOT / "configs" / "demo.py"))["get_config"]()
    assert [mesh.sizes(from_dict(config), chips)[0] for chips in (4, 8, 16)] == [4, 8, 16]
    with pytest.raises(UserError, match="take 32 or 64"):
        mesh.sizes(from_dict(config), 32)
    config.train.batch_size = 64
    assert mesh.sizes(from_dict(config), 32) == (32, 1, 1)


def test_the_help_of_xpk_tells_which_codes_it_starts_again_as_the_page_does(platform: Platform) -> None:
    page = (ROOT / "docs" / "LAUNCH.md").read_text()
    also = re.search(r"xpk has\s+its own rules: it counts every restart, and starts (\d+) and (\d+ to \d+) again as well", page)
    said = " ".join(platform.run("launch/gke/xpk.sh", "--help")[1].split())
    assert also and f"when it ends with {also[1]} or {also[2]}; any other code ends the job." in said


def test_every_launcher_has_help(platform: Platform) -> None:
    for script in sorted({words.split()[0] for words in EVERY}):
        code, out, _ = platform.run(f"launch/{script}", "--help")
        assert code == 0 and f"launch/{script}" in out and "--dry-run" in out and "shellcheck" not in out, out
