"""Who a process is: what a launcher says, or the platform where the launcher says that it does."""

import pytest

from cdcd_jax.config import HostsConfig, UserError
from cdcd_jax.parallel import job
from cdcd_jax.parallel.job import Job

# As JAX reads it: the port follows from the job's number.
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
PORT = 65535 - 2**12 + 1 + 7


def find(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Job | None:
    for key in (*job.EXPLICIT, job.LISTEN, *SLURM):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return job.find(HostsConfig(meet_seconds=1.0))


def explicit(address: str, count: str, index: str) -> dict[str, str]:
    return dict(zip(job.EXPLICIT, (address, count, index), strict=True))


@pytest.mark.parametrize(
    "environment, who",
    [
        ({}, None),
        ({"CDCD_MULTIHOST": "0"}, None),
        (SLURM, None),  # the launcher must say so
        (explicit("h:1", "1", "0"), None),
        (explicit("h:1", "2", "1"), Job("h:1", 2, 1)),
        (explicit("h:1", "2", "1") | SLURM | {"CDCD_MULTIHOST": "1"}, Job("h:1", 2, 1)),
        (SLURM | {"CDCD_MULTIHOST": "1"}, Job(f"localhost:{PORT}", 2, 1, True, [1])),
        (SLURM | {"CDCD_MULTIHOST": "1", "JAX_LOCAL_DEVICE_IDS": "0,1"}, Job(f"localhost:{PORT}", 2, 1, True, None)),
        (SLURM | {"CDCD_MULTIHOST": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_who_this_process_is(environment: dict[str, str], who: Job | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(environment, monkeypatch) == who


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_COORDINATOR_ADDRESS is set, but not JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        (explicit("h", "2", "0"), "JAX_COORDINATOR_ADDRESS=h must be host:port."),
        (explicit("h:70000", "2", "0"), "JAX_COORDINATOR_ADDRESS=h:70000 must be host:port."),
        (explicit("h:1", "2", "2"), "JAX_PROCESS_ID=2 must be a number from 0"),
        (explicit("h:1", "two", "0"), "JAX_NUM_PROCESSES=two at least 1"),
        ({"CDCD_MULTIHOST": "yes"}, "CDCD_MULTIHOST=yes must be 1, where the platform says who the processes are, or unset."),
        ({"CDCD_MULTIHOST": "1"}, "CDCD_MULTIHOST=1, but JAX finds no job here that it knows: set JAX_COORDINATOR_ADDRESS, "),
        (SLURM | {"CDCD_MULTIHOST": "1", "SLURM_NTASKS": "many"}, "CDCD_MULTIHOST=1, but JAX cannot read what the platform says (ValueError("),
    ],
)
def test_settings_of_a_launcher_that_make_no_sense(environment: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as error:
        find(environment, monkeypatch)
    assert said in str(error.value)
