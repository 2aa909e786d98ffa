"""The page of a run: what the workdir's files say, in words and pictures, rendered by templates/page.html."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from etils import epath
from markupsafe import Markup

from cdcd_jax.config import UserError
from cdcd_jax.data import files
from cdcd_jax.evaluation import templates
from cdcd_jax.reporting import pictures
from cdcd_jax.reporting.records import BOUND, QUALITY, Recorded, commands, load, training_seconds

MOST_FRAMES, MOST_SAMPLES = 61, 12


class Fact(NamedTuple):
    """One line of the closing table: `value` is None when `command` has yet to make it."""

    name: str
    value: str | None
    note: str
    command: str


def _number(record: dict[str, Any] | None, key: str) -> int | float | None:
    """A field of a record, None when the record is absent or the number not finite: JSON knows no NaN."""
    return record[key] if record is not None and math.isfinite(record[key]) else None


def summary(run: Recorded) -> dict[str, Any]:
    """The content of report.json: what was reached, as numbers; null where a part is absent."""
    probe = run.telemetry[-1] if run.telemetry else None
    last = run.metrics[-1]
    speeds = [record["tokens_per_second"] for record in run.metrics if math.isfinite(record["tokens_per_second"])]
    names = {"nll": run.nll, "estimate": probe}
    reached = {where: {key: _number(record, key) for key in ("step", *BOUND)} for where, record in names.items()}
    return {
        "workdir": str(run.workdir),
        "step": last["step"],
        "num_steps": run.config.train.num_steps if run.config else None,
        "training_seconds": training_seconds(run.metrics),
        "tokens_per_second": float(np.median(speeds)) if speeds else None,
        "goodput": last["goodput"] if "goodput" in last else None,
        "wall_seconds": last["wall_seconds"] if "goodput" in last else None,
        **reached,
        "half_information_sigma": _number(probe, "half_information_sigma"),
        "context_gain": _number(probe, "context_gain"),
        **{key: _number(run.quality, key) for key in QUALITY if key.startswith("valid")},
    }


# What a phase of parallel/clock.py is called on the page; and, from training/goodput.py, what was done in vain or passed between two lives.
WENT = {
    "start": "starting", "compile": "compiling", "data": "waiting for data", "step": "steps", "checkpoint": "waiting for checkpoints",
    "evaluation": "evaluating", "lost": "stopped, or lost to restarts",
}  # fmt: skip


def text_of(nll: dict[str, Any] | None) -> str:
    """Which text a bound is of."""
    return "held-out text" if nll is None or nll["split"] == "valid" else f"text of the split {nll['split']}"


def facts(run: Recorded) -> list[Fact]:
    """What was reached, in words for the closing table and the head of the page."""
    reached, make = summary(run), commands(run.workdir)
    nll, probe = reached["nll"], reached["estimate"]

    def show(values: Sequence[int | float | None], form: str) -> str | None:
        return None if any(value is None for value in values) else form.format(*values)

    straight, source = (nll, "evaluation") if nll["linearity"] is not None else (probe, "last probe")
    minutes, seconds = divmod(round(reached["training_seconds"]), 60)
    words = [reached[f"valid_word_rate{end}"] for end in ("", "_heldout", "_unigram")]
    steps = f"{reached['step']:,}" + (f" of {reached['num_steps']:,}" if run.config else "")
    wall = reached["wall_seconds"] or {}
    parts = ", ".join(f"{WENT[phase]} {spent:,.0f} s" for phase, spent in sorted(wall.items(), key=lambda item: -item[1]) if spent >= 0.5)
    return [
        Fact("bits per character", show([nll["bits_per_char"], nll["bits_per_char_stderr"]], "{:.3f} ± {:.3f}"),
             f"bound on {text_of(run.nll)}, ± standard error" + (f", step {run.nll['step']:,}" if run.nll else ""), make["evaluate"]),
        Fact("nats per token", show([nll["nats_per_token"], nll["stderr"]], "{:.3f} ± {:.3f}"), "the same bound", make["evaluate"]),
        Fact("estimate while training", show([probe["bits_per_char"], probe["bits_per_char_stderr"]], "{:.3f} ± {:.3f}"),
             show([probe["step"]], "bits per character, probe at step {:,}") or "bits per character, last probe", make["train"]),
        Fact("σ of half information", show([reached["half_information_sigma"]], "{:.2f}"), "noise level at which half is resolved", make["train"]),
        Fact("context gain", show([reached["context_gain"]], "{:.2f} nats"), "most that context saves at any noise level", make["train"]),
        Fact("valid words", show(words[:1], "{:.1%}"), show(words[1:], "held-out {:.1%}, unigram draws {:.1%}") or "in samples", make["evaluate"]),
        Fact("entropy linearity", show([straight["linearity"]], "{:.1%}"), f"deviation over u, of the range ({source})", make["evaluate"]),
        Fact("training steps", steps, "", make["train"]),
        Fact("training time", f"{minutes} min {seconds} s", "of all lives, less what was lost", make["train"]),
        *([Fact("goodput", f"{reached['goodput']:.1%}", f"the steps' share of all time: {parts}", make["train"])] if wall else []),
        Fact("speed", show([reached["tokens_per_second"]], "{:,.0f} tokens/s"), "median over training", make["train"]),
    ]  # fmt: skip


def headline(run: Recorded) -> tuple[str | None, str | None, str]:
    """Bits per character with its error, sigma of half information, and where the first comes from; None for what is absent."""
    evaluated, _, estimate, half, *_ = facts(run)
    if evaluated.value is not None:
        return evaluated.value, half.value, f"on {text_of(run.nll)}"
    return estimate.value, half.value, "on held-out text, estimated while training"


def absent_parts(run: Recorded) -> list[tuple[str, str]]:
    """The samples that the workdir lacks, each with the command that would make them."""
    made = {name for name, found in run.samples.items() if found} | ({"trajectory"} if run.trajectory else set())
    return [(name, commands(run.workdir)[name]) for name in ("unconditional", "prompt", "template", "trajectory") if name not in made]


def given_runs(sample: dict[str, Any]) -> list[tuple[str, bool]]:
    """A sample's text in runs of given (True) and sampled (False) text; unmarked when the given parts are not found in it."""
    text = sample["text"]
    if "template" in sample:
        literals, blanks = [""], [0]  # as many of both: each literal follows its blank
        for part in templates.parse(str(sample["template"])):
            if isinstance(part, int):
                literals.append("")
                blanks.append(part)
            else:
                literals[-1] += part
    elif "prompt" in sample:
        literals, blanks = [str(sample["prompt"])], [0]
    else:
        return [(text, False)]
    runs, place = [], 0
    for number, (literal, blank) in enumerate(zip(literals, blanks, strict=True)):
        if not literal.strip():
            continue
        last = number == len(literals) - 1 and "template" in sample
        pattern = re.compile(r"\s+".join(map(re.escape, literal.split())) + (r"\s*\Z" if last else ""))
        found = pattern.search(text, min(place + blank, len(text)))  # a blank of n tokens is at least n characters long
        if found is None or number == 0 and text[: found.start()].strip():
            return [(text, False)]
        runs += [(text[place : found.start()], False), (found[0], True)]
        place = found.end()
    return [(words, given) for words, given in [*runs, (text[place:], False)] if words]


