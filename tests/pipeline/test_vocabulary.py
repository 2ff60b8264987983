import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import UserError
from pipeline import vocabulary
from pipeline.vocabulary import BOS, EOS, PAD, SPECIAL, UNK, Vocabulary, build

CAPTIONS = [["a", "dog", "'s", "tail"], ["a", "dog"], ["a", "cat"]]


def test_special_words_have_the_first_four_ids() -> None:
    words = build(CAPTIONS, 1, 20)
    assert sorted({PAD, BOS, UNK, EOS}) == [0, 1, 2, 3]
    assert [words.words[i] for i in (PAD, BOS, UNK, EOS)] == ["<pad>", "<bos>", "<unk>", "<eos>"]


def test_words_of_the_minimum_count_are_sorted_by_descending_count_then_alphabetically() -> None:
    assert build(CAPTIONS, 1, 20).words[4:] == ("a", "dog", "'s", "cat", "tail")
    kept = build(CAPTIONS, 2, 20)
    assert kept.words[4:] == ("a", "dog")
    assert kept.counts == (0, 0, 3, 0, 3, 2)


def test_a_caption_that_spells_a_special_word_does_not_make_a_second_one() -> None:
    words = build([["<eos>", "<unk>", "dog"]], 1, 20)
    assert words.words == (*SPECIAL, "dog")
    assert words.counts[UNK] == 2


def test_encoding_cuts_a_long_caption_and_adds_no_end_token_to_it() -> None:
    """With an end token, the model would learn to stop in the middle of a sentence."""
    words = build(CAPTIONS, 1, 2)
    assert words.encode(["a", "zebra"]) == [words.ids["a"], UNK, EOS]
    assert words.encode(["a", "zebra", "dog"]) == [words.ids["a"], UNK]


@given(st.lists(st.sampled_from(["a", "dog", "'s", "tail", "cat"]), max_size=20))
def test_known_words_are_unchanged_by_encoding_and_decoding(tokens: list[str]) -> None:
    words = build(CAPTIONS, 1, 20)
    ids = words.encode(tokens)
    assert [words.words[i] for i in ids] == [*tokens, "<eos>"]
    assert words.decode([*ids, words.ids["cat"]]) == " ".join(tokens).replace(" '", "'")


def test_saved_vocabulary_loads_back_unchanged(tmp_path: Path) -> None:
    words = build(CAPTIONS, 2, 7)
    vocabulary.save(words, tmp_path / "vocabulary.json")
    assert vocabulary.load(tmp_path / "vocabulary.json") == words
    content = json.loads((tmp_path / "vocabulary.json").read_text())
    assert content["tokenizer"].startswith("spacy.lang.en 3.")


INVALID_COUNTS = (0, -1, 2**63, 1.0, True, float("inf"), float("nan"), "1", None)


def saved(words: Vocabulary) -> dict[str, object]:
    return {
        "tokenizer": words.tokenizer,
        "min_count": words.min_count,
        "max_length": words.max_length,
        "words": list(words.words),
        "counts": list(words.counts),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": ["a", *SPECIAL[1:], "a"]}, "start with <pad>"),
        ({"words": [*SPECIAL, "a", "a"], "counts": [0] * 6}, "occurs twice"),
        ({"counts": [1]}, "do not match"),
        ({"counts": ["many"]}, "not a vocabulary"),
        ({"words": 5}, "not a vocabulary"),
        *(({"max_length": n}, "expected an integer from 1 to 1000") for n in INVALID_COUNTS),
        *(({"min_count": n}, "expected an integer from 1") for n in INVALID_COUNTS),
        *(({"counts": [n]}, "expected an integer from 0") for n in INVALID_COUNTS[1:]),
        *(({"words": [word]}, "expected a word") for word in ("", "a b", "a\nb", "\x1b[2J", 5)),
    ],
)
def test_damaged_vocabulary_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(saved(build(CAPTIONS, 2, 20)) | change))
    with pytest.raises(UserError, match=message):
        vocabulary.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"words": []}', "nonsense"])
def test_error_for_a_file_that_is_not_a_vocabulary_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"vocabulary\.json"):
        vocabulary.load(path)
