"""The diagnostics of captions, against values worked out by hand."""

import pytest

from evaluation.diagnostics import diagnose, share_of_new


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
def test_a_phrase_that_is_repeated_at_once_is_a_repetition(caption):
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
def test_other_captions_have_no_repetition(caption):
    assert diagnose([caption])["repeated_phrases"] == 0


def test_shares_are_relative_to_all_captions():
    diagnostics = diagnose(["a dog runs", "a dog runs", "a cat on a", "ball ball"])
    assert diagnostics == {
        "bad_endings": 0.25,
        "repeated_phrases": 0.25,
        "distinct_words": 6,
        "distinct_captions": 0.75,
        "mean_length": 3.0,
    }


def test_captions_are_new_if_nobody_wrote_them_for_a_training_image():
    assert share_of_new(["a dog", "a cat"], ["a dog", "a dog", "the dog", "dog"]) == 0.5
    assert share_of_new([], ["a dog"]) is None
