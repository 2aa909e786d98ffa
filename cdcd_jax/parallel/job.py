"""Which of how many processes this one is: a launcher says so in variables, or the platform does."""

import dataclasses
import os

from jax._src import clusters  # what JAX knows of platforms has no public name

from cdcd_jax.config import HostsConfig, TryAgain, UserError

LISTEN = "CDCD_MULTIHOST"  # 1: let JAX find out from the platform (TPU pods, GKE, SLURM, MPI) who the processes are
EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # or these say so: host:port, N, 0 .. N - 1


@dataclasses.dataclass(frozen=True)
class Job:
    """Which of how many processes this one is, and where the first coordinates them."""

    address: str  # host:port
    count: int
    index: int
    detected: bool = False  # whether JAX has found all this out from the platform
    local_device_ids: list[int] | None = None  # where the platform gives each process devices of its own


def find(config: HostsConfig) -> Job | None:
    """Who this process is, if a launcher says that there are several; None where it is alone.

    Raises UserError for settings that make no sense, and TryAgain when the platform does not say it within hosts.meet_seconds.
    """
    given = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
    if os.environ.get(LISTEN, "") not in ("", "0", "1"):
        raise UserError(f"{LISTEN}={os.environ[LISTEN]} must be 1, where the platform says who the processes are, or unset.")
    if os.environ.get(LISTEN) != "1" and not given:
        return None
    if given and len(given) < len(EXPLICIT):
        missing = " and ".join(name for name in EXPLICIT if name not in given)
        raise UserError(f"{' and '.join(given)} is set, but not {missing}: set all three, or none of them.")
    job = _explicit(given) if given else _detected(int(config.meet_seconds))
    return job if job.count > 1 else None


def _explicit(given: dict[str, str]) -> Job:
    address, number, index = (given[name] for name in EXPLICIT)
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"{EXPLICIT[0]}={address} must be host:port.")
    if not number.isdigit() or int(number) < 1 or not index.isdigit() or int(index) >= int(number):
        raise UserError(f"{EXPLICIT[2]}={index} must be a number from 0 to {EXPLICIT[1]} - 1, and {EXPLICIT[1]}={number} at least 1.")
    return Job(address, int(number), int(index))


def _detected(seconds: int) -> Job:
    """What the platform says, as JAX reads it; it may have to wait for the coordinator's name to be known."""
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, seconds)
    except (RuntimeError, OSError) as error:
        raise TryAgain(f"{LISTEN}=1, but the platform does not say who the processes are ({error}; hosts.meet_seconds = {seconds})") from error
    except (ValueError, KeyError) as error:
        raise UserError(f"{LISTEN}=1, but JAX cannot read what the platform says ({error!r}): set {', '.join(EXPLICIT)} instead.") from error
    address, count, index, devices = found
    if address is None or count is None or index is None:
        raise UserError(f"{LISTEN}=1, but JAX finds no job here that it knows: set {', '.join(EXPLICIT)} instead.")
    set_by_user = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    return Job(address, count, index, detected=True, local_device_ids=None if set_by_user or devices is None else list(devices))
