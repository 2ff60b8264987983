import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import text
from pipeline.text import as_sentence, detokenize, query_words, tokenize

# A caption, its tokens, and the text that is scored.
TRICKY = [
    (
        "The man's t-shirt can't be washed.",
        "the man 's t-shirt ca n't be washed",
        "the man's t-shirt can't be washed",
    ),
    ("They're here, aren't they?", "they 're here are n't they", "they're here aren't they"),
    ("I'll say we'd've gone", "i 'll say we 'd 've gone", "i'll say we'd've gone"),
    ("I'm two dogs' tails", "i 'm two dogs tails", "i'm two dogs tails"),
    ("The woman’s hat isn’t blue", "the woman 's hat is n't blue", "the woman's hat isn't blue"),
    ('A sign says "STOP" .', "a sign says stop", "a sign says stop"),
    ("a 3-year-old, 2.5 apples", "a 3-year-old 2.5 apples", "a 3-year-old 2.5 apples"),
    ("number 7 of 1,000 runners", "number 7 of 1,000 runners", "number 7 of 1,000 runners"),
    ("a black-and-white dog - (old)", "a black-and-white dog old", "a black-and-white dog old"),
    ("wait ... what ?!", "wait what", "wait what"),
    ("a café in Zürich", "a café in zürich", "a café in zürich"),
    ("line one\nline\ttwo", "line one line two", "line one line two"),
    ("", "", ""),
    (" .,!? ", "", ""),
]


@pytest.mark.parametrize(("caption", "tokens", "text"), TRICKY)
def test_tricky_captions_have_the_expected_tokens_and_scored_text(
    caption: str, tokens: str, text: str
) -> None:
    assert tokenize(caption) == tokens.split()
    assert detokenize(tokens.split()) == text


def test_sentence_has_a_capital_and_one_full_stop() -> None:
    assert as_sentence("a dog runs") == "A dog runs."
    assert as_sentence("") == ""


WORDS = st.sampled_from(
    ["a", "dog", "t-shirt", "man", "'s", "n't", "is", "black-and-white", "3", "they", "'re", "two"]
)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_tokens_of_any_text_have_a_letter_or_digit_and_no_space(text: str) -> None:
    for token in tokenize(text):
        assert any(c.isalnum() for c in token)
        assert token == token.lower() or not token.lower().islower()
        assert not any(c.isspace() for c in token)


@given(st.lists(WORDS, max_size=12))
def test_detokenized_text_has_the_characters_of_the_tokens_in_order(tokens: list[str]) -> None:
    assert detokenize(tokens).replace(" ", "") == "".join(tokens)


@pytest.mark.parametrize("caption", [caption for caption, _, _ in TRICKY])
def test_tokenizing_the_scored_text_again_gives_the_same_tokens(caption: str) -> None:
    tokens = tokenize(caption)
    assert tokenize(detokenize(tokens)) == tokens


@pytest.mark.parametrize(
    "sentence",
    [
        "A black-and-white dog's ball, isn't it?",
        "Two men  don’t (really) play\tT-shirt 3-on-3!",
        "the boy's bike and the boys' bikes can't; they're 2 of 10",
        "...",
    ],
)
def test_a_query_has_the_words_that_captions_have(sentence):
    assert query_words(sentence) == tokenize(sentence)


def test_the_tokenizer_does_not_remember_every_word_for_ever(monkeypatch):
    monkeypatch.setattr(text, "_MOST_WORDS", len(text._spacy().vocab.strings) + 200)
    for number in range(300):
        assert tokenize(f"It isn't w{number}.") == ["it", "is", "n't", f"w{number}"]
        assert len(text._spacy().vocab.strings) < text._MOST_WORDS + 10
