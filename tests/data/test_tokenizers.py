import hashlib
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from cdcd_jax.config import DataConfig, UserError
from cdcd_jax.data import tokenizers, unigram


def story() -> str:
    """Lines of made-up words, some frequent and most rare, with every kind of white space and what looks like markup."""
    rng = random.Random(0)
    syllables = ["".join(rng.choices("bcdfglmnprst", k=rng.randrange(1, 3))) + rng.choice("aeiou") for _ in range(60)]
    words = ["".join(rng.choices(syllables, k=rng.randrange(1, 4))) for _ in range(400)]
    lines = [" ".join(rng.choices(words, [1 / (i + 1) for i in range(400)], k=8)) for _ in range(300)]
    return "".join(f"The {line},\n\tand  <unk> <s> </s> <0x41> [8] naïve – £{i}!\r\n\n" for i, line in enumerate(lines))


STORY = story()
ODD = "".join(map(chr, range(1, 128))) + "\u2581\u2585\u2047\u2028\u3000\u00a0\u00ad\ufeff\ufffd\ue000\ue001\U0001f600e\u0301é" + "\ufb01"


def make(name: str, text: str, vocab_size: int = 200, train_text: str | None = None) -> tokenizers.Tokenizer:
    return tokenizers.train(DataConfig(tokenizer=name, vocab_size=vocab_size), text if train_text is None else train_text, text)


def random_texts(text: str, number: int = 200, seed: int = 0) -> list[str]:
    """Random strings over the text's characters, some uniform, some mostly white space, some pieces of the text stuck together."""
    rng = random.Random(seed)
    alphabet = sorted(set(text))
    strings = ["", *alphabet]
    for i in range(number):
        if i % 3 == 0:
            strings.append("".join(rng.choices(alphabet, k=rng.randrange(1, 300))))
        elif i % 3 == 1:
            strings.append("".join(rng.choices([c for c in alphabet if c.isspace()] + ["a"], k=rng.randrange(1, 30))) if "a" in alphabet else " ")
        else:
            starts = [rng.randrange(len(text)) for _ in range(5)]
            strings.append("".join(text[start : start + rng.randrange(1, 20)] for start in starts))
    return [s for s in strings if set(s) <= set(alphabet)]


@pytest.mark.parametrize("name", ["byte", "char", "sentencepiece"])
@pytest.mark.parametrize("text", [STORY, STORY + ODD, STORY + "".join(map(chr, range(0x4E00, 0x5000)))], ids=["story", "odd", "many"])
def test_round_trips(name, text):
    vocab_size = 620 if len(set(text)) > 500 else 300 if ODD in text else 200
    tokenizer = make(name, text, vocab_size)
    assert isinstance(tokenizer, tokenizers.Tokenizer)
    assert tokenizer.name == name
    assert tokenizer.pad_id is None
    for string in [text, *random_texts(text)]:
        ids = tokenizer.encode(string)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == string
        assert not len(ids) or 0 <= ids.min() and ids.max() < tokenizer.vocab_size
    if name == "sentencepiece":
        assert tokenizer.vocab_size == vocab_size
    if name == "char":
        assert tokenizer.vocab_size == len(set(text)) and len(tokenizer.encode(text)) == len(text)


def test_the_king_james_comes_back(kjv, kjv_corpus):
    tokenizer = kjv_corpus.tokenizer
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode(tokenizer.encode(kjv)) == kjv
    assert kjv_corpus.token_counts.min() > 0  # no id is wasted
    train = kjv_corpus.splits["train"]
    assert 2.7 < train.num_characters / train.num_tokens < 2.9
    for string in random_texts(kjv, 300):
        assert tokenizer.decode(tokenizer.encode(string)) == string


