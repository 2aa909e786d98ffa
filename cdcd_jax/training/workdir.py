"""A run's folder: config.json and tokenizer/ written once, and the checks that keep two runs from sharing it."""

import dataclasses
import json
from typing import Any

from etils import epath

from cdcd_jax.config import Config, UserError, from_dict, to_json
from cdcd_jax.data import files, tokenizers
from cdcd_jax.training.checkpoint import read_json

# What a start that was killed may have left behind; no run's work is in it.
BEGINNINGS = ("tokenizer", "config.json.writable", files.partial_name("config.json"))
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


def last_step(path: epath.Path) -> int:
    """The step of the last whole line of a .jsonl file; 0 when there is none."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError as error:
        raise UserError(f"the last line of {path} is damaged ({error}): mend or remove it.") from error


def cut_after(path: epath.Path, step: int) -> None:
    """Drops the lines of a .jsonl file that are later than a step, and a last line that a kill left half-written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break
    files.write_whole(path, "".join(line + "\n" for line in kept))


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{path}{name}.") if isinstance(value, dict) else {path + name: value})
    return flat


def _compare(workdir: epath.Path, config: Config) -> None:
    there, here = _flat(dataclasses.asdict(read_config(workdir))), _flat(dataclasses.asdict(config))
    for key, value in here.items():
        if there[key] != value and not key.startswith(MAY_CHANGE):
            raise UserError(
                f"{workdir} holds a run with {key} = {there[key]!r}, and this config has {value!r}; "
                f"name another --workdir, or give --config.{key}={there[key]}."
            )
