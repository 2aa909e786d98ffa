"""Pictures of a run: plain dicts and arrays in, SVG text out. Text stays text, and colours become the page's CSS variables, so that one picture
serves light and dark. `readme_picture` alone is drawn for a page of its own."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

# The light theme; templates/page.css defines the same names, for light and for dark (a test compares them).
PALETTE = {"ink": "#1e1d1a", "muted": "#67635a", "rule": "#dedacf", "paper": "#fcfbf8", "accent": "#17607a", "warm": "#b4532a"}
INK, MUTED, RULE, PAPER, ACCENT, WARM = PALETTE.values()
NAMES = {colour: name for name, colour in PALETTE.items()}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "cdcd_jax", "font.family": "DejaVu Sans", "font.size": 11, "text.color": INK, "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED, "axes.titlesize": 11, "axes.titlecolor": MUTED, "axes.titlelocation": "left", "axes.titlepad": 8, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE,
    "grid.linewidth": 0.8, "xtick.color": MUTED, "ytick.color": MUTED, "ytick.left": False, "xtick.minor.visible": False, "legend.frameon": False,
    "legend.fontsize": 11, "legend.handlelength": 1.4, "lines.linewidth": 1.8, "lines.solid_capstyle": "round", "figure.facecolor": "none",
    "axes.facecolor": "none", "text.parse_math": False, "savefig.facecolor": "none",
}  # fmt: skip
SMALL = (4.8, 3.7)  # inches; the size of type on the page is 11 pt of 72 to the inch, scaled to the column
Records = Sequence[dict[str, Any]]


def column(records: Records, name: str) -> np.ndarray:
    """[N] or [N, K] float: one field of every record, non-finite and null values as NaN."""
    values = np.array([record[name] for record in records], dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def thin(x: np.ndarray, y: np.ndarray, most: int = 300) -> tuple[np.ndarray, np.ndarray, int]:
    """Means over blocks of neighbouring points, so that at most `most` are left; also how many points a block holds."""
    block = -(-len(x) // most)
    groups = np.array_split(np.arange(len(x)), -(-len(x) // block))
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups]), block


def clean_svg(text: str, name: str, label: str) -> str:
    """Matplotlib's SVG as a fragment for a page: no prolog, metadata or address of any kind; ids of its own, theme colours, an accessible name."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*|<style.*?</style>\s*", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub("|".join(PALETTE.values()), lambda match: f"var(--{NAMES[match[0]]})", text)
    text = re.sub(r'(<svg\b[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def draw(name: str, label: str, paint: Callable[[Axes], None], size: tuple[float, float] = (6.0, 3.7)) -> str:
    """One picture of one pair of axes, painted by `paint`. `label` is what a screen reader says: plain words without quotes or mark-up."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=3)
        paint(axes)
        if axes.get_legend_handles_labels()[1]:  # above the title, from the left edge of the axes
            lift = axes.transAxes + ScaledTranslation(0, 26 / 72, figure.dpi_scale_trans)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), bbox_transform=lift, ncols=4, columnspacing=1.4, borderpad=0, borderaxespad=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return clean_svg(buffer.getvalue(), name, label)


def _log_sigma(axes: Axes, values: np.ndarray) -> None:
    axes.set_xlabel("noise level σ")
    if not np.isfinite(values).any():
        return
    axes.set_xscale("log")
    axes.set_xlim(np.nanmin(values), np.nanmax(values))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())


def _steps(axes: Axes, values: np.ndarray) -> None:
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(0, max(float(values[-1]) * 1.02, 1))
    axes.set_xlabel("training step")


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str = ACCENT, **more: Any) -> None:
    axes.plot(x, y, color=colour, marker="o" if len(x) < 3 else "", markersize=5, **more)


def unigram_bits(record: dict[str, Any]) -> float:
    """Bits per character of a model that knows the tokens' frequencies and nothing of their context."""
    return float(record["unigram_entropy"] / np.log(2) / record["chars_per_token"])


def bound(telemetry: Records, nll: dict[str, Any] | None) -> str:
    """The estimated bound over steps with its standard error, the frequencies-only line, and the final held-out bound where there is one."""
    step, bits, error = (column(telemetry, name) for name in ("step", "bits_per_char", "bits_per_char_stderr"))
    reference = unigram_bits(telemetry[-1])

    def paint(axes: Axes) -> None:
        axes.axhline(reference, color=WARM, linewidth=1.2, dashes=(4, 3), label="token frequencies alone")
        axes.fill_between(step, bits - error, bits + error, color=ACCENT, alpha=0.2, linewidth=0)
        _line(axes, step, bits, label="bound, probes")
        if nll is not None:
            value, spread = nll["bits_per_char"], nll["bits_per_char_stderr"]
            axes.errorbar(nll["step"], value, spread, color=INK, fmt="o", markersize=5, capsize=3, label="evaluated")
        _steps(axes, step)
        seen = np.concatenate([bits - error, bits + error, [reference], [value - spread, value + spread] if nll is not None else []])
        low, high = float(np.nanmin(seen)), min(float(np.nanmax(seen)), 1.3 * reference)
        axes.set_ylim(low - 0.12 * (high - low) - 0.02, high + 0.08 * (high - low) + 0.02)
        axes.set_title("bits per character, held-out text")

    return draw("bound", "Bound in bits per character over training steps", paint, (6.4, 4.3))


def loss(metrics: Records, unigram_entropy: int | float | None) -> str:
    """The training cross-entropy over steps, beside half of the unigram entropy, where a working warp keeps it."""
    step, value, block = thin(column(metrics, "step"), column(metrics, "loss"))

    def paint(axes: Axes) -> None:
        _line(axes, step, value, MUTED, linewidth=1.2, label="loss" if block == 1 else f"loss, means of {block}")
        top = float(np.quantile(value[np.isfinite(value)], 0.98)) if np.isfinite(value).any() else 1.0
        if unigram_entropy is not None:
            axes.axhline(unigram_entropy / 2, color=WARM, linewidth=1.2, dashes=(4, 3), label="half of unigram")
            top = max(top, unigram_entropy)
        _steps(axes, step)
        axes.set_ylim(0, top * 1.05)
        axes.set_title("nats per noisy token")

    return draw("loss", "Training cross-entropy over steps", paint, SMALL)


def over_steps(name: str, title: str, telemetry: Records, field: str) -> str:
    """One telemetry number over steps."""
    step, value = column(telemetry, "step"), column(telemetry, field)

    def paint(axes: Axes) -> None:
        _line(axes, step, value)
        _steps(axes, step)
        axes.set_ylim(0, float(np.nanmax(np.append(value, 0.1))) * 1.15)
        axes.set_title(title)

    return draw(name, f"{title} over training steps", paint, SMALL)


def quantiles(name: str, title: str, telemetry: Records, field: str, reference: float | None = None) -> str:
    """Quantiles [N, 5] (min, quarter, median, three quarters, max) over steps as bands, with a dashed line at `reference`."""
    step, q = column(telemetry, "step"), column(telemetry, field)

    def paint(axes: Axes) -> None:
        axes.fill_between(step, q[:, 0], q[:, 4], color=ACCENT, alpha=0.13, linewidth=0, label="all")
        axes.fill_between(step, q[:, 1], q[:, 3], color=ACCENT, alpha=0.3, linewidth=0, label="middle half")
        _line(axes, step, q[:, 2], label="median")
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1, dashes=(4, 3))
        _steps(axes, step)
        axes.set_ylim(0, float(np.nanmax(np.append(q, reference or 1e-3))) * 1.1)
        axes.set_title(title)

    return draw(name, f"{title} over training steps", paint)


