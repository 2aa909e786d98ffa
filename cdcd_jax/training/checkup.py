"""Whether a run could start here: versions, devices, mesh, places, coordinator, disk and text, a finding each, with the command that mends it."""

import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import secrets
import shlex
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax._src import hardware_utils  # what hardware there is has no public name

from cdcd_jax.config import Config, HostsConfig, TryAgain, UserError, sentence
from cdcd_jax.data import files, hub, places, prepared, spans
from cdcd_jax.parallel import job, rollcall
from cdcd_jax.parallel.mesh import AXES, sizes
from cdcd_jax.training import checkpoint
from cdcd_jax.training.planning import Changes, changed_config, divides, flags, vocabulary
from cdcd_jax.training.state import init_state

SECONDS = 60.0  # for the devices to answer
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "libtpu")
UNTOLD = (
    f"unset {' '.join(job.EXPLICIT)} {job.LISTEN}, for one process; or export the first three: {job.EXPLICIT[0]}=HOST:PORT of process 0, N, and "
    "0 to N - 1"
)
ELSEWHERE = "--workdir=runs/NAME, gs://BUCKET/runs/NAME or s3://BUCKET/runs/NAME"
TEXT = "--config.data.source=PATH, a text file, a quoted glob, or a folder that python -m cdcd_jax.prepare makes (docs/DATA.md)"
HOLDERS = "sudo lsof -w /dev/accel* /dev/vfio/* /dev/nvidia* shows who holds them"
NEEDS = {"tfds": "tensorflow_datasets", "hf": "datasets"}  # what names of data sets need


class Finding(NamedTuple):
    """One line of `python -m cdcd_jax.doctor`."""

    name: str
    good: bool
    said: str
    mend: str = ""  # a command, or what to do, if it is not good


def findings(workdir: str | None, config: Config | None, given: Sequence[str] = ()) -> Iterator[Finding]:
    """Everything that can be looked at without starting a run; what needs a workdir or a config only with one, whose flags are `given`."""
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
        yield text(config, given)


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
        except (RuntimeError, AssertionError) as error:  # what a backend that cannot start raises, and what JAX asserts where there is none
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not answer:
        mend = f"{HOLDERS}; or, on a TPU slice of several hosts, run this on all of them at once"
        return Finding("devices", False, f"they did not answer within {SECONDS:.0f} s", mend), None
    found = answer[0]
    if isinstance(found, Exception):
        asked = os.environ.get("JAX_PLATFORMS")
        mend = f"unset JAX_PLATFORMS, which is {asked}, for what is here" if asked else "export JAX_PLATFORMS=cpu, for the CPU alone"
        if re.search(r"\b(in use|busy)\b", str(found)):
            mend = f"{HOLDERS}, and kill PID ends it, if it is yours"
        return Finding("devices", False, sentence(found)[:300] if str(found) else f"JAX here has no {asked}", mend), None
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
    return None if os.environ.get(job.LISTEN) == "1" and not any(os.environ.get(name) for name in job.EXPLICIT) else job.find(HostsConfig())


