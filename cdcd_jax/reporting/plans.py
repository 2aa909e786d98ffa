"""A plan as tables on a terminal: what `python -m cdcd_jax.plan` prints."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdcd_jax.training.planning import Plan


def show(plan: Plan, console: Console) -> None:
    """Prints the plan as tables."""
    m, r, training, chip = plan.memory, plan.roofline, plan.job == "train", plan.topology.chip.name
    mesh = "mesh " + " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    step, chips = ("step", "all chips") if training else ("batch of samples", "one chip")
    again = f", {plan.flops.recomputed / plan.flops.total:.0%} computed again" if training else ""
    facts = [
        ("hardware", plan.topology.name, f"{plan.topology.count} {chip}, {mesh if training else 'of which each samples for itself'}"),
        ("memory of a chip", _bytes(m.hbm), "that a program can use" if plan.topology.sides else "that JAX takes by default"),
        ("parameters", _bytes(m.parameters), ""),
        ("averages", _bytes(m.ema), "" if training else "of the parameters, with which one samples"),
        ("optimiser", _bytes(m.optimizer), ""),
        ("activations", _bytes(m.activations), f"{'gradients and ' if training else ''}everything else that a {step} holds"),
        ("peak", _bytes(m.peak), f"{m.peak / m.hbm:.0%} of the chip's: {'fits' if plan.fits else 'DOES NOT FIT'}"),
        ("operations", f"{plan.flops.total:.3g}", f"of a {step} on {chips}{again}"),
        ("time", f"{r.seconds * 1e3:.3g} ms", f"of a {step}, at least; bound by {r.slowest}"),
        ("", "", f"compute {r.compute * 1e3:.3g}, hbm {r.hbm * 1e3:.3g}, links {r.links * 1e3:.3g}, network {r.network * 1e3:.3g} ms"),
        ("speed", f"{plan.tokens / r.seconds:,.0f} tokens/s", f"of {chips}, at most; MFU at most {plan.mfu:.0%}"),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value, note in facts:
        if training or value != "0 B":
            table.add_row(Text(name), Text(value, "bold"), Text(note, "dim"))
    console.print(table, *([_sent(plan)] if training else []))
    for note in plan.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    if not plan.fits:
        nothing = f"nothing was found that makes it fit: take {'more chips, or larger ones' if training else 'a smaller model'}"
        console.print(Text(f"to make it fit: {' '.join(plan.advice)}" if plan.advice else nothing), soft_wrap=True)


def _sent(plan: Plan) -> Table | Text:
    sent = Table(box=None, pad_edge=False)
    for name in ("collective", "axis", "bytes a step", "sent by a chip", "times"):
        sent.add_column(name, justify="left" if name in ("collective", "axis") else "right")
    for c in plan.collectives:
        sent.add_row(c.kind, c.axis + (" (network)" if c.network else ""), _bytes(c.bytes), _bytes(c.sent_bytes), f"{c.count:,.0f}")
    return sent if plan.collectives else Text("no collectives")


def _bytes(count: int | float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
