"""Timing two things in one run: call by call in turn, medians over the repeats, so that what else the machine does falls on both alike."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Pair(NamedTuple):
    """Seconds of each call of the thing measured and of its reference, in the order of the repeats."""

    measured: list[float]
    reference: list[float]

    @property
    def ratio(self) -> float:
        """The ratio of the medians."""
        return statistics.median(self.measured) / statistics.median(self.reference)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The quartiles of the repeats' own ratios: how far the machine disturbed them."""
        ratios = [a / b for a, b in zip(self.measured, self.reference, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


def seconds(call: Callable[[], Any]) -> float:
    """The wall time of a call, until all that it returns is computed."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def in_turn(measured: Callable[[], Any], reference: Callable[[], Any], repeats: int, warm_up: int) -> Pair:
    """Both, one after the other, `repeats` times, after `warm_up` calls of each that are not counted. Which goes first changes with every repeat."""
    for call in (measured, reference):
        for _ in range(warm_up):
            jax.block_until_ready(call())
    pair = Pair([], [])
    for repeat in range(repeats):
        order = ((measured, pair.measured), (reference, pair.reference))
        for call, times in order if repeat % 2 == 0 else order[::-1]:
            times.append(seconds(call))
    return pair
