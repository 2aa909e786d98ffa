"""Where the wall time of a run went, over all of its lives (docs/DESIGN.md, 13).

Every line of metrics.jsonl has `time` (Unix), `wall_seconds` (by phase, from the first start of the run on) and `goodput`, the share of the steps. A
life that goes on from a checkpoint takes the sums from the checkpoint's line; whatever was after it, until this life began, counts as lost: what was
done in vain, and all the time between a kill, or a stop, and the next start.
"""

from collections.abc import Iterable
from typing import Any

from cdcd_jax.parallel.clock import PHASES

LOST = "lost"


def nothing() -> dict[str, float]:
    """The sums of a run that has just begun."""
    return dict.fromkeys((*PHASES, LOST), 0.0)


def carried(lines: Iterable[dict[str, Any]], start: int, began: float) -> dict[str, float]:
    """What the lives before spent until the step `start` that is gone on from; `began` is the Unix time at which this life began."""
    first, kept = None, None
    for line in lines:
        if "wall_seconds" in line:
            first = first or line
            kept = line if line["step"] <= start else kept
    if kept is not None:
        return kept["wall_seconds"] | {LOST: kept["wall_seconds"][LOST] + max(0.0, began - kept["time"])}
    if first is not None:  # nothing was saved: all of it is lost
        return nothing() | {LOST: max(0.0, began - first["time"] + sum(first["wall_seconds"].values()))}
    return nothing()


def account(before: dict[str, float], seconds: dict[str, float], now: float) -> dict[str, Any]:
    """The fields of a line: what the lives before spent, and this one until now."""
    wall = before | {phase: before[phase] + seconds[phase] for phase in PHASES}
    return {"time": now, "wall_seconds": wall, "goodput": wall["step"] / max(sum(wall.values()), 1e-9)}
