"""Reads and checks the files of a workdir, through epath only, so that a workdir may be in a bucket."""

import json
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath

from cdcd_jax import config as config_lib
from cdcd_jax.config import UserError
from cdcd_jax.data import files

# What a record must hold: "int", "number" (null reads as not a number), "numbers" and "list" (neither empty), "text".
METRICS = {"step": "int", "loss": "number", "tokens_per_second": "number", "seconds": "number"}
BOUND = dict.fromkeys(("bits_per_char", "bits_per_char_stderr", "nats_per_token", "stderr", "linearity"), "number")
CURVES = (("sigma", "cross_entropy", "local_cross_entropy", "u"), ("warp_sigma", "warp_entropy", "warp_density"))
QUANTILES = ("embedding_norm_quantiles", "nearest_distance_quantiles")
TELEMETRY = (
    {"step": "int", **BOUND}
    | dict.fromkeys(("half_information_sigma", "context_gain", "unigram_entropy", "chars_per_token"), "number")
    | dict.fromkeys((*CURVES[0], *CURVES[1], *QUANTILES), "numbers")
)
NLL = {"step": "int", **BOUND, "split": "text"}
QUALITY = {"step": "int", "num_samples": "int"} | dict.fromkeys(("valid_word_rate", "valid_word_rate_heldout", "valid_word_rate_unigram"), "number")
TRAJECTORY = {"text": "text", "pieces": "list", "frames": "list", "fixed": "list", "template": "text"}
KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "number": ("a number", lambda value: value is None or isinstance(value, int | float) and not isinstance(value, bool)),
    "numbers": ("a list of numbers", lambda value: isinstance(value, list) and value and all(KINDS["number"][1](item) for item in value)),
    "list": ("a list that is not empty", lambda value: isinstance(value, list) and value),
    "text": ("a text", lambda value: isinstance(value, str)),
}


class Recorded(NamedTuple):
    """All that the files of a workdir say; None or empty where a file is absent."""

    workdir: epath.Path
    config: config_lib.Config | None
    metrics: list[dict[str, Any]]
    telemetry: list[dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    trajectory: dict[str, Any] | None
    nll: dict[str, Any] | None
    quality: dict[str, Any] | None


def _text(path: epath.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): restore it or remove it, then ask for the report again.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): it should be a readable file.") from error


def _parse(text: str, where: str, keys: dict[str, str]) -> dict[str, Any]:
    """One JSON object that holds `keys`, each of its kind; a number that is null becomes NaN."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg}, column {error.colno}): mend or remove it, then ask for the report again.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} holds {str(record)[:40]!r}, where a JSON object with keys and values belongs.")
    for key, kind in keys.items():
        if key not in record:
            raise UserError(f"{where} has no {key!r}, which must be {KINDS[kind][0]}.")
        if not KINDS[kind][1](record[key]):
            raise UserError(f"{where} has {record[key]!r:.40} as {key!r}, which must be {KINDS[kind][0]}.")
        if record[key] is None:
            record[key] = math.nan
    return record


def read_lines(path: epath.Path, keys: dict[str, str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, [] when there is no such file. Raises UserError, naming the line, for anything damaged.

    What follows the last line's end is left out: a line that is being written, or that a kill cut off.
    """
    lines = _text(path).split("\n")[:-1] if path.exists() else []
    return [_parse(line, f"{path} line {number}", keys) for number, line in enumerate(lines, 1) if line.strip()]


def read_object(path: epath.Path, keys: dict[str, str]) -> dict[str, Any] | None:
    """The object of a JSON file, None when there is no such file. Raises UserError for anything damaged."""
    return _parse(_text(path), str(path), keys) if path.exists() else None


def _check_telemetry(path: epath.Path, telemetry: list[dict[str, Any]]) -> None:
    for record in telemetry:
        equal = all(len({len(record[name]) for name in names}) == 1 for names in CURVES)
        if not equal or any(len(record[name]) != 5 for name in QUANTILES):
            raise UserError(f"{path} at step {record['step']} has lists of wrong lengths: curves must be equally long, and quantiles five.")