def warp_fit(record: dict[str, Any]) -> str:
    """Fitted F~ against measured cross-entropy over sigma, with the closed form's curve; the gap is what context adds."""
    sigma, model, local = (column([record], name)[0] for name in ("sigma", "cross_entropy", "local_cross_entropy"))
    grid, fitted = (column([record], name)[0] for name in ("warp_sigma", "warp_entropy"))

    def paint(axes: Axes) -> None:
        axes.fill_between(sigma, model, local, color=WARM, alpha=0.16, linewidth=0)
        axes.plot(sigma, local, color=WARM, linewidth=1.4, dashes=(4, 2), label="one token alone")
        axes.plot(sigma, model, color=INK, marker="o", markersize=4, linewidth=0, label="measured")
        axes.plot(grid, fitted, color=ACCENT, label="fitted F̃")
        _log_sigma(axes, grid)
        axes.set_ylim(0)
        axes.set_title("cross-entropy, nats per token")

    return draw("warp-fit", "Fitted warp, measured cross-entropy and the closed form over noise levels", paint)


def straight_line(u: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[K] the least-squares line through (u, value)."""
    sound = np.isfinite(u + value)
    return np.polyval(np.polyfit(u[sound], value[sound], 1), u) if sound.sum() > 1 else value


def warp_straight(record: dict[str, Any]) -> str:
    """Cross-entropy over warped time u, the straight line through it, and the deviation between the two."""
    u, value = (column([record], name)[0] for name in ("u", "cross_entropy"))
    line = straight_line(u, value)

    def paint(axes: Axes) -> None:
        axes.fill_between(u, value, line, color=WARM, alpha=0.3, linewidth=0, label="deviation")
        axes.plot(u, line, color=MUTED, linewidth=1.2, dashes=(4, 3), label="straight line")
        axes.plot(u, value, color=ACCENT, marker="o", markersize=4, linewidth=1.4, label="measured")
        axes.set_xlim(0, 1)
        axes.set_ylim(0)
        axes.set_xlabel("warped time u")
        axes.set_title("cross-entropy, nats per token")

    return draw("warp-straight", "Cross-entropy over warped time and the straight line through it", paint)


def warp_density(record: dict[str, Any]) -> str:
    """Where training and sampling spend their time: the density of noise levels over log sigma."""
    grid, density = (column([record], name)[0] for name in ("warp_sigma", "warp_density"))
    half = record["half_information_sigma"]

    def paint(axes: Axes) -> None:
        axes.fill_between(grid, 0, density, color=ACCENT, alpha=0.18, linewidth=0)
        axes.plot(grid, density, color=ACCENT)
        axes.axvline(half, color=INK, linewidth=1, dashes=(2, 2), label=f"half of the information, σ = {half:.3g}")
        _log_sigma(axes, grid)
        axes.set_ylim(0)
        axes.set_title("density of noise levels over log σ")

    return draw("warp-density", "Density of noise levels over log sigma", paint)


def gain_curves(telemetry: Records, most: int = 4) -> str:
    """What context adds at each sigma (closed form minus model, nats), for a few probes from first (faint) to last (strong)."""
    chosen = [telemetry[i] for i in sorted(set(np.linspace(0, len(telemetry) - 1, most).round().astype(int)))]

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=0.8)
        for i, record in enumerate(chosen):
            sigma, model, local = (column([record], name)[0] for name in ("sigma", "cross_entropy", "local_cross_entropy"))
            alpha = min(0.2 + 0.8 * (i + 1) / len(chosen), 1.0)
            axes.plot(sigma, local - model, color=ACCENT, alpha=alpha, linewidth=1.2 + (i == len(chosen) - 1), label=f"step {record['step']:,}")
        _log_sigma(axes, np.concatenate([column([record], "sigma")[0] for record in chosen]))
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.02), max(high, 0.1))
        axes.set_title("nats per token saved by context")

    return draw("gain-curves", "What context adds at each noise level, for several training steps", paint)


def trajectory_entropy(u: Sequence[int | float], entropy: Sequence[float]) -> tuple[str, tuple[float, float]]:
    """Mean entropy over u from noise (left) to text (right) with a cursor at u = 1; also the cursor's x at u = 1 and at u = 0, in viewBox units."""
    span: list[float] = []

    def paint(axes: Axes) -> None:
        axes.fill_between(u, 0, entropy, color=WARM, alpha=0.16, linewidth=0)
        _line(axes, np.array(u), np.array(entropy), WARM)
        axes.axvline(1, color=INK, linewidth=1.4).set_gid("cursor")
        axes.set_xlim(1, 0)
        axes.set_ylim(0)
        axes.set_xlabel("warped time u: noise to text")
        axes.set_title("mean entropy, nats")
        figure = axes.get_figure(root=True)
        assert figure is not None  # draw() has just made it
        figure.draw_without_rendering()
        box = axes.get_position()
        span.extend(72 * figure.get_figwidth() * edge for edge in (box.x0, box.x1))

    svg = draw("entropy", "Mean entropy of the tokens over warped time", paint, (4.3, 2.5))
    return svg, (span[0], span[1])


def readme_picture(trajectory: dict[str, Any], probe: dict[str, Any] | None, kind: str = "svg", rows: int = 10, characters: int = 92) -> bytes:
    """One wide picture for the README: a sentence leaving the noise, a row per noise level and a column per position, as many as fit.

    Each cell holds the leading candidate, its ink the candidate's probability, its tint the entropy. Beside it, on the same vertical axis u, the
    measured cross-entropy of `probe` (a line of telemetry.jsonl), which the warp makes straight. `kind` is "svg" or "png".
    """
    frames = trajectory["frames"]
    frames = [frames[i] for i in sorted(set(np.linspace(0, len(frames) - 1, rows).round().astype(int)))]
    fixed, pieces = trajectory["fixed"], trajectory["pieces"]
    words = [[piece if given else row[0] for piece, given, row in zip(pieces, fixed, frame["tokens"], strict=True)] for frame in frames]
    cells = [[word.replace("▁", " ").replace("\n", "⏎") for word in row] for row in words]
    widths = np.array([max(len(row[i].strip()) for row in cells) + 1.6 for i in range(len(pieces))])
    shown = max(int((np.cumsum(widths) <= characters).sum()), 1)
    left = np.concatenate([[0.0], np.cumsum(widths)[:shown]])
    most = max(max(frame["entropy"]) for frame in frames) or 1.0
    with matplotlib.rc_context({**STYLE, "svg.fonttype": "path"}):
        figure = Figure(figsize=(13, 0.37 * len(frames) + 1.0), facecolor=PAPER)
        table = figure.add_axes((0.075, 0.13, 0.745 if probe else 0.915, 0.74))
        table.set(xlim=(0, left[-1]), ylim=(len(frames) - 0.5, -0.5), xticks=[], yticks=range(len(frames)))
        table.set_yticklabels([f"{frame['sigma']:.3g}" for frame in frames])
        table.tick_params(length=0)
        table.grid(False)
        table.spines["bottom"].set_visible(False)
        figure.text(0.012, 0.91, "noise σ", color=MUTED)
        title = "what each position holds: the leading candidate, tinted by what is still open; the framed tokens were given"
        figure.text(0.075, 0.91, title, color=MUTED)
        for row, (frame, line) in enumerate(zip(frames, cells, strict=True)):
            for i in range(shown):
                given, share = fixed[i], frame["probabilities"][i][0]
                gap = 0.3 if pieces[i][:1] in "▁ " else 0.0  # the pieces of one word touch
                box = (left[i] + gap, row - 0.44), widths[i] - gap, 0.88
                tint = (ACCENT, 0.12) if given else (WARM, 0.42 * frame["entropy"][i] / most)
                table.add_patch(Rectangle(*box, facecolor=tint, edgecolor=(ACCENT, 0.8) if given else "none", linewidth=0.8))
                ink = (ACCENT, 1.0) if given else (INK, 0.45 + 0.55 * share)
                table.text(left[i] + (widths[i] + gap) / 2, row, line[i].strip() or "␣", color=ink, ha="center", va="center", fontsize=11)
        if probe:
            _readme_panel(figure.add_axes((0.85, 0.13, 0.135, 0.74)), frames, probe)
            figure.text(0.85, 0.91, "nats still open", color=MUTED)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, facecolor=PAPER, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _readme_panel(axes: Axes, frames: Records, probe: dict[str, Any]) -> None:
    """Cross-entropy over u, u running down as the rows do: the straight line that the warp is for, and what context adds."""
    u, model, local = (column([probe], name)[0] for name in ("u", "cross_entropy", "local_cross_entropy"))
    axes.fill_betweenx(u, model, local, color=WARM, alpha=0.16, linewidth=0)
    axes.plot(local, u, color=WARM, linewidth=1.4, dashes=(4, 2))
    axes.plot(model, u, color=ACCENT, marker="o", markersize=3.5)
    height = (frames[0]["u"] - frames[-1]["u"]) / max(len(frames) - 1, 1) / 2 or 0.5
    axes.set(xlim=(0, None), ylim=(frames[-1]["u"] - height, frames[0]["u"] + height), yticks=[])
    axes.xaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
    axes.grid(axis="y", visible=False)
    axes.text(0.05, 0.94, "in context", color=ACCENT, transform=axes.transAxes)
    axes.text(0.05, 0.87, "token alone", color=WARM, transform=axes.transAxes)
