"""Where the wall time went: sums over lives, and what restarts cost."""

import pytest

from cdcd_jax.parallel.clock import PHASES
from cdcd_jax.training import goodput


def line(number: int, time: float, **seconds: float) -> dict:
    return {"step": number, **goodput.account(goodput.nothing(), dict.fromkeys(PHASES, 0.0) | seconds, time)}


def test_a_line_says_where_the_time_went() -> None:
    found = line(5, 1000.0, start=2.0, compile=3.0, step=15.0)
    assert found["goodput"] == pytest.approx(0.75) and found["time"] == 1000.0
    assert sum(found["wall_seconds"].values()) == pytest.approx(20.0)


def test_what_came_after_the_checkpoint_is_lost() -> None:
    lines = [line(10, 1000.0, start=5.0, step=10.0), line(20, 1010.0, start=5.0, step=20.0), line(25, 1015.0, start=5.0, step=25.0)]
    before = goodput.carried(lines, 20, 1100.0)
    assert before == goodput.nothing() | {"start": 5.0, "step": 20.0, "lost": 90.0}
    after = goodput.account(before, dict.fromkeys(PHASES, 0.0) | {"start": 4.0, "step": 6.0}, 1110.0)
    assert sum(after["wall_seconds"].values()) == pytest.approx(1110.0 - (1010.0 - 25.0))  # all of the time since the first start
    assert after["goodput"] == pytest.approx(26.0 / 125.0)


def test_losses_add_up_over_lives() -> None:
    first = goodput.carried([line(10, 1000.0, step=10.0)], 10, 1030.0)
    second = {"step": 20, **goodput.account(first, dict.fromkeys(PHASES, 0.0) | {"step": 5.0}, 1035.0)}
    assert goodput.carried([second], 20, 1036.0)["lost"] == pytest.approx(31.0)


def test_a_run_that_had_saved_nothing_has_lost_all_of_it() -> None:
    assert goodput.carried([line(3, 1000.0, start=5.0, step=3.0)], 0, 1020.0) == goodput.nothing() | {"lost": 28.0}


def test_nothing_is_carried_from_nowhere() -> None:
    assert goodput.carried([], 0, 5.0) == goodput.nothing()
    assert goodput.carried([{"step": 3, "loss": 1.0}], 3, 5.0) == goodput.nothing()  # a run of an earlier version
