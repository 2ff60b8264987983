"""The error analysis of `evaluation.mistakes`, and the bad news of `evaluation.concerns`."""

import pytest

from evaluation import concerns
from evaluation.mistakes import analyse


def analysed(*pairs: tuple[str, list[str]]):
    """Analyse captions with their references; return the kinds by name, and all of it."""
    found = analyse(
        {i: caption for i, (caption, _) in enumerate(pairs)},
        {i: references for i, (_, references) in enumerate(pairs)},
    )
    return {kind.name: kind for kind in found.kinds}, found


def confusions(kind) -> list[tuple[str, str, list[int]]]:
    return [(c.written, c.expected, c.images) for c in kind.confusions]


def test_a_colour_is_compared_with_the_colours_of_the_same_noun():
    kinds, _ = analysed(
        ("a red car on green grass", ["a blue car", "the blue vehicle", "A car on the grass ."]),
        ("a black dog", ["a black and white dog", "a dog"]),
        ("a small Red ball", ["the ball is blue", "the blue ball and a red dog", "a ball"]),
        ("a grey cat", ["a gray cat"]),
        ("a pink hat", ["a hat"]),
    )
    colours = kinds["Colours"]
    assert confusions(colours) == [("red", "blue", [0, 2])]
    assert (colours.confirmed, colours.contradicted, colours.unmentioned) == (2, 2, 2)


def test_a_colour_that_all_references_contradict_counts_without_a_common_noun():
    kinds, _ = analysed(
        ("a red car", ["a blue truck", "the blue van", "something blue"]),
        ("a red car", ["a blue truck near a black gate", "a black gate and a blue van"]),
    )
    assert confusions(kinds["Colours"]) == [("red", "blue", [0])]


def test_numbers_and_people_are_compared_too():
    kinds, _ = analysed(
        ("two small brown dogs run", ["three dogs", "3 dogs running", "dogs"]),
        ("a couple of dogs", ["two dogs"]),
        ("a man sits", ["a woman sits", "a lady on a bench", "a person"]),
        ("men talk", ["a man talks to a woman"]),
        ("a girl runs", ["a child runs"]),
    )
    assert confusions(kinds["Numbers"]) == [("two", "three", [0])]
    assert kinds["Numbers"].confirmed == 1
    people = kinds["Men, women, boys, girls"]
    assert confusions(people) == [("man", "woman", [2])]
    assert (people.confirmed, people.contradicted, people.unmentioned) == (1, 1, 1)


def test_things_are_paired_if_that_happens_more_often_than_by_chance():
    skiing = ("a skier on a hill", ["a snowboarder on a hill"] * 2)
    right = ("dogs run", ["a dog runs", "two dogs run"])
    once = ("a horse eats", ["a cow eats", "the cow eats"])
    kinds, _ = analysed(skiing, skiing, *[right] * 8, once)
    assert confusions(kinds["Things and actions"]) == [("skier", "snowboarder", [0, 1])]


def test_words_that_captions_never_or_too_often_use_are_listed():
    _, found = analysed(
        *[("a black dog on the beach", ["a brown dog", "a poodle"])] * 4,
        ("a dog", ["a dog", "a poodle"]),
    )
    assert [(use.word, use.expected) for use in found.never_used] == [
        ("poodle", pytest.approx(2.5)),
        ("brown", pytest.approx(2)),
    ]
    assert [(use.word, use.written) for use in found.overused] == [
        ("beach", 4),
        ("black", 4),
        ("dog", 5),
    ]


def epochs(phase: str, *ciders: float) -> list[dict]:
    return [{"phase": phase, "val": {"CIDEr": cider}} for cider in ciders]


def test_reinforce_that_only_made_things_worse_is_bad_news():
    (sentence,) = concerns.of_epochs(epochs("xe", 0.4, 0.5) + epochs("rl", 0.48, 0.47))
    assert "REINFORCE only made the captions worse" in sentence
    assert "0.480, cross-entropy reached 0.500" in sentence
    assert not concerns.of_epochs(epochs("xe", 0.4, 0.5) + epochs("rl", 0.48, 0.5))
    assert not concerns.of_epochs(epochs("xe", 0.5))


def test_captions_that_end_in_mid_air_repeat_or_are_all_alike_are_bad_news():
    (sentence,) = concerns.of_captions({"bad_endings": 0.62})
    assert sentence.startswith("62% of the captions end in mid-air")
    assert concerns.of_captions({"bad_endings": 0.01, "distinct_captions": 0.6}, 1000) == []
    (sentence,) = concerns.of_captions({"distinct_captions": 0.003}, 1000)
    assert "only 3 different captions for 1,000 images" in sentence
    (sentence,) = concerns.of_captions({"repeated_phrases": 0.3})
    assert "30% of the captions repeat a phrase" in sentence
