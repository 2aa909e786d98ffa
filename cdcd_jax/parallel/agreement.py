"""What several processes must decide alike, also while a collective is under way: words passed through the coordination service, not the devices."""

import collections

import jax
from jax._src import distributed  # the service's client has no public name yet

# Longer than anything that is waited for: a process that waits in vain for one that hangs is ended by the deadlines of config.hosts.
PATIENCE = 24 * 3600 * 1000  # milliseconds
_calls: collections.Counter[str] = collections.Counter()


def agree(about: str, word: str = "") -> str:
    """One word for all processes: of those that were given, the first that is not empty, in the processes' order.

    All processes call it equally often `about` the same thing, from any thread, but from one at a time. With one process it is that one's word.
    Raises RuntimeError where the coordination service is gone.
    """
    if jax.process_count() == 1:
        return word
    client, me, number = distributed.global_state.client, jax.process_index(), _calls[about]
    _calls[about] += 1
    assert client is not None, "several processes, and no coordination service"
    key = f"cdcd_jax/{about}/{number}"
    # "=" in front, because an empty value is none.
    if me:
        client.key_value_set(f"{key}/{me}", f"={word}")
        return client.blocking_key_value_get(f"{key}/all", PATIENCE)[1:]
    words = [word, *(client.blocking_key_value_get(f"{key}/{other}", PATIENCE)[1:] for other in range(1, jax.process_count()))]
    chosen = next(filter(None, words), "")
    client.key_value_set(f"{key}/all", f"={chosen}")
    if number:  # all have read the one before
        client.key_value_delete(f"cdcd_jax/{about}/{number - 1}/")
    return chosen
