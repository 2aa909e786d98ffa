"""Files to text: in stretches of any size, compressed or not, and one sentence for whatever is no text."""

import gzip
import itertools
import json
import random

import pytest
import zstandard

from cdcd_jax.config import UserError
from cdcd_jax.data import json_lines, stretches, text, unigram
from tests import corpora


def nothing(block: bytes) -> None:
    """Sees no block."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Blocks, pieces and searches so small that a short file has many."""
    monkeypatch.setattr(stretches, "BLOCK", 64)
    monkeypatch.setattr(text, "PIECE", 256)
    monkeypatch.setattr(text, "SEARCHED", 32)


def lines(*arguments):
    """The texts of JSON lines, which come some at a time."""
    return list(itertools.chain.from_iterable(json_lines.read_lines(*arguments, nothing)))


def ranges(size, number, seed=0):
    cuts = sorted(random.Random(seed).sample(range(1, size), number))
    return list(itertools.pairwise([0, *cuts, size]))


TEXTS = {
    "prose": corpora.prose(2000),
    "one word": "x" * 5000,
    "no space": "日本語の文" * 400,
    "spaces": " \n " * 700,
    "long words": " ".join("abcdefg" * n for n in range(1, 90)),
    "line breaks": "a\n" * 900,
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_stretches_and_pieces_together_are_the_text(tmp_path, name, mark):
    path = tmp_path / "a.txt"
    path.write_bytes(mark + TEXTS[name].encode())
    for number in (1, 2, 7, 40):
        found = [list(text.read_text(str(path), *ends, "text", nothing)) for ends in ranges(path.stat().st_size, number, number)]
        assert "".join(itertools.chain.from_iterable(found)) == TEXTS[name]
        assert all(len(piece) <= text.PIECE for pieces in found for piece in pieces)
    whole = list(text.read_text(str(path), 0, 0, "text", nothing))
    assert "".join(whole) == TEXTS[name]
    words = [word for piece in whole for word in unigram.WORD.findall(piece)]
    assert words == unigram.WORD.findall(TEXTS[name])  # so tokens do not depend on the pieces


def test_words_are_those_of_the_whole_text_in_any_stretches(tmp_path):
    path = corpora.write(tmp_path / "a.txt", TEXTS["prose"])
    pieces = [piece for ends in ranges(path.stat().st_size, 30) for piece in text.read_text(str(path), *ends, "text", nothing)]
    assert [word for piece in pieces for word in unigram.WORD.findall(piece)] == unigram.WORD.findall(TEXTS["prose"])


@pytest.mark.parametrize("name", TEXTS)
def test_27_letters_in_blocks_are_those_of_the_text(name):
    assert text.to_27(TEXTS[name]) == corpora.to_27(TEXTS[name])
    for size in (1, 2, 3, 50):
        blocks = [TEXTS[name][i : i + size] for i in range(0, len(TEXTS[name]), size)]
        assert "".join(text.letters(blocks, True)) == corpora.to_27(TEXTS[name])
    inside = "".join(text.letters(["b", *blocks, "e"], True))
    assert inside == "b" + "".join(text.letters(blocks, False)) + "e"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_files_are_read_whole(tmp_path, suffix):
    path = corpora.write(tmp_path / f"a.txt{suffix}", TEXTS["prose"])
    seen: list[bytes] = []
    assert "".join(text.read_text(str(path), 0, 0, "text", seen.append)) == TEXTS["prose"]
    assert b"".join(seen) == path.read_bytes()
    documents = corpora.documents(50)
    path = corpora.write(tmp_path / f"a.jsonl{suffix}", corpora.json_lines(documents))
    assert lines(str(path), 0, 0, "text", nothing) == documents


def test_a_gzip_file_may_end_in_zeros(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text", mtime=0) + b"\0" * 1000)
    assert list(text.read_text(str(tmp_path / "a.gz"), 0, 0, "text", nothing)) == ["text"]


def test_json_lines_in_any_stretches(tmp_path):
    documents = corpora.documents(100)
    content = "\n  \n" + corpora.json_lines(documents).replace("\n", "\r\n\n", 7) + '{"text": null}'
    path = corpora.write(tmp_path / "a.jsonl", content)
    for number in (1, 3, 50):
        found = [lines(str(path), *ends, "text", nothing) for ends in ranges(path.stat().st_size, number, number)]
        assert list(itertools.chain.from_iterable(found)) == [*documents, ""]
    assert all(map(json_lines.is_json, ("a.jsonl", "b/c.json.gz", "d.ndjson.zst"))) and not json_lines.is_json("e.jsonl.txt")


def test_lines_read_together_are_those_read_one_by_one(tmp_path, monkeypatch):
    """What only looks whole as one list is refused, by the line in which it is wrong."""
    clean, other = '{"text": "a"}', '{"text": "b}\\n{", "more": [{}]}'
    for content in (f"{clean}\n{other}\n", f"{clean}\r\n{other}\r\n", f"\n {clean}\n\n{other} ", clean + "\n" + other):
        path = corpora.write(tmp_path / "a.jsonl", content)
        assert lines(str(path), 0, 0, "text", nothing) == ["a", "b}\n{"]
    for bad, number in (
        (f"{clean},{clean}", 1), (f'{clean}\n{{"text": "a"', 2), (f"{clean}\n{clean}{clean}\n", 2), ('{"text": "a}\n{", "b": 1}', 1),
        (f'{clean},{clean}\n{{"text": "a"\n"b": 1}}', 1), (f"[{clean}]\n", 1), (f'{clean}\n{clean[:-1]}, "c": [\n{clean}]}}', 2),
    ):  # fmt: skip
        assert f"has in line {number} " in refused(corpora.write(tmp_path / "b.jsonl", bad))


def refused(name, ends=(0, 0), key="text"):
    with pytest.raises(UserError) as error:
        if json_lines.is_json(str(name)):
            lines(str(name), *ends, key, nothing)
        else:
            list(text.read_text(str(name), *ends, "text", nothing))
    message = str(error.value)
    assert message.startswith(f"data.source file {str(name)!r} ") and message.endswith(".") and "\n" not in message and len(message) < 400
    return message


GOOD = corpora.prose(500).encode()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"x" * 100 + b"\0", "is binary (a NUL at byte 100)"),
        ("a.txt", b"x" * 99 + "né".encode("latin-1"), "is not UTF-8 (byte 100 is 0xe9)"),
        ("a.txt", "né".encode() * 50 + b"\xc3", "is not UTF-8 (byte 150 is 0xc3)"),  # ends within a character
        ("a.txt", "text".encode("utf-16"), "is binary (a NUL at byte 3)"),
        ("a.txt.gz", gzip.compress(GOOD, mtime=0)[:-4], f"is truncated: its gzip stream ends in the middle, after {len(GOOD):,} bytes of text"),
        ("a.txt.gz", gzip.compress(GOOD, mtime=0)[:9], "is truncated: its gzip stream ends in the middle, after 0 bytes"),
        ("a.txt.gz", b"", "is truncated"),
        ("a.txt.gz", GOOD, "is no whole gzip file (after 0 bytes of text: "),
        ("a.txt.gz", gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "is no whole gzip file"),  # a wrong checksum
        ("a.txt.gz", gzip.compress(b"x" * 99 + b"\xe9t", mtime=0), "is not UTF-8 (byte 99 is 0xe9)"),  # of the text, unpacked
        ("a.txt.zst", zstandard.compress(GOOD)[:-1], "is truncated: its Zstandard stream ends in the middle"),
        ("a.txt.zst", GOOD, "is no whole Zstandard file (after 0 bytes of text: "),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": 1,\n', "has in line 3 no JSON (Expecting property name enclosed in double quotes: line 1 col"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', "has in line 2 JSON that is no object with a text: [\"b\"]."),
        ("a.jsonl", b'{"txt": "a", "id": 3}', "has in line 1 no key 'text', which data.text_key names (did you mean \"txt\"?)."),
        ("a.jsonl", b'{"body": "a", "id": 3}', "(known: body, id)."),
        ("a.jsonl", b'{"text": ["a"]}', "has in line 1 at key 'text', which data.text_key names, no text but [\"a\"]."),
        ("a.jsonl", b'{"text": "a\\ud800"}', "has in line 1 a lone surrogate '\\ud800', which is no character."),
        ("a.jsonl", b'\n{"text": "n\xe9"}', "has in line 2 what is not UTF-8 (its byte 11 is 0xe9)."),
        ("a.jsonl", b"[" * 100_000, "has in line 1 no JSON ("),
        ("a.jsonl", b'{"text": "a"}\n{"text": "' + b"b" * 5000, "has in line 2 more than 0 MB; a line is one JSON object with one document."),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n{"tex', mtime=0), "has in line 2 no JSON ("),
    ],
)  # fmt: skip
def test_what_is_no_text(tmp_path, monkeypatch, name, content, said):
    if "MB" in said:
        monkeypatch.setattr(json_lines, "LONGEST_LINE", 4000)
    (tmp_path / name).write_bytes(content)
    assert said in refused(tmp_path / name)


def test_places_are_those_in_the_file_from_any_stretch(tmp_path, monkeypatch):
    path = corpora.write(tmp_path / "a.txt", GOOD + b"\xff more")
    assert f"byte {len(GOOD)} is 0xff" in refused(path, (len(GOOD) // 2, len(GOOD) + 3))
    lines = corpora.json_lines(corpora.documents(60)).encode()
    path = corpora.write(tmp_path / "a.jsonl", lines + b"no\n")
    assert "has in line 61 no JSON" in refused(path, (len(lines) // 2, len(lines) + 3))
    monkeypatch.setattr(json_lines, "LONGEST_LINE", 200)
    path = corpora.write(tmp_path / "b.jsonl", "\n\n" + json.dumps({"text": "b" * 3000}))
    assert "has in line 3 more than 0 MB" in refused(path, (1000, 2000))


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read: No such file or directory" in refused(tmp_path / "gone.txt")
    assert "cannot be read: Is a directory" in refused(tmp_path)