def mesh(config: Config, local: int) -> Finding:
    """Whether the config's mesh divides the devices: this host's, times the processes that the launcher tells of."""
    try:
        told = _told()
    except UserError as error:
        return Finding("mesh", False, sentence(error), UNTOLD)
    count = local * (told.count if told else 1)
    try:
        shape = sizes(config, count)
    except UserError as error:
        return Finding("mesh", False, sentence(error), _dividing(config, count))
    return Finding("mesh", True, " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True)))


def _dividing(config: Config, count: int) -> str:
    """Flags with which mesh and batch divide that many devices, or, if none of those tried do, in words."""
    t = config.train
    unit = math.lcm(count * t.accumulation_steps, 2 * t.accumulation_steps if t.self_conditioning else 1)
    batch: Changes = {"train.batch_size": max(1, round(t.batch_size / unit)) * unit}
    free: Changes = {"mesh.slices": 1, "mesh.fsdp": -1, "mesh.data": -1, "mesh.tensor": 1}
    found = next((changes for changes in (free | batch, free) if divides(changed_config(config, changes), count)), None)
    if found is None:
        return f"choose mesh.data, mesh.fsdp and mesh.tensor whose product is {count}, and a train.batch_size that {unit} divides"
    for key in len(found) * tuple(found):  # what need not change is left as it is, or need no more once another is
        fewer = {name: value for name, value in found.items() if name != key}
        found = fewer if divides(changed_config(config, fewer), count) else found
    return " ".join(flags(config, found))


def coordinator() -> Finding:
    """Whether the processes that a launcher tells of could meet."""
    try:
        told = _told()
    except UserError as error:
        return Finding("coordinator", False, sentence(error), UNTOLD)
    if told is None:
        who = "the platform is to say who the processes are; it was not asked" if os.environ.get(job.LISTEN) == "1" else "one process"
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
    there = workdir
    try:
        place = files.locate(workdir)
        folder = files.nearest(place)
        there = str(folder)
        if not files.in_bucket(folder) and not folder.is_dir():
            return Finding("workdir", False, f"{folder} is no folder", ELSEWHERE)
        probe = folder / f".doctor-{secrets.token_hex(4)}"
        files.write_whole(probe, "well")
        try:
            back = probe.read_text()
        finally:
            probe.unlink()
    except (UserError, TryAgain) as error:
        return Finding("workdir", False, _plain(error), _opening(workdir, there, error, ELSEWHERE))
    except files.failures() as error:
        return Finding("workdir", False, f"{workdir} cannot be written and read ({files.reason(error)})", _opening(workdir, there, error, ELSEWHERE))
    if back != "well":
        return Finding("workdir", False, f"{probe} reads back as something else", ELSEWHERE)
    return Finding("workdir", True, f"{place} can be written")


def _plain(error: Exception) -> str:
    """What an error says; of a TryAgain without what would follow."""
    return " ".join(str(error).split())


def _opening(name: str, there: str, error: Exception, elsewhere: str) -> str:
    """What lets this account write or read at a place, of which so much is there, or another place: nothing of others is taken, moved or removed."""
    bucket = "/".join(name.split("/")[:3])
    if files.in_bucket(name) and not bucket.endswith("/"):  # gs:// names none
        return _opening_bucket(bucket, error)
    if "://" in name or not isinstance(error.__cause__ or error, PermissionError):
        return elsewhere
    return f"{elsewhere}; or ask its owner, whom ls -ld {shlex.quote(there)} shows"


def _opening_bucket(bucket: str, error: Exception) -> str:
    scheme, quoted = bucket.partition(":")[0], shlex.quote(bucket)
    if importlib.util.find_spec(files.PACKAGES[scheme]) is None:
        return f"pip install {files.PACKAGES[scheme]}"
    google = scheme == "gs"
    if isinstance(error, TryAgain) or files.transient(error):
        return f"{'gcloud storage ls' if google else 'aws s3 ls'} {quoted} shows when it answers again"
    if "does not exist" in str(error):
        return f"gcloud auth application-default login; gcloud storage buckets create {quoted}" if google else f"aws configure; aws s3 mb {quoted}"
    if google:
        grant = f"gcloud storage buckets add-iam-policy-binding {quoted} --member=user:$(gcloud config get account) --role=roles/storage.objectAdmin"
        return f"gcloud auth application-default login; {grant}"
    return "aws configure, with a key that may list, read, write and delete there"


def disk(workdir: str | None, config: Config | None) -> Finding:
    """Whether the disk holds the checkpoints that are kept, and one that is being written."""
    here = workdir if workdir is not None and "://" not in workdir else None
    folder = files.nearest(epath.Path(here or ".").expanduser())
    free = shutil.disk_usage(folder).free
    said = f"{free / 2**30:.1f} GiB free on the disk of {folder.resolve()}"
    if config is None or here is None:
        largest = f"du -xh --max-depth=3 {shlex.quote(str(folder.resolve()))} | sort -h | tail shows what takes it"
        return Finding("disk", free > 2**30, said, "" if free > 2**30 else largest)
    vocab_size, supposed = _vocabulary(config)
    abstract = jax.eval_shape(lambda: init_state(config, jnp.zeros(vocab_size)))
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    lying = _lying(here)
    said += f"; {_checkpoints(config) - 1:,} + 1 checkpoints take {one * _checkpoints(config) / 2**30:.1f} GiB{supposed}"
    said += f", and {lying:,} of them lie there" if lying else ""
    if free > one * max(1, _checkpoints(config) - lying):
        return Finding("disk", True, said)
    last: Changes = {"checkpoint.keep_last": 1}
    fewer = [
        changes
        for changes in (last, last | {"checkpoint.keep_every_steps": 0})
        if one * max(1, _checkpoints(changed_config(config, changes)) - lying) < free
    ]
    return Finding("disk", False, said, " ".join(flags(config, fewer[0])) if fewer else f"{ELSEWHERE}; df -h shows the disks")


def _vocabulary(config: Config) -> tuple[int, str]:
    """The size of the vocabulary; where only the text has it, the config's, which few alphabets pass, and words that say so."""
    try:
        return vocabulary(config), ""
    except UserError:
        return config.data.vocab_size, f" if the vocabulary has {config.data.vocab_size:,} tokens (the text, which decides it, is not read here)"


def _lying(workdir: str) -> int:
    """How many checkpoints lie in a workdir; none where it cannot be one, which is told in a line of its own."""
    try:
        return len(checkpoint.listed(files.locate(workdir)))
    except (UserError, TryAgain):
        return 0
    except files.failures():
        return 0


def _checkpoints(config: Config) -> int:
    """How many lie in a workdir at most: the last ones, those that are kept for ever, and one that is being written."""
    c = config.checkpoint
    return c.keep_last + 1 + (config.train.num_steps // c.keep_every_steps if c.keep_every_steps else 0)


def text(config: Config, given: Sequence[str] = ()) -> Finding:
    """Whether what data.source names is here, and is what the config asks for; no text is read, and nothing is fetched."""
    source = config.data.source
    kind, _, name = source.partition(":")
    if source in spans.EMBEDDED:
        return Finding("data", True, f"{source} comes with the package")
    if kind in NEEDS and importlib.util.find_spec(NEEDS[kind]) is None:
        return Finding("data", False, f"{source!r} needs the package {NEEDS[kind]}", f"pip install {NEEDS[kind].replace('_', '-')}")
    try:
        if kind in NEEDS and not hub.here(kind, name):
            build = f"tfds build {name} --file_format=array_record && " if kind == "tfds" and hub.by_beam(name) else ""
            return Finding("data", False, f"{source} is not on this machine", build + _prepare(given))
        if prepared.is_folder(source):
            return Finding("data", True, f"{source} is prepared, {prepared.open_folder(config.data).manifest.num_records:,} records")
        if kind != "hf":  # of which even what is here would be asked for on the Hub
            places.find(config.data)
    except (UserError, TryAgain) as error:
        return Finding("data", False, _plain(error), _mending(source, given, error))
    except files.failures() as error:
        return Finding("data", False, f"{source!r} cannot be read ({files.reason(error)})", _opening(source, source, error, TEXT))
    return Finding("data", True, f"{source} is there")


def _mending(source: str, given: Sequence[str], error: Exception) -> str:
    """What gives the run its text: the flag that the error names, the preparation to its end, what opens the place, or another one."""
    if flag := re.search(r"--config\.(?!data\.source=)[\w.]+=[^\s,;]+", _plain(error)):
        return flag[0]
    if "is not finished" in str(error):
        return _prepare([*(flag for flag in given if not flag.startswith("--config.data.source=")), "--config.data.source=TEXT"], source)
    return _opening(source, source, error, TEXT)


def _prepare(given: Sequence[str], output: str = "") -> str:
    """The command that makes records of what the config names, and the flag that trains on them."""
    config = next((flag.partition("=")[2] for flag in given if flag.startswith("--config=")), "NAME")
    folder = output or f"prepared/{epath.Path(config.partition(':')[0]).stem}"
    command = ["python", "-m", "cdcd_jax.prepare", *given, f"--output={folder}"]
    return shlex.join(command) + ("" if output else f"; then train with {shlex.quote(f'--config.data.source={folder}')}")
