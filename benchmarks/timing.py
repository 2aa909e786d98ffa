"""Timing two things in one run: call by call in turn, medians over the repeats, so that what else the machine does falls on both alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Pair(NamedTuple):
    """Seconds of each call of the thing measured and of its reference, in the order of the repeats: wall time, and processor time of this process."""

    measured: list[float]
    reference: list[float]
    measured_cpu: list[float]
    reference_cpu: list[float]

    @property
    def ratio(self) -> float:
        """The ratio of the medians of wall time."""
        return statistics.median(self.measured) / statistics.median(self.reference)

    @property
    def cpu_ratio(self) -> float:
        """The ratio of the medians of processor time, which others on the machine hardly disturb; of use only where the device is the processor."""
        return statistics.median(self.measured_cpu) / statistics.median(self.reference_cpu)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The quartiles of the repeats' own ratios: how far the machine disturbed them."""
        ratios = [a / b for a, b in zip(self.measured, self.reference, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """(wall time, processor time of all threads) of a call, until all that it returns is computed."""
    began, cpu_began = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - began, time.process_time() - cpu_began


def in_turn(measured: Callable[[], Any], reference: Callable[[], Any], repeats: int, warm_up: int) -> Pair:
    """Both, one after the other, `repeats` times, after `warm_up` calls of each that are not counted. Which goes first changes with every repeat."""
    for call in (measured, reference):
        for _ in range(warm_up):
            jax.block_until_ready(call())
    pair = Pair([], [], [], [])
    for repeat in range(repeats):
        order = ((measured, pair.measured, pair.measured_cpu), (reference, pair.reference, pair.reference_cpu))
        for call, wall_times, cpu_times in order if repeat % 2 == 0 else order[::-1]:
            wall, cpu = seconds(call)
            wall_times.append(wall)
            cpu_times.append(cpu)
    return pair
