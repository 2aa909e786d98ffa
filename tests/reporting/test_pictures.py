"""The pictures: what they draw, their colours in both themes, and that no address and no mathematics slips in."""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest

from cdcd_jax.reporting import pictures


@pytest.fixture(scope="module")
def telemetry(shared_run: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (shared_run / "telemetry.jsonl").read_text().splitlines()]


def test_the_theme_is_the_pages_in_light_and_has_all_names_in_dark() -> None:
    css = (pathlib.Path(pictures.__file__).parent / "templates/page.css").read_text(encoding="utf-8")
    light, dark = css.split("prefers-color-scheme: dark", 1)
    for name, colour in pictures.PALETTE.items():
        assert f"--{name}: {colour};" in light
        assert re.search(rf"--{name}: #[0-9a-f]{{6}};", dark.split("* {")[0])


def test_a_picture_is_a_fragment_with_text_as_text(telemetry: list[dict[str, Any]]) -> None:
    svg = pictures.warp_fit(telemetry[-1])
    assert svg.startswith('<svg role="img" aria-label="') and svg.rstrip().endswith("</svg>")
    assert not re.search(r"http|xmlns|<style|<metadata|#[0-9a-f]{6}", svg)
    assert all(identity.startswith("warp-fit-") for identity in re.findall(r'\bid="([^"]*)"', svg))
    assert "width=" not in svg[: svg.index(">")] and "viewBox=" in svg[: svg.index(">")]
    for words in ("measured", "fitted F̃", "one token alone", "noise level σ", "cross-entropy, nats per token"):
        assert f">{words}</text>" in svg
    assert svg == pictures.warp_fit(telemetry[-1]), "the same numbers give the same picture"


def test_curves_of_context_run_from_the_first_probe_to_the_last(telemetry: list[dict[str, Any]]) -> None:
    svg = pictures.gain_curves(telemetry)
    assert ">step 250</text>" in svg and ">step 1,000</text>" in svg


def test_probes_may_have_different_numbers_of_bins(telemetry: list[dict[str, Any]]) -> None:
    short = telemetry[0] | {name: telemetry[0][name][:7] for name in ("sigma", "cross_entropy", "local_cross_entropy", "u")}
    assert pictures.gain_curves([short, telemetry[1]])


def test_the_bound_shows_what_frequencies_alone_give(telemetry: list[dict[str, Any]]) -> None:
    assert pictures.unigram_bits(telemetry[-1]) == pytest.approx(5.06 / np.log(2) / 2.55)
    nll = {"step": 1000, "bits_per_char": 2.1, "bits_per_char_stderr": 0.02}
    assert ">evaluated</text>" in pictures.bound(telemetry, nll) and ">evaluated</text>" not in pictures.bound(telemetry, None)


def test_thinning_takes_means_of_neighbours() -> None:
    x, y, block = pictures.thin(np.arange(10.0), np.arange(10.0) * 2, most=5)
    assert block == 2 and x.tolist() == [0.5, 2.5, 4.5, 6.5, 8.5] and y.tolist() == (2 * x).tolist()
    assert pictures.thin(np.arange(3.0), np.arange(3.0))[2] == 1
    assert len(pictures.thin(np.arange(100_000.0), np.zeros(100_000))[0]) <= 300


def test_columns_turn_null_and_infinity_into_nan() -> None:
    assert np.isnan(pictures.column([{"a": None}, {"a": float("inf")}], "a")).all()
    assert pictures.column([{"a": [1, 2]}, {"a": [3, 4]}], "a").shape == (2, 2)


def test_the_straight_line_is_fitted_to_what_is_finite() -> None:
    u = np.linspace(0, 1, 5)
    value = np.array([1.0, 1.5, np.nan, 2.5, 3.0])
    np.testing.assert_allclose(pictures.straight_line(u, value), 1 + 2 * u)


def test_the_cursor_of_the_trajectory_has_its_two_ends() -> None:
    svg, (noise, text) = pictures.trajectory_entropy([1, 0.5, 0], [5.0, 2.0, 0.0])
    assert 'id="entropy-cursor"' in svg and 0 < noise < text < 72 * 4.3
    drawn = re.search(r'id="entropy-cursor">\s*<path d="M ([\d.]+)', svg)
    assert drawn is not None and float(drawn[1]) == pytest.approx(noise, abs=0.5), "the cursor is drawn at u = 1"


def test_the_readmes_picture_is_wide_and_takes_any_token(shared_run: pathlib.Path, telemetry: list[dict[str, Any]]) -> None:
    trajectory = json.loads((shared_run / "samples/trajectory.json").read_text(encoding="utf-8"))
    png = pictures.readme_picture(trajectory, telemetry[-1], "png")
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert png.startswith(b"\x89PNG") and width > 2.4 * height > 0
    svg = pictures.readme_picture(trajectory, None, "svg").decode()
    assert svg.startswith("<?xml") and "</svg>" in svg and "<script" not in svg
    assert "<text" not in svg, "it is drawn for any viewer, whatever fonts it has"
