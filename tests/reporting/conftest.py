"""A workdir with every file of a finished run: synthetic numbers, true shapes, and text that tries to break out of the page."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from cdcd_jax import config as config_lib

UNIGRAM, CHARS_PER_TOKEN, SIGMA_MIN, SIGMA_MAX = 5.06, 2.55, 0.4, 50.0
COMMON = "the and of to in he that shall unto for his a lord they be is him not them with all".split()
TEMPLATE = "And the [8] and said unto [4], [45]"
TEXT = (
    "And the king of Israel answered and said unto the prophet, Behold, I have heard the word of the Lord, and the people shall dwell in the land "
    "which he sware unto their fathers, and there shall be peace in all the borders"
)
HOSTILE = "And it came </script><script>alert('x')</script> & <b>pass</b> $x^2$, [8] unto {{ 7*7 }}"


def split_pieces(text: str) -> list[str]:
    """Word pieces in SentencePiece's spelling: common words whole, others in pieces of at most three letters."""
    pieces = []
    for word in text.replace(",", " ,").split():
        if word == "," or word.lower() in COMMON or len(word) <= 3:
            pieces.append(word if word == "," else "▁" + word)
        else:
            pieces += ["▁" + word[:3]] + [word[i : i + 3] for i in range(3, len(word), 3)]
    return pieces


