"""What several processes must decide alike. All of them call each of these, equally often and in the same order.

Words pass through the coordination service, so that they can also be agreed upon in a background thread, while a collective of the training is under
way. Only `largest`, which is asked for at every step, is a collective itself.
"""

import collections
import functools
import hashlib
import json
import pathlib
import socket
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the service's client has no public name yet
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cdcd_jax.config import UserError
from cdcd_jax.parallel import hosts

# Longer than anything that is waited for: a process that waits in vain for one that hangs is ended by the deadlines of config.hosts.
PATIENCE = 24 * 3600 * 1000  # milliseconds
_calls: collections.Counter[str] = collections.Counter()


def agree(about: str, word: str = "") -> str:
    """One word for all processes: of those that were given, the first that is not empty, in the processes' order.

    All processes call it equally often `about` the same thing, from any thread, but from one at a time. With one process it is that one's word.
    Raises RuntimeError where the coordination service is gone.
    """
    job = distributed.global_state  # not jax.process_count(), which would start the devices before config and versions are compared
    if job.client is None:
        return word
    client, me, number = job.client, job.process_id, _calls[about]
    _calls[about] += 1
    key = f"cdcd_jax/{about}/{number}"
    # "=" in front, because an empty value is none.
    if me:
        client.key_value_set(f"{key}/{me}", f"={word}")
        return client.blocking_key_value_get(f"{key}/all", PATIENCE)[1:]
    words = [word, *(client.blocking_key_value_get(f"{key}/{other}", PATIENCE)[1:] for other in range(1, job.num_processes))]
    chosen = next(filter(None, words), "")
    client.key_value_set(f"{key}/all", f"={chosen}")
    if number:  # all have read the one before
        client.key_value_delete(f"cdcd_jax/{about}/{number - 1}/")
    return chosen


def barrier(what: str) -> None:
    """Returns when all processes have come here. The watch bounds how long that may take, and says what for."""
    hosts.wait_for(f"the other processes at {what!r}")
    agree(f"barrier/{what}")
    hosts.wait_for("")


def compare(about: str, values: dict[str, Any]) -> None:
    """Raises UserError in all processes where one has other values (config keys, versions) than the first."""
    if not hosts.several():
        return
    mine = {key: str(value) for key, value in (values | {"the code": code_version(), "jax": jax.__version__}).items()}
    first = json.loads(agree(f"values/{about}", json.dumps({"host": socket.gethostname(), "values": mine}) if hosts.first() else ""))
    differ = [key for key in sorted(mine.keys() | first["values"].keys()) if mine.get(key) != first["values"].get(key)]
    said = ""
    if differ:
        here, there = mine.get(differ[0], "absent"), first["values"].get(differ[0], "absent")
        said = f"{hosts.name()} has {differ[0]} = {here}, but process 0 on {first['host']} has {there}: all processes must be started alike."
    if said := agree(f"differences/{about}", said):
        raise UserError(said)


def code_version() -> str:
    """A digest of the package's source."""
    digest = hashlib.sha256()
    root = pathlib.Path(__file__).resolve().parent.parent
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def largest(value: int) -> Any:
    """The largest of the processes' values, for all of them: something that `int` waits for."""
    if not hosts.several():
        return value
    spread, function = _largest()
    return function(jax.make_array_from_process_local_data(spread, np.full(jax.local_device_count(), value, np.int32)))


@functools.cache
def _largest() -> tuple[NamedSharding, Any]:
    barrier("the first collective")  # in which gloo waits half a minute for the others, and no longer
    mesh = Mesh(np.array(jax.devices()), ("all",))
    return NamedSharding(mesh, P("all")), jax.jit(lambda values: values.max(), out_shardings=NamedSharding(mesh, P()))
