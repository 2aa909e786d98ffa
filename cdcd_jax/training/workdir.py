"""A run's folder: config.json, tokenizer/ and fingerprints.json, and the checks that keep two runs from sharing it."""

import dataclasses
import json
from typing import Any

from etils import epath

from cdcd_jax.config import Config, UserError, from_dict, to_json
from cdcd_jax.data import files, tokenizers
from cdcd_jax.training.checkpoint import read_json

FINGERPRINTS = "fingerprints.json"  # of the text that the run began with
# What a start that was killed may have left behind; no run's work is in it.
BEGINNINGS = ("lock", "tokenizer", FINGERPRINTS, "config.json.writable", *map(files.partial_name, ("config.json", FINGERPRINTS)))
# What may differ when a run goes on: none of these changes what a step computes (beyond rounding), but for how long the schedule is.
MAY_CHANGE = (
    "train.num_steps", "train.accumulation_steps", "model.remat", "model.scan_unroll", "checkpoint.", "log.", "mesh.", "hosts.", "sample.",
)  # fmt: skip
# These as well, where the fingerprints say what the run began with: a text or a prepared folder that was moved is the same.
PLACES = ("data.source", "data.tokenizer_from")


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


def write(workdir: epath.Path, config: Config, tokenizer: tokenizers.Tokenizer, data_fingerprint: str) -> None:
    """Writes tokenizer and fingerprint, then config.json, whose presence makes the folder a run's workdir."""
    tokenizer.save(workdir / "tokenizer")
    write_fingerprint(workdir, data_fingerprint)
    files.write_whole(workdir / "config.json", to_json(config))


def write_fingerprint(workdir: epath.Path, data_fingerprint: str) -> None:
    """Writes down which text the run began with."""
    files.write_whole(workdir / FINGERPRINTS, json.dumps({"data_fingerprint": data_fingerprint}) + "\n")


def read_fingerprint(workdir: epath.Path) -> str:
    """The fingerprint of the text that the run began with; "" for a run of an older version, whose checkpoints alone hold it."""
    path = workdir / FINGERPRINTS
    if not path.exists():
        return ""
    found = read_json(path)
    if not (isinstance(found, dict) and isinstance(found.get("data_fingerprint"), str)):
        raise UserError(f"{path} is damaged: it must hold the data_fingerprint with which the run began; restore it.")
    return found["data_fingerprint"]


def moved(workdir: epath.Path, config: Config) -> bool:
    """Whether the config names another place for the run's text or tokenizer than the workdir's does."""
    there, here = flat(dataclasses.asdict(read_config(workdir))), flat(dataclasses.asdict(config))
    return any(there[key] != here[key] for key in PLACES)


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
    may_change = MAY_CHANGE + (PLACES if (workdir / FINGERPRINTS).exists() else ())
    for key, value in here.items():
        if there[key] != value and not key.startswith(may_change):
            raise UserError(
                f"{workdir} holds a run with {key} = {there[key]!r}, and this config has {value!r}; "
                f"name another --workdir, or give --config.{key}={there[key]}."
            )
    # The run's own tokenizer is what it goes on with, so nobody else would look at the one that is named.
    if config.data.tokenizer_from and there["data.tokenizer_from"] != config.data.tokenizer_from:
        own = tokenizers.without_pad(tokenizers.load(workdir / "tokenizer"))
        if tokenizers.named(config.data).fingerprint != own.fingerprint:
            raise UserError(
                f"data.tokenizer_from = {config.data.tokenizer_from!r} is not the tokenizer that {workdir} began with: leave it out, or name another "
                "--workdir."
            )
