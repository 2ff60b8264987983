"""Neutral captions do not say who is male or female, and stay plain English."""

import pytest

from decoder.captioning.neutral import neutral

CAPTIONS = {
    "a man and a woman sit on a bench": "two people sit on a bench",
    "two men and a woman on a beach": "two people and a person on a beach",
    "a young boy and a young girl are playing": "two young children are playing",
    "men and women wait for a bus": "people wait for a bus",
    "a woman in her kitchen with a child next to her": (
        "a person in their kitchen with a child next to them"
    ),
    "a male umpire and a female in a hat": "an umpire and a person in a hat",
    "an old man looks at his phone while he is walking": (
        "an old person looks at their phone while they are walking"
    ),
    "a policeman on a motorcycle": "a police officer on a motorcycle",
    "a mother holds her son": "a parent holds their child",
    "a dog runs on the grass": "a dog runs on the grass",
    "a german shepherd in a human hand": "a german shepherd in a human hand",
    "a doberman beside a snowman": "a doberman beside a snowman",
    "": "",
}


@pytest.mark.parametrize("text", CAPTIONS)
def test_people_are_named_neutrally(text: str) -> None:
    assert neutral(text) == CAPTIONS[text]
