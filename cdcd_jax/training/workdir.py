"""A run's folder: config.json and tokenizer/ written once, and the checks that keep two runs from sharing it."""

import dataclasses
import json
from typing import Any

from etils import epath

from cdcd_jax.config import Config, UserError, from_dict, to_json
from cdcd_jax.data import files, tokenizers
from cdcd_jax.training.checkpoint import read_json

# What a start that was killed may have left behind; no run's work is in it.
BEGINNINGS = ("lock", "tokenizer", "config.json.writable", files.partial_name("config.json"))
# What may differ when a run goes on: none of these changes what a step computes (beyond rounding), but for how long the schedule is.
MAY_CHANGE = (
    "train.num_steps", "train.accumulation_steps", "model.remat", "model.scan_unroll", "checkpoint.", "log.", "mesh.", "hosts.", "sample.",
)  # fmt: skip


def read_config(workdir: epath.Path) -> Config:
    """The resolved config of the run in this workdir; UserError if there is none."""
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} is not a run's workdir: it has no config.json.")
    return from_dict(read_json(workdir / "config.json"))


def prepare(workdir: epath.Path, config: Config) -> bool:
    """Makes the workdir, or checks that it holds a run of this very config. True if a run is there. Overwrites nothing of another run's."""
    with files.writing(f"the workdir {workdir}"):
        if (workdir / "config.json").exists():
            _compare(workdir, config)
            return True
        # What stands for a folder in a bucket may be an object of the folder's own name.
        found = [path for path in workdir.iterdir() if path != workdir] if workdir.exists() else []
        if not all(path.name.startswith(BEGINNINGS) for path in found):
            raise UserError(f"{workdir} is not empty and holds no run (no config.json); name a new folder as --workdir.")
        if not files.in_bucket(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / "config.json.writable"
        probe.write_text("")
        probe.unlink()
    return False


def write(workdir: epath.Path, config: Config, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes the tokenizer, then config.json, whose presence makes the folder a run's workdir."""
    tokenizer.save(workdir / "tokenizer")
    files.write_whole(workdir / "config.json", to_json(config))


def lines(path: epath.Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file, each with its step; a last line that a kill left half-written is left out. [] when there is no file.

    Raises UserError, naming the line, for anything else that is damaged.
    """
    if not path.exists():
        return []
    found = []
    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): restore or remove it.") from error
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            values = json.loads(line)
            values["step"] + 0  # a number
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"line {number} of {path} is damaged ({error or 'it has no step'}): mend or remove it.") from error
        found.append(values)
    return found


def last_step(path: epath.Path) -> int:
    """The step of the last whole line of a .jsonl file; 0 when there is none."""
    found = lines(path)
    return found[-1]["step"] if found else 0


SAVED = "saved_step"  # the file that says which checkpoint was complete


def mark_saved(workdir: epath.Path, step: int) -> None:
    """Writes down that a checkpoint is complete."""
    files.write_whole(workdir / SAVED, f"{step}\n")


def check_saved(workdir: epath.Path, newest: int | None) -> None:
    """Raises UserError when checkpoints were complete and there is none any more: the run must not begin again from nothing."""
    if newest is None and (workdir / SAVED).exists():
        raise UserError(
            f"{workdir} has saved step {(workdir / SAVED).read_text().strip()} but holds no checkpoint: put its checkpoints/ back, "
            "or name another --workdir; nothing was changed."
        )


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value})
    return found


def _compare(workdir: epath.Path, config: Config) -> None:
    there, here = flat(dataclasses.asdict(read_config(workdir))), flat(dataclasses.asdict(config))
    for key, value in here.items():
        if there[key] != value and not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{workdir} holds a run with {key} = {there[key]!r}, and this config has {value!r}; "
                f"name another --workdir, or give --config.{key}={there[key]}."
            )