def details(sample: dict[str, Any]) -> str:
    """How a sample was made, in a few words."""
    words = {"seed": "seed {}", "nfe": "{} network calls"}
    return ", ".join(form.format(sample[key]) for key, form in words.items() if key in sample)


def show_piece(piece: str) -> tuple[bool, str]:
    """Whether a token begins a word, and how it is written: SentencePiece's mark and a leading space become the first, line ends a sign."""
    begins = piece[:1] in ("▁", " ")
    return begins, piece[begins:].replace("▁", " ").replace("\n", "⏎")


def trajectory_view(trajectory: dict[str, Any]) -> dict[str, Any]:
    """The data block for the slider: at most MOST_FRAMES frames, evenly chosen, candidates as places in a list of the pieces in use."""
    frames = trajectory["frames"]
    chosen = [frames[i] for i in sorted(set(np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int)))]
    open_positions = [i for i, fixed in enumerate(trajectory["fixed"]) if not fixed] or [0]
    places: dict[str, int] = {}
    view = []
    # A given position holds its token, whatever the model would have predicted there.
    pieces, fixed = trajectory["pieces"], trajectory["fixed"]
    for frame in chosen:
        rows = zip(pieces, fixed, frame["tokens"], frame["probabilities"], frame["entropy"], strict=True)
        held = [([piece], [1.0], 0.0) if given else (tokens, shares, entropy) for piece, given, tokens, shares, entropy in rows]
        view.append({
            "sigma": frame["sigma"], "u": frame["u"], "mean": float(np.mean([frame["entropy"][i] for i in open_positions])),
            "entropy": [round(entropy, 3) for _, _, entropy in held],
            "tokens": [[places.setdefault(token, len(places)) for token in tokens] for tokens, _, _ in held],
            "percent": [[round(100 * share, 1) for share in shares] for _, shares, _ in held],
        })  # fmt: skip
    start = min(range(len(view)), key=lambda i: abs(view[i]["u"] - 0.5))
    most = max(max(frame["entropy"]) for frame in view) or 1.0
    return {"pieces": [show_piece(piece) for piece in places], "fixed": fixed, "frames": view, "start": start, "most": most}


