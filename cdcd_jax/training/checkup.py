"""Whether a run could start here: versions, devices, mesh, places, coordinator, disk and text, a finding each, with the command that mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import secrets
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax._src import hardware_utils  # what hardware there is has no public name

from cdcd_jax.config import Config, HostsConfig, UserError, sentence
from cdcd_jax.data import files, spans
from cdcd_jax.parallel import job, rollcall
from cdcd_jax.parallel.mesh import AXES, sizes
from cdcd_jax.training.state import init_state

SECONDS = 60.0  # for the devices to answer
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu")
NEEDS = {"tfds": "tensorflow_datasets", "hf": "datasets"}  # what names of data sets need


class Finding(NamedTuple):
    """One line of `python -m cdcd_jax.doctor`."""

    name: str
    good: bool
    said: str
    mend: str = ""  # a command, or what to do, if it is not good


def findings(workdir: str | None, config: Config | None) -> Iterator[Finding]:
    """Everything that can be looked at without starting a run; what needs a workdir or a config only with one."""
    yield versions()
    found = devices()
    yield found[0]
    if config is not None and found[1] is not None:
        yield mesh(config, len(found[1]))
    yield coordinator()
    if workdir is not None:
        yield writable(workdir)
    yield disk(workdir, config)
    if config is not None:
        yield text(config)


def versions() -> Finding:
    """Python's and the packages' versions, and whether jax, jaxlib and libtpu belong together."""
    there = {name: _version(name) for name in PACKAGES}
    said = ", ".join([f"Python {platform.python_version()}", *(f"{name} {version}" for name, version in there.items() if version)])
    install = "pip install -r requirements.lock"
    missing = [name for name, version in there.items() if version is None and name != "libtpu"]
    if missing:
        return Finding("versions", False, f"{said}; {', '.join(missing)} is not installed", install)
    wanted = [line for line in importlib.metadata.requires("jax") or [] if line.startswith("libtpu") and "tpu" in line]
    release = re.search(r"libtpu==([\d.]+)\.\*", wanted[0]) if wanted else None
    if there["libtpu"] and release and not f"{there['libtpu']}.".startswith(f"{release[1]}."):
        return Finding("versions", False, f"{said}; jax {there['jax']} needs libtpu {release[1]}", f"pip install 'libtpu=={release[1]}.*'")
    return Finding("versions", True, said)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> tuple[Finding, list[jax.Device] | None]:
    """The devices and their memory; asked in a thread of its own: a TPU that another process has, or a pod's, may never answer."""
    answer: list[list[jax.Device] | Exception] = []

    def ask() -> None:
        try:
            answer.append(jax.local_devices())
        except RuntimeError as error:  # what a backend that cannot start raises
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not answer:
        mend = "end the process that uses them (ps aux | grep python), or, on a TPU slice of several hosts, run this on all of them at once"
        return Finding("devices", False, f"they did not answer within {SECONDS:.0f} s", mend), None
    found = answer[0]
    if isinstance(found, Exception):
        return Finding("devices", False, sentence(found)[:300], "end the process that uses them, or JAX_PLATFORMS=cpu to do without"), None
    memory = [stats["bytes_limit"] for device in found if (stats := device.memory_stats()) and "bytes_limit" in stats]
    each = f", {min(memory) / 2**30:.1f} GiB each" if memory else ""
    said = f"{len(found)} x {found[0].device_kind} ({found[0].platform}){each}"
    if found[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        if hardware_utils.has_visible_nvidia_gpu():
            return Finding("devices", False, f"{said}, though an NVIDIA GPU is here", "pip install 'jax[cuda12]'"), found
        if hardware_utils.num_available_tpu_chips_and_device_id()[0]:
            return Finding("devices", False, f"{said}, though a TPU is here", "pip install 'jax[tpu]'"), found
    return Finding("devices", True, said), found


def _told() -> job.Job | None:
    """Who this process is, if a launcher says it in variables; what only the platform knows is not waited for. Raises UserError as job.find does."""
    return job.find(HostsConfig()) if any(os.environ.get(name) for name in job.EXPLICIT) else None


def mesh(config: Config, local: int) -> Finding:
    """Whether the config's mesh divides the devices: this host's, times the processes that the launcher tells of."""
    try:
        told = _told()
        processes = told.count if told else 1
        shape = sizes(config, local * processes)
    except UserError as error:
        return Finding("mesh", False, sentence(error), f"--config.mesh.data=-1 --config.mesh.fsdp=-1 --config.mesh.tensor=1, for {local} devices")
    return Finding("mesh", True, " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True)))


def coordinator() -> Finding:
    """Whether the processes that a launcher tells of could meet."""
    try:
        told = _told()
    except UserError as error:
        return Finding("coordinator", False, sentence(error), f"export {job.EXPLICIT[0]}=host:port, of process 0")
    if told is None:
        who = "the platform says who the processes are" if os.environ.get(job.LISTEN) == "1" else "one process"
        return Finding("coordinator", True, who)
    if told.index != 0:
        if rollcall.reachable(told.address):
            return Finding("coordinator", True, f"{told.address} answers")
        advice = f"start process 0 there, or export {job.EXPLICIT[0]}=host:port, of process 0, and open that port"
        return Finding("coordinator", False, f"the coordinator at {told.address} did not answer", advice)
    port = int(told.address.rpartition(":")[2])
    try:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
    except OSError as error:
        said = f"port {port} cannot be used here ({error.strerror})"
        return Finding("coordinator", False, said, f"ss -ltnp 'sport = :{port}' shows who has it; or choose another port")
    return Finding("coordinator", True, f"this is process 0, and port {port} is free")


def writable(workdir: str) -> Finding:
    """Whether a file can be made, read and removed in the workdir, or, before there is one, in the folder where it would be made."""
    try:
        place = files.locate(workdir)
        folder = place
        while not files.in_bucket(folder) and not folder.exists() and folder != folder.parent:
            folder = folder.parent
        probe = folder / f".doctor-{secrets.token_hex(4)}"
        files.write_whole(probe, "well")
        back = probe.read_text()
        probe.unlink()
    except UserError as error:
        return Finding("workdir", False, sentence(error), _owner_command(workdir))
    except files.failures() as error:
        return Finding("workdir", False, f"{workdir} cannot be written and read ({files.reason(error)})", _owner_command(workdir))
    if back != "well":
        return Finding("workdir", False, f"{probe} reads back as something else", "another folder or bucket")
    return Finding("workdir", True, f"{place} can be written")


def _owner_command(workdir: str) -> str:
    if workdir.startswith("gs://"):
        bucket = workdir.split("/")[2]
        grant = f"gcloud storage buckets add-iam-policy-binding gs://{bucket} --member=ACCOUNT --role=roles/storage.objectAdmin"
        return f"gcloud auth application-default login; {grant}"
    if workdir.startswith("s3://"):
        return "aws configure, and the rights to list, read, write and delete in the bucket"
    return f'sudo chown "$USER" {workdir}, or another folder'


def disk(workdir: str | None, config: Config | None) -> Finding:
    """Whether the disk holds the checkpoints that are kept, and one that is being written."""
    there = workdir is None or workdir.startswith(tuple(f"{scheme}://" for scheme in files.PACKAGES))
    folder = epath.Path("." if there or workdir is None else workdir).expanduser()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    said = f"{free / 2**30:.1f} GiB free on the disk of {folder.resolve()}"
    if config is None or there:
        return Finding("disk", free > 2**30, said, "" if free > 2**30 else "df -h; remove what is not needed")
    vocab_size = config.data.vocab_size
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    need = one * (config.checkpoint.keep_last + 1)
    said += f"; {config.checkpoint.keep_last} + 1 checkpoints take {need / 2**30:.1f} GiB"
    return Finding("disk", free > need, said, "" if free > need else "another --workdir, or --config.checkpoint.keep_last=1")


def text(config: Config) -> Finding:
    """Whether data.source is there; nothing is read."""
    source = config.data.source
    kind = source.partition(":")[0]
    give = "--config.data.source=PATH, a text file, a quoted glob or a prepared folder"
    if source in spans.EMBEDDED:
        return Finding("data", True, f"{source} comes with the package")
    if kind in NEEDS and "://" not in source:
        if importlib.util.find_spec(NEEDS[kind]) is None:
            return Finding("data", False, f"{source!r} needs the package {NEEDS[kind]}", f"pip install {NEEDS[kind].replace('_', '-')}")
        return Finding("data", True, f"{source} is read by {NEEDS[kind]}, which is installed; whether the data set is there was not asked")
    try:
        place = files.locate(source.replace("{split}", "train"))
        found = files.kind(place) if not any(c in source for c in "*?[") else ("directory" if files.matching(place) else None)
    except UserError as error:
        return Finding("data", False, sentence(error), give)
    except files.failures() as error:
        return Finding("data", False, f"{source!r} cannot be read ({files.reason(error)})", give)
    if found is None:
        return Finding("data", False, f"nothing is at {source!r}", give)
    return Finding("data", True, f"{source} is there")