def test_a_word_is_cut_alike_wherever_it_stands(kjv, kjv_corpus):
    tokenizer = kjv_corpus.tokenizer
    for start in range(1000, len(kjv), 400_000):
        start = kjv.index(" ", start)
        middle = kjv.index(" ", start + 300)
        first, second = kjv[start:middle], kjv[middle : middle + 200]
        assert np.array_equal(tokenizer.encode(first + second), np.concatenate([tokenizer.encode(first), tokenizer.encode(second)]))


def test_pieces_are_read_as_text():
    tokenizer = make("sentencepiece", STORY)
    ids = tokenizer.encode("The bat tin\nlet")
    assert "".join(tokenizer.piece(i) for i in ids) == "The bat tin\nlet"
    assert make("byte", "").piece(0xE2) == "<0xE2>" and make("byte", "").piece(65) == "A" and make("byte", "").piece(10) == "\n"
    assert make("char", "ba").piece(0) == "a"


def test_any_ids_decode_and_ids_outside_are_refused():
    many = STORY + "".join(map(chr, range(0x4E00, 0x5000)))
    for tokenizer in (make("byte", ""), make("char", STORY), make("sentencepiece", STORY), make("sentencepiece", many, 600)):
        ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 2000)
        assert "\u2047" not in tokenizer.decode(ids) and len(tokenizer.decode(ids)) > 500
        assert all(tokenizer.piece(i) for i in range(tokenizer.vocab_size))
        assert tokenizer.decode([]) == ""
        for bad in (-1, tokenizer.vocab_size):
            with pytest.raises(UserError, match=f"token id {bad} lies outside"):
                tokenizer.decode([0, bad])


@pytest.mark.parametrize("name", ["char", "sentencepiece"])
def test_what_it_lacks_is_refused_by_name(name):
    tokenizer = make(name, STORY)
    for character in ("Ω", "\u2581", "\u2585", "\x00", "\ue000", "\u2047", "漢"):
        with pytest.raises(UserError, match="lacks the characters") as error:
            tokenizer.encode(f"an {character} era")
        assert repr(character) in str(error.value)
    with pytest.raises(UserError, match="'Ω' 'Ψ'|'Ψ' 'Ω'"):
        tokenizer.encode("ΨΩΨ")


@pytest.mark.parametrize("name", ["byte", "char", "sentencepiece"])
def test_lone_surrogates_are_refused(name):
    with pytest.raises(UserError, match="surrogate '.udc80' at character 4"):
        make(name, STORY).encode("The \udc80")


def test_byte_fallback_says_what_the_alphabet_lacks():
    text = STORY + "".join(map(chr, range(0x4E00, 0x5000)))
    tokenizer = make("sentencepiece", text, 600)
    assert tokenizer.decode(tokenizer.encode("The Ω 漢 😀")) == "The Ω 漢 😀"
    assert len(tokenizer.encode("😀")) == 4
    with pytest.raises(UserError, match="\u2581"):
        tokenizer.encode("\u2581")


def test_characters_of_the_held_out_text_alone_are_known():
    for vocab_size in (100, 90, 620):
        valid = "Ωé\u2581~" + ("".join(map(chr, range(0x4E00, 0x5000))) if vocab_size > 512 else "")
        tokenizer = make("sentencepiece", STORY + valid, vocab_size, train_text=STORY)
        assert tokenizer.vocab_size == vocab_size
        assert tokenizer.decode(tokenizer.encode(valid)) == valid


def test_training_is_on_the_training_text_alone():
    first = make("sentencepiece", STORY + "zebra " * 1000, 100, train_text=STORY + "zebra")
    second = make("sentencepiece", STORY + "zebra " * 5, 100, train_text=STORY + "zebra")
    assert first.fingerprint == second.fingerprint


def test_training_is_deterministic_and_silent(tmp_path, capfd):
    (tmp_path / "story.txt").write_text(STORY, newline="")
    program = (
        "import sys; from cdcd_jax.config import DataConfig; from cdcd_jax.data import tokenizers; text = open(sys.argv[1], newline='').read()\n"
        "print(tokenizers.train(DataConfig(vocab_size=150), text, text + 'Ω漢').fingerprint)"
    )
    seen = {make("sentencepiece", STORY + "Ω漢", 150, train_text=STORY).fingerprint}
    assert capfd.readouterr() == ("", "")
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "story.txt")],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        )
        assert done.stderr == ""
        seen.add(done.stdout.strip())
    assert len(seen) == 1


