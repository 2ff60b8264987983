"""Figures about captions, by hand."""

import pytest

from evaluation.diagnostics import diagnose, share_not_in


@pytest.mark.parametrize(
    "caption",
    [
        "the the",
        "a dog dog runs",
        "a dog in the grass in the grass",
        "a man in a hat and a hat",
        "a man and a woman and a woman stand",
        "dogs and dogs",
    ],
)
def test_a_phrase_said_twice_on_end_is_a_repetition(caption):
    assert diagnose([caption])["repeated_phrases"] == 1


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a",
        "a man on a rock on a hill",
        "a man and a woman and a dog",
        "the theme",
        "a cat at",
        "two boys and two girls",
        "a band and bands",
    ],
)
def test_other_words_are_none(caption):
    assert diagnose([caption])["repeated_phrases"] == 0


def test_shares_are_of_all_captions():
    figures = diagnose(["a dog runs", "a dog runs", "a cat on a", "ball ball"])
    assert figures == {
        "bad_endings": 0.25,
        "repeated_phrases": 0.25,
        "distinct_words": 6,
        "distinct_captions": 0.75,
        "mean_length": 3.0,
    }


def test_captions_are_new_if_nobody_wrote_them_for_a_training_image():
    assert share_not_in(["a dog", "a cat"], ["a dog", "a dog", "the dog", "dog"]) == 0.5
    assert share_not_in([], ["a dog"]) is None