def figures(run: Recorded) -> dict[str, Markup]:
    """Name to picture, for the parts that the workdir has."""
    probe = run.telemetry[-1] if run.telemetry else None
    drawn = {"loss": pictures.loss(run.metrics, _number(probe, "unigram_entropy"))}
    if probe is not None:
        drawn |= {
            "bound": pictures.bound(run.telemetry, run.nll),
            "half": pictures.over_steps("half", "σ of half information", run.telemetry, "half_information_sigma"),
            "gain": pictures.over_steps("gain", "context gain, nats per token", run.telemetry, "context_gain"),
            "warp_fit": pictures.warp_fit(probe),
            "warp_straight": pictures.warp_straight(probe),
            "warp_density": pictures.warp_density(probe),
            "gain_curves": pictures.gain_curves(run.telemetry),
            "norms": pictures.quantiles("norms", "norms of the raw embeddings", run.telemetry, "embedding_norm_quantiles"),
            "distances": pictures.quantiles("distances", "distance to the nearest neighbour", run.telemetry, "nearest_distance_quantiles", 1.0),
        }
    return {name: Markup(svg) for name, svg in drawn.items()}  # our own drawings of numbers, no text of a user's


def render(run: Recorded) -> str:
    """The whole of report.html."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cdcd_jax.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = figures(run)
    view, span = None, (0.0, 0.0)
    if run.trajectory is not None:
        view = trajectory_view(run.trajectory)
        svg, span = pictures.trajectory_entropy([frame["u"] for frame in view["frames"]], [frame["mean"] for frame in view["frames"]])
        drawn["entropy"] = Markup(svg)
    bits, half, source = headline(run)
    samples = {
        name: [{"runs": given_runs(sample), "details": details(sample)} for sample in found[:MOST_SAMPLES]] for name, found in run.samples.items()
    }
    return environment.get_template("page.html").render(
        run=run,
        bits=bits,
        half=half,
        source=source,
        facts=facts(run),
        figures=drawn,
        view=view,
        span=span,
        samples=samples,
        absent=[name for name, _ in absent_parts(run)],
        commands=commands(run.workdir),
        config=dataclasses.asdict(run.config) if run.config else None,
        probe=run.telemetry[-1] if run.telemetry else None,
    )


def write(workdir: epath.PathLike, picture: str | None = None) -> Recorded:
    """Reads a workdir, writes report.html and report.json into it and, where asked, the README's picture to `picture` (.svg or .png)."""
    kind = epath.Path(picture).suffix[1:] if picture else ""
    if picture and kind not in ("svg", "png"):
        raise UserError(f"--picture={picture} must end in .svg or .png.")
    run = load(workdir)
    if picture and run.trajectory is None:
        raise UserError(f"{run.workdir} has no samples/trajectory.json for the picture: make it with {commands(run.workdir)['trajectory']}.")
    files.write_whole(run.workdir / "report.html", render(run))
    files.write_whole(run.workdir / "report.json", json.dumps(summary(run), indent=2) + "\n")
    if picture and run.trajectory is not None:
        files.write_whole(files.locate(picture), pictures.readme_picture(run.trajectory, run.telemetry[-1] if run.telemetry else None, kind))
    return run
