"""The page as a document: whole, escaped, self-contained, named for screen readers, and silent about nothing that is absent."""

import html.parser
import json
import pathlib
import re

import pytest

import cdcd_jax.reporting
from cdcd_jax.config import UserError
from cdcd_jax.reporting import page, records

TEMPLATES = pathlib.Path(cdcd_jax.reporting.__file__).parent / "templates"


class Document(html.parser.HTMLParser):
    """Every start tag with its attributes, the text outside of scripts and styles, and the scripts' texts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.inside = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)
        elif not self.inside:
            self.text += data

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def rendered(shared_run: pathlib.Path) -> str:
    return page.render(records.load(shared_run))


@pytest.fixture(scope="module")
def document(rendered: str) -> Document:
    return Document(rendered)


def test_the_result_stands_first_and_the_sections_follow_in_order(document: Document, rendered: str) -> None:
    assert rendered.startswith("<!DOCTYPE html>")
    assert [section["id"] for section in document.find("section")] == ["progress", "trajectory", "warp", "samples", "config", "commands"]
    words = " ".join(document.text.split())
    assert "2.096 ± 0.018 bits per character on held-out text; half of the information is resolved at σ = " in words[:300].replace("\xa0", " ")
    assert rendered.index('id="bound-figure_1"') < rendered.index('id="loss-figure_1"'), "the bound comes before the loss"
    assert "5.06 / 2 = 2.53 nats by construction" in words


def test_nothing_is_loaded_from_anywhere(document: Document, rendered: str) -> None:
    assert "://" not in rendered and "@import" not in rendered
    assert not [attributes for _, attributes in document.tags if "src" in attributes or "srcset" in attributes]
    assert {link["href"] for link in document.find("link")} == {"data:,"}
    assert all(link["href"].startswith("#") for link in document.find("a") + document.find("use"))
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?(.)", rendered))
    policy = next(meta["content"] for meta in document.find("meta") if "http-equiv" in meta)
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_page_can_be_read_aloud_and_on_a_phone(document: Document, rendered: str) -> None:
    assert document.find("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in document.find("meta"))
    assert len(document.find("h1")) == 1
    drawn = [svg for svg in document.find("svg") if svg.get("role") == "img" and svg.get("aria-label")]
    assert len(drawn) == len(document.find("svg")) == 11
    slider = document.find("input")
    assert len(slider) == 1 and slider[0]["type"] == "range" and slider[0]["aria-label"]
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "prefers-color-scheme: dark" in rendered
    for name in ("page.css", "page.js"):
        assert (TEMPLATES / name).read_text(encoding="utf-8").strip() in rendered, "the templates are taken over as they are"


def test_text_cannot_break_out(document: Document, rendered: str) -> None:
    assert len(document.find("script")) == 2 and not document.find("b") == [{}]
    assert "alert" not in "".join(document.scripts) and "<script>alert" not in rendered
    assert "</script><script>alert('x')</script> & <b>pass</b> $x^2$, [8] unto {{ 7*7 }}" in document.text
    assert [attributes for tag, attributes in document.tags if tag == "script"][0] == {"type": "application/json", "id": "data"}


def test_the_data_block_holds_the_trajectory(document: Document, rendered: str, shared_run: pathlib.Path) -> None:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', rendered, re.S)
    assert block is not None and not set("<>&'") & set(block[1])
    data = json.loads(block[1])
    source = json.loads((shared_run / "samples/trajectory.json").read_text(encoding="utf-8"))
    assert [False, "</script>"] in data["pieces"] and [False, "<b>&"] in data["pieces"]
    assert len(data["frames"]) == page.MOST_FRAMES
    assert (data["frames"][0]["u"], data["frames"][-1]["u"]) == (1.0, 0.0)
    for frame, original in ((data["frames"][0], source["frames"][0]), (data["frames"][-1], source["frames"][-1])):
        assert frame["sigma"] == original["sigma"]
        for position in (2, 30):  # neither is given
            begins = ["▁" if data["pieces"][place][0] else "" for place in frame["tokens"][position]]
            words = [mark + data["pieces"][place][1] for mark, place in zip(begins, frame["tokens"][position], strict=True)]
            assert words == original["tokens"][position]
            assert frame["percent"][position] == pytest.approx([100 * share for share in original["probabilities"][position]], abs=0.051)
    assert len(document.find("li")) >= len(source["pieces"])


def test_a_given_position_shows_its_own_token_whatever_the_model_predicts() -> None:
    frame = {"sigma": 1.0, "u": 0.5, "tokens": [["▁x", "y"], ["▁z", "▁w"]], "probabilities": [[0.5, 0.4], [0.6, 0.2]], "entropy": [1.0, 2.0]}
    view = page.trajectory_view({"pieces": ["▁And", "▁z"], "fixed": [True, False], "frames": [frame]})
    assert view["pieces"][view["frames"][0]["tokens"][0][0]] == (True, "And")
    assert view["frames"][0]["percent"] == [[100.0], [60.0, 20.0]]
    assert view["frames"][0]["mean"] == 2.0, "the mean is over what is open"


@pytest.mark.parametrize(
    ("piece", "shown"), [("▁king", (True, "king")), (" king", (True, "king")), ("dom", (False, "dom")), ("▁", (True, "")), ("\n", (False, "⏎"))]
)
def test_pieces_are_shown_as_words(piece: str, shown: tuple[bool, str]) -> None:
    assert page.show_piece(piece) == shown


@pytest.mark.parametrize(
    ("sample", "given"),
    [
        ({"text": "And so"}, []),
        ({"text": "In the beginning God", "prompt": "In the beginning"}, ["In the beginning"]),
        ({"text": "In the  beginning God", "prompt": "In the beginning"}, ["In the  beginning"]),
        ({"text": "God in the beginning", "prompt": "in the beginning"}, []),
        ({"text": "And a, b said, c", "template": "And [4], [2]"}, ["And", ","]),
        ({"text": "And the men said go.", "template": "And the [1] said [1]."}, ["And the", "said", "."]),
        ({"text": "x [ y", "template": "x [[ [1]"}, ["x ["]),
        ({"text": "a.b. c.", "template": "[3]."}, ["."]),
        ({"text": "something else", "template": "And the [2]"}, []),
    ],
)
def test_given_parts_are_marked(sample: dict[str, str], given: list[str]) -> None:
    runs = page.given_runs(sample)
    assert "".join(words for words, _ in runs) == sample["text"]
    assert [words for words, marked in runs if marked] == given
    if given and "template" in sample and sample["template"].endswith("."):
        assert runs[-1] == (".", True)


def test_samples_stand_as_they_came(new_run: pathlib.Path) -> None:
    (new_run / "telemetry.jsonl").unlink()
    many = [{"text": f"sample {number}.", "seed": number} for number in range(20)]
    (new_run / "samples/unconditional.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    (new_run / "samples/odd.jsonl").write_text(json.dumps({"text": "one\u2028two"}, ensure_ascii=False) + "\n", encoding="utf-8")
    text = page.render(records.load(new_run))
    assert [f"sample {n}." in text for n in range(20)] == [n < page.MOST_SAMPLES for n in range(20)]
    assert "8 more in samples/unconditional.jsonl" in text and "one\u2028two" in text
    assert "<mark>In the beginning</mark> God created" in text
    assert "<mark>and said unto</mark> the men of war<mark>,</mark> Behold" in text


def test_what_is_absent_is_said_with_its_command(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 10, "loss": 2.5, "tokens_per_second": 100.0, "seconds": 1.5}\n')
    run = page.write(folder)
    written = (folder / "report.html").read_text(encoding="utf-8")
    text = " ".join(Document(written).text.split())
    for command in records.commands(folder).values():
        assert command in text
    assert f"--workdir='{folder}'" in text, "commands are quoted for the shell"
    assert written.count('class="absent"') == 7 and "No bound yet after 10 steps" in text
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["nll"]["bits_per_char"] is None and numbers["step"] == 10 and numbers["num_steps"] is None
    assert [name for name, _ in page.absent_parts(run)] == ["unconditional", "prompt", "template", "trajectory"]


def test_without_an_evaluation_the_estimate_leads(new_run: pathlib.Path) -> None:
    (new_run / "eval/nll.json").unlink()
    bits, half, source = page.headline(records.load(new_run))
    assert source == "on held-out text, estimated while training" and bits is not None and half is not None


def test_a_bound_of_another_split_is_not_called_held_out(new_run: pathlib.Path) -> None:
    nll = json.loads((new_run / "eval/nll.json").read_text()) | {"split": "train"}
    (new_run / "eval/nll.json").write_text(json.dumps(nll))
    assert page.headline(records.load(new_run))[2] == "on text of the split train"


def test_numbers_that_are_none_or_nan_do_not_stop_the_page(new_run: pathlib.Path) -> None:
    line = json.loads((new_run / "telemetry.jsonl").read_text().splitlines()[-1])
    numbers = {
        key: None if isinstance(value, float) else [float("nan")] * len(value) if isinstance(value, list) else value for key, value in line.items()
    }
    kept = {key: line[key] for key in ("unigram_entropy", "chars_per_token")}
    (new_run / "telemetry.jsonl").write_text(json.dumps(numbers | kept) + "\n")
    (new_run / "eval/nll.json").unlink()
    page.write(new_run)
    assert "NaN" not in (new_run / "report.json").read_text()
    assert "No bound yet" in (new_run / "report.html").read_text(encoding="utf-8")


def test_one_probe_and_one_frame_are_enough(new_run: pathlib.Path) -> None:
    (new_run / "telemetry.jsonl").write_text((new_run / "telemetry.jsonl").read_text().splitlines()[0] + "\n")
    (new_run / "metrics.jsonl").write_text((new_run / "metrics.jsonl").read_text().splitlines()[0] + "\n")
    trajectory = json.loads((new_run / "samples/trajectory.json").read_text())
    trajectory["frames"] = trajectory["frames"][:1]
    (new_run / "samples/trajectory.json").write_text(json.dumps(trajectory))
    assert 'max="0"' in page.render(records.load(new_run))


def test_a_mistake_overwrites_no_page(new_run: pathlib.Path) -> None:
    old = new_run / "report.html"
    old.write_text("the old page")
    with pytest.raises(UserError, match="--picture=picture.gif must end in .svg or .png"):
        page.write(new_run, "picture.gif")
    (new_run / "samples/trajectory.json").unlink()
    with pytest.raises(UserError, match="has no samples/trajectory.json for the picture: make it with python -m cdcd_jax.sample"):
        page.write(new_run, str(new_run / "picture.png"))
    assert old.read_text() == "the old page"