def _check_trajectory(path: epath.Path, trajectory: dict[str, Any]) -> None:
    length = len(trajectory["pieces"])
    for number, frame in enumerate(trajectory["frames"]):
        try:
            rows = list(zip(frame["tokens"], frame["probabilities"], frame["entropy"], trajectory["fixed"], strict=True))
            numbers = [frame["sigma"], frame["u"], *frame["entropy"], *(share for _, shares, _, _ in rows for share in shares)]
            sound = len(rows) == length and all(tokens and len(tokens) == len(shares) for tokens, shares, _, _ in rows)
            sound = sound and all(math.isfinite(number) for number in numbers)
            sound = sound and all(isinstance(token, str) for tokens in frame["tokens"] for token in tokens)
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise UserError(f"{path} frame {number} does not hold sigma, u, and tokens, probabilities and entropy for all of its {length} positions.")


def _config(path: epath.Path) -> config_lib.Config | None:
    values = read_object(path, {})
    try:
        return None if values is None else config_lib.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load(workdir: epath.PathLike) -> Recorded:
    """Reads and checks a workdir. Raises UserError when it is missing, has no metrics yet, or holds a damaged file."""
    folder = files.locate(workdir)
    if not folder.is_dir():
        raise UserError(f"there is no workdir {str(workdir)!r}: name the folder of a run, as --workdir=runs/demo.")
    metrics = read_lines(folder / "metrics.jsonl", METRICS)
    if not metrics:
        raise UserError(f"{folder} has no metrics yet: train first, as with {commands(folder)['train'].replace('CONFIG.py', 'configs/demo.py')}.")
    config = _config(folder / "config.json")
    telemetry = read_lines(folder / "telemetry.jsonl", TELEMETRY)
    _check_telemetry(folder / "telemetry.jsonl", telemetry)
    first = ("unconditional", "prompt", "template")
    found = sorted(path for path in (folder / "samples").glob("*.jsonl")) if (folder / "samples").is_dir() else []
    found.sort(key=lambda path: first.index(path.stem) if path.stem in first else len(first))
    trajectory = read_object(folder / "samples" / "trajectory.json", TRAJECTORY)
    if trajectory is not None:
        _check_trajectory(folder / "samples" / "trajectory.json", trajectory)
    return Recorded(
        folder,
        config,
        metrics,
        telemetry,
        {path.stem: read_lines(path, {"text": "text"}) for path in found},
        trajectory,
        read_object(folder / "eval" / "nll.json", NLL),
        read_object(folder / "eval" / "samples.json", QUALITY),
    )


def commands(workdir: epath.PathLike) -> dict[str, str]:
    """Part of the page to the command that makes it."""
    place, samples = shlex.quote(str(workdir)), shlex.quote(str(epath.Path(workdir) / "samples"))
    sample = f"python -m cdcd_jax.sample --workdir={place}"
    filled = f"{sample} --num_samples=4 --seed=2 --template='And the [8] said unto [4], [12]' --output={samples}/template.jsonl"
    return {
        "train": f"python -m cdcd_jax.train --config=CONFIG.py --workdir={place}",
        "unconditional": f"{sample} --num_samples=16 --output={samples}/unconditional.jsonl",
        "prompt": f"{sample} --num_samples=4 --seed=1 --prompt='In the beginning' --output={samples}/prompt.jsonl",
        "template": filled,
        "trajectory": f"{filled} --trajectory={samples}/trajectory.json",
        "evaluate": f"python -m cdcd_jax.evaluate --workdir={place}",
        "report": f"python -m cdcd_jax.report --workdir={place}",
    }


def training_seconds(metrics: Sequence[dict[str, Any]]) -> float:
    """Wall time of all lives of the run: `seconds` starts again at every resume."""
    seconds = [record["seconds"] for record in metrics if math.isfinite(record["seconds"])]
    return float(sum(now for now, after in zip(seconds, [*seconds[1:], -1.0], strict=True) if after < now))