def _curves(step: int, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The closed form's and the model's cross-entropy [K] in nats at [K] noise levels: context helps more as training goes on."""
    learnt = 0.5 * (1 - np.exp(-max(step - 250, 0) / 1200))
    local = UNIGRAM / (1 + (sigma / 2.6) ** -2.6)
    return local, UNIGRAM / (1 + (sigma / (2.6 * np.exp(learnt))) ** -2.6)


def telemetry_line(step: int, generator: np.random.Generator) -> dict[str, Any]:
    grid = np.geomspace(SIGMA_MIN, SIGMA_MAX, 101)
    curve = _curves(step, grid)[1]
    share = (curve - curve[0]) / (curve[-1] - curve[0])
    u = (np.arange(20) + 0.5) / 20
    sigma = np.interp(u, share, grid)
    local, model = _curves(step, sigma)
    model = model + 0.04 * np.sin(5 * u) + generator.normal(0, 0.02, 20)
    bits = 2.08 + 0.8 * np.exp(-step / 1100) + generator.normal(0, 0.008)
    return {
        "step": step, "bits_per_char": bits, "bits_per_char_stderr": 0.02, "nats_per_token": bits * CHARS_PER_TOKEN * np.log(2), "stderr": 0.035,
        "half_information_sigma": float(np.interp(0.5, share, grid)), "context_gain": float((local - model).max()), "linearity": 0.034,
        "sigma": sigma.tolist(), "cross_entropy": model.tolist(), "local_cross_entropy": local.tolist(), "u": u.tolist(),
        "warp_sigma": grid.tolist(), "warp_entropy": (curve + 0.03).tolist(), "warp_density": np.gradient(share, np.log(grid)).tolist(),
        "embedding_norm_quantiles": [x * (0.1 + 2 * (1 - np.exp(-step / 800))) for x in (0.7, 0.9, 1.0, 1.1, 1.4)],
        "nearest_distance_quantiles": [x * (1 - 0.1 * (1 - np.exp(-step / 900))) for x in (0.45, 0.62, 0.7, 0.76, 0.9)],
        "unigram_entropy": UNIGRAM, "chars_per_token": CHARS_PER_TOKEN,
    }  # fmt: skip


def trajectory(num_frames: int = 101, hostile: bool = False) -> dict[str, Any]:
    """A sentence falling out of noise: candidates [L][5] with probabilities, five near rivals at each position."""
    generator = np.random.default_rng(7)
    pieces = split_pieces(TEXT)[:64]
    if hostile:
        pieces[2:5] = ["</script>", "<b>&", "$x_1$"]
    fixed = [i in (0, 1, 10, 11, 12, 13, 18) for i in range(len(pieces))]
    pool = sorted(set(pieces) | {"▁" + word for word in COMMON} | {"s", "ed", "ing", "eth", ".", "th", "er", "▁God", "▁man", "▁son", "▁house"})
    rivals = [[pieces[i]] + list(generator.permutation([p for p in pool if p != pieces[i]])[:7]) for i in range(len(pieces))]
    order, leaning = generator.uniform(0.25, 0.85, len(pieces)), generator.normal(0, 1.0, (len(pieces), 8))
    frames = []
    for u in np.linspace(1, 0, num_frames):
        frame: dict[str, Any] = {"sigma": float(np.exp(np.log(SIGMA_MIN) + np.log(SIGMA_MAX / SIGMA_MIN) * u**0.8)), "u": float(u)}
        frame.update(tokens=[], probabilities=[], entropy=[])
        for i, words in enumerate(rivals):
            sharp = 1 / (1 + np.exp((u - order[i]) * 14))
            logits = leaning[i] * (1.2 - 0.6 * sharp) + np.arange(8) * -0.15 + np.eye(8)[0] * 9 * sharp
            p = np.exp(logits) / np.exp(logits).sum()
            p = np.eye(8)[0] if fixed[i] else p * (1 - 0.75 * u**3)
            top = np.argsort(-p)[:5]
            rest = 1 - p.sum()
            entropy = float(-(p * np.log(np.maximum(p, 1e-12))).sum() + (rest * np.log(250 / max(rest, 1e-9)) if rest > 1e-9 else 0))
            frame["tokens"].append([str(words[k]) for k in top])
            frame["probabilities"].append([float(p[k]) for k in top])
            frame["entropy"].append(entropy)
        frames.append(frame)
    return {"text": "".join(pieces).replace("▁", " ").strip(), "pieces": pieces, "frames": frames, "fixed": fixed, "template": TEMPLATE}


def write_lines(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_run(folder: pathlib.Path, steps: int = 5000, frames: int = 101, hostile: bool = False) -> pathlib.Path:
    """Writes the whole workdir and returns it. Two lives: the run was stopped half-way and resumed. `hostile` puts mark-up into every text."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_lib.Config()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=steps))
    (folder / "config.json").write_text(config_lib.to_json(config), encoding="utf-8")
    metrics = []
    for step in range(10, steps + 1, 10):
        loss = UNIGRAM / 2 + 1.2 * np.exp(-step / 90) + generator.normal(0, 0.13)
        seconds = (step if step <= steps // 2 else step - steps // 2) * 0.092
        metrics.append({"step": step, "loss": loss, "warp_loss": 0.1, "grad_norm": 0.6, "learning_rate": 3e-3,
                        "tokens_per_second": 11100 + generator.normal(0, 150), "seconds": seconds, "time": 1.7e9 + step, "goodput": 0.75,
                        "wall_seconds": {"start": 5.0, "compile": 12.0, "data": 0.2, "step": 0.092 * step, "checkpoint": 1.0, "evaluation": 3.0,
                                         "lost": 20.0}})  # fmt: skip
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "telemetry.jsonl", [telemetry_line(step, generator) for step in range(250, steps + 1, 250)])
    text = HOSTILE if hostile else TEXT + "."
    base = {"tokens": [1, 2, 3], "nfe": 201, "fixed": [False] * 3}
    texts = [text, "In that day shall the children of Judah go up, and they made him king.", "And he said, Thou shalt not eat of it."]
    write_lines(folder / "samples/unconditional.jsonl", [{**base, "text": t, "seed": i} for i, t in enumerate(texts)])
    rest = [" God created the heaven & the earth.", " was the hand of the Lord upon them, and they went out."]
    write_lines(folder / "samples/prompt.jsonl", [{**base, "text": "In the beginning" + t, "prompt": "In the beginning", "seed": 0} for t in rest])
    filled = "And the king of Israel, which stood by, arose and said unto the men of war, Behold, I will go down into the land."
    write_lines(folder / "samples/template.jsonl", [{**base, "text": filled, "template": TEMPLATE, "seed": 0}])
    (folder / "samples/trajectory.json").write_text(json.dumps(trajectory(frames, hostile)), encoding="utf-8")
    (folder / "eval").mkdir(exist_ok=True)
    nll = {"kind": "elbo", "bits_per_char": 2.0964, "nats_per_token": 3.7051, "stderr": 0.0312, "bits_per_char_stderr": 0.0177, "num_tokens": 81920,
           "num_characters": 208712, "split": "valid", "linearity": 0.031, "step": steps, "reconstruction": 0.0004, "prior": 0.051}  # fmt: skip
    (folder / "eval/nll.json").write_text(json.dumps(nll), encoding="utf-8")
    quality = {"num_samples": 256, "entropy": 5.91, "valid_word_rate": 0.812, "valid_word_rate_heldout": 0.971, "valid_word_rate_unigram": 0.528,
               "nfe": 201, "step": steps}  # fmt: skip
    (folder / "eval/samples.json").write_text(json.dumps(quality), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A whole run with hostile text, to read only."""
    return make_run(tmp_path_factory.mktemp("runs") / "demo", steps=1000, hostile=True)


@pytest.fixture
def new_run(tmp_path: pathlib.Path) -> pathlib.Path:
    """A whole run of one's own, to damage."""
    return make_run(tmp_path / "demo", steps=500, frames=11)
