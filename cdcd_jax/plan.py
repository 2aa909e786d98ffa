"""python -m cdcd_jax.plan --config=configs/paper_large.py --topology=v5p:8x8x8: what a run takes on hardware that is not here; 1: it does not fit."""

import json

import jax
from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdcd_jax import doors
from cdcd_jax.config import from_dict
from cdcd_jax.data import files
from cdcd_jax.evaluation import planning as sampling
from cdcd_jax.parallel import topology
from cdcd_jax.training import planning

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a file of configs/; any key: --config.section.key=value.")
TOPOLOGY = flags.DEFINE_string("topology", None, f"The hardware: {topology.KNOWN}.")
JOB = flags.DEFINE_enum("job", "train", ["train", "sample"], "Whose program: the train step's, or the sampler's on one chip.")
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Tokens in the vocabulary (default: as the config says).", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "A .json file for the same.")
flags.mark_flags_as_required(["config", "topology"])


def show(plan: planning.Plan, console: Console) -> None:
    """Prints the plan as tables."""
    m, r = plan.memory, plan.roofline
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    facts = [
        ("hardware", f"{plan.topology.name}", f"{plan.topology.count} {plan.topology.chip.name}, mesh {mesh}"),
        ("memory of a chip", _bytes(m.hbm), ""),
        ("parameters", _bytes(m.parameters), ""),
        ("averages", _bytes(m.ema), ""),
        ("optimiser", _bytes(m.optimizer), ""),
        ("activations", _bytes(m.activations), "gradients and everything else that a step holds"),
        ("peak", _bytes(m.peak), f"{m.peak / m.hbm:.0%} of the chip: {'fits' if plan.fits else 'DOES NOT FIT'}"),
        ("operations", f"{plan.flops.total:.3g}", f"of a step on all chips, {plan.flops.recomputed / plan.flops.total:.0%} computed again"),
        ("step time", f"{r.seconds * 1e3:.3g} ms", f"at least; bound by {plan.roofline.bound_by}"),
        ("", "", f"compute {r.compute * 1e3:.3g}, memory {r.hbm * 1e3:.3g}, links {r.links * 1e3:.3g}, network {r.network * 1e3:.3g} ms"),
        ("speed", f"{plan.tokens / r.seconds:,.0f} tokens/s", f"at most; MFU at most {plan.mfu:.0%}"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value, note in facts:
        table.add_row(Text(name), Text(value, "bold"), Text(note, "dim"))
    console.print(table)
    sent = Table(box=None, pad_edge=False)
    for name in ("collective", "axis", "bytes a step", "sent by a chip", "times"):
        sent.add_column(name, justify="left" if name in ("collective", "axis") else "right")
    for c in plan.collectives:
        sent.add_row(c.kind, c.axis + (" (network)" if c.network else ""), _bytes(c.bytes), _bytes(c.sent_bytes), f"{c.count:,.0f}")
    console.print(sent if plan.collectives else Text("no collectives"))
    for note in plan.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    if not plan.fits:
        way = f"to make it fit: {' '.join(plan.advice)}" if plan.advice else "nothing was found that makes it fit: take more chips, or larger ones"
        console.print(Text(way), soft_wrap=True)


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def main() -> int:
    jax.config.update("jax_platforms", "cpu")  # whatever this machine has is not what is planned for
    config, hardware = from_dict(CONFIG.value), topology.parse(TOPOLOGY.value or "")
    vocab_size = VOCAB_SIZE.value or planning.vocabulary(config)
    plan = (planning.plan if JOB.value == "train" else sampling.plan)(config, hardware, vocab_size)
    show(plan, Console())
    if OUTPUT.value:
        files.write_whole(files.locate(OUTPUT.value), json.dumps(plan.as_dict(), indent=2) + "\n")
    return 0 if plan.fits else 1


if __name__ == "__main__":
    doors.run(main)