def test_the_sample_of_a_long_text_is_the_same_each_time(monkeypatch):
    whole = make("sentencepiece", STORY)
    monkeypatch.setattr(unigram, "TRAINING_CHARACTERS", len(STORY) // 2)
    first, second = make("sentencepiece", STORY, 100), make("sentencepiece", STORY, 100)
    assert first.fingerprint == second.fingerprint != whole.fingerprint
    assert first.decode(first.encode(STORY)) == STORY


def test_a_vocabulary_too_large_is_refused_with_the_largest(capfd):
    with pytest.raises(UserError, match="at most ([0-9]+)") as error:
        make("sentencepiece", STORY, 5000)
    largest = int(str(error.value).split("at most ")[1].split()[0])
    assert capfd.readouterr() == ("", "")
    assert make("sentencepiece", STORY, largest).vocab_size == largest
    with pytest.raises(UserError):
        make("sentencepiece", STORY, largest + 1)


def test_a_vocabulary_too_small_is_refused_with_the_smallest():
    smallest = len(set(STORY))
    with pytest.raises(UserError, match=f"at least {smallest} "):
        make("sentencepiece", STORY, smallest - 1)
    assert make("sentencepiece", STORY, smallest).vocab_size == smallest
    many = "".join(map(chr, range(0x4E00, 0x5200)))
    with pytest.raises(UserError, match="at least 512 "):
        make("sentencepiece", many, 511)
    assert make("sentencepiece", many, 512).vocab_size == 512


@pytest.mark.parametrize(
    "text", ["ACGTTGCA" * 500, "word\n" * 300, "a", "\n", " ", "   \n\n\n   ", "x" * 5000, (" " + "é" * 200) * 96], ids=lambda text: repr(text[:6])
)
def test_texts_of_odd_shapes(text):
    tokenizer = make("sentencepiece", text, len(set(text)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_unknown_tokenizer():
    with pytest.raises(UserError, match="data.tokenizer 'word' is unknown"):
        make("word", STORY)


MADE = [("byte", STORY, 0), ("char", STORY + ODD, 0), ("sentencepiece", STORY, 150), ("sentencepiece", STORY + ODD, 300)]


@pytest.mark.parametrize("name, text, vocab_size", MADE)
def test_saved_and_loaded(tmp_path, name, text, vocab_size):
    tokenizer = make(name, text, vocab_size)
    tokenizer.save(tmp_path / "a" / "tokenizer")
    again = tokenizers.load(str(tmp_path / "a" / "tokenizer"))
    assert type(again) is type(tokenizer)
    assert (again.name, again.vocab_size, again.fingerprint) == (tokenizer.name, tokenizer.vocab_size, tokenizer.fingerprint)
    assert np.array_equal(again.encode(text), tokenizer.encode(text))
    assert [again.piece(i) for i in range(again.vocab_size)] == [tokenizer.piece(i) for i in range(again.vocab_size)]
    again.save(tmp_path / "b")
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / "tokenizer" / file.name).read_bytes()


def test_fingerprints_tell_tokenizers_apart():
    made = [make("byte", ""), make("char", "ab"), make("char", "abc"), make("sentencepiece", STORY, 100), make("sentencepiece", STORY, 101)]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)
    assert make("char", "ab").fingerprint == make("char", "bab").fingerprint


@pytest.mark.parametrize("name, text, vocab_size", [("byte", STORY + ODD, 0), ("char", STORY + ODD, 0), ("sentencepiece", STORY + ODD, 300)])
def test_characters_of_tokens_add_up(name, text, vocab_size):
    """Wherever a text is cut, even within a character, its parts' characters are the text's."""
    tokenizer = make(name, text, vocab_size)
    ids = tokenizer.encode(text)
    assert len(tokenizer.characters) == tokenizer.vocab_size
    for cut in (0, 7, len(ids) - 3, len(ids)):
        assert tokenizer.characters[ids[:cut]].sum() + tokenizer.characters[ids[cut:]].sum() == len(text)


def test_pad_is_one_token_more_which_no_text_has(tmp_path):
    plain = make("sentencepiece", STORY, 150)
    padded = tokenizers.WithPad(plain)
    assert isinstance(padded, tokenizers.Tokenizer)
    assert (padded.name, padded.vocab_size, padded.pad_id) == ("sentencepiece", 151, 150) and padded.fingerprint != plain.fingerprint
    ids = padded.encode("The bat")
    assert np.array_equal(ids, plain.encode("The bat"))
    assert padded.decode(np.insert(ids, [0, 1, len(ids)], 150)) == "The bat" and padded.decode([150]) == ""
    assert padded.piece(150) == "<pad>" and padded.piece(3) == plain.piece(3)
    assert padded.characters[150] == 0 and np.array_equal(padded.characters[:150], plain.characters)
    with pytest.raises(UserError, match="token id 151 lies outside"):
        padded.decode([151])
    padded.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert (again.pad_id, again.fingerprint) == (150, padded.fingerprint)
    assert tokenizers.without_pad(again).fingerprint == plain.fingerprint == tokenizers.without_pad(plain).fingerprint


def test_a_missing_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in .*tokenizer.json is missing"):
        tokenizers.load(tmp_path)


def spoil_json(change):
    def spoil(directory):
        path = directory / "tokenizer.json"
        about = json.loads(path.read_text())
        change(about)
        path.write_text(json.dumps(about))

    return spoil


def flip_a_byte_of_the_model(directory):
    model = bytearray((directory / "spm.model").read_bytes())
    model[len(model) // 2] ^= 1
    (directory / "spm.model").write_bytes(bytes(model))


def another_model(directory):
    other = make("sentencepiece", STORY, 149)
    other.save(directory / "other")
    (directory / "spm.model").write_bytes((directory / "other" / "spm.model").read_bytes())


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("byte", spoil_json(lambda about: about.update(fingerprint=hashlib.sha256(b"").hexdigest()))),
        ("byte", spoil_json(lambda about: about.update(vocab_size=255))),
        ("char", spoil_json(lambda about: about.update(alphabet=about["alphabet"] + "\u4e00"))),
        ("char", spoil_json(lambda about: about.update(alphabet=None))),
        ("char", spoil_json(lambda about: about.pop("alphabet"))),
        ("char", spoil_json(lambda about: about.update(name="word"))),
        ("char", lambda directory: (directory / "tokenizer.json").write_text('{"name": "char", ')),
        ("char", lambda directory: (directory / "tokenizer.json").write_text("[]")),
        ("char", lambda directory: (directory / "tokenizer.json").write_bytes(b"\xff\xfe")),
        ("sentencepiece", spoil_json(lambda about: about.update(stand_ins={}))),
        ("sentencepiece", spoil_json(lambda about: about.update(stand_ins=[1]))),
        ("sentencepiece", lambda directory: (directory / "spm.model").unlink()),
        ("sentencepiece", lambda directory: (directory / "spm.model").write_bytes(b"")),
        ("sentencepiece", lambda directory: (directory / "spm.model").write_bytes((directory / "spm.model").read_bytes()[:-100])),
        ("sentencepiece", flip_a_byte_of_the_model),
        ("sentencepiece", another_model),
    ],
)
def test_a_damaged_tokenizer_is_noticed(tmp_path, name, spoil, capfd):
    make(name, STORY, 150).save(tmp_path)
    tokenizers.load(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match="is damaged|is not the one that was saved") as error:
        tokenizers.load(tmp_path)
    assert str(tmp_path) in str(error.value)
