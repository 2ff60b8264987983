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
    "a young man and woman walk": "two young people walk",
    "the bride and groom dance": "the two people dance",
    "a policewoman and a policeman": "two police officers",
    "two men and two women stand": "four people stand",
    "he catches a ball as she carries one": "they catch a ball as they carry one",
    "a boy who thinks he 's flying": "a child who thinks they are flying",
    "a woman smiles as she always does": "a person smiles as they always do",
    "a female sits and a young male swims": "a person sits and a young person swims",
    "two male students and a female runner": "two students and a runner",
    "a man gives her a kiss and lifts her up": "a person gives them a kiss and lifts them up",
    "an actress and her mans hat": "an actor and their person's hat",
    "fishermen and a waitress": "fishers and a server",
    "a policeman on a motorcycle": "a police officer on a motorcycle",
    "a mother holds her son": "a parent holds their child",
    "a dog runs on the grass": "a dog runs on the grass",
    "a german shepherd in a human hand": "a german shepherd in a human hand",
    "spider-man and a doberman beside a snowman": "spider-man and a doberman beside a snowman",
    "a man in a cowboy hat and cowboys in cowboy boots": (
        "a person in a cowboy hat and riders in cowboy boots"
    ),
    "bridesmaids in bridesmaid dresses": "people in bridesmaid dresses",
    "one man and one woman": "two people",
    "in front of one man and a woman": "in front of two people",
    "this boy and this girl": "these two children",
    "another man and another woman": "two other people",
    "every man and woman": "every person",
    "his mother and his father": "their two parents",
    "some men and some women": "some people",
    "": "",
}


@pytest.mark.parametrize("text", CAPTIONS)
def test_people_are_named_neutrally(text: str) -> None:
    assert neutral(text) == CAPTIONS[text]
