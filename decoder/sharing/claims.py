"""How often captions name something that the references of their picture also name."""

from collections.abc import Mapping

from evaluation.validation import tokenize_without_java
from evaluation.word_kinds import COLOURS, NUMBERS, PEOPLE


def _of(words: Mapping[str, str], *classes: str) -> tuple[str, ...]:
    """Return the words of some classes."""
    return tuple(word for word, its in words.items() if its in classes)


# Kinds of words that are easy to check. Each kind has groups of words with the same meaning.
_KINDS: dict[str, list[tuple[str, ...]]] = {
    "a colour": [_of(COLOURS, name) for name in sorted(set(COLOURS.values()))],
    "a man or boy, a woman or girl": [_of(PEOPLE, "man", "boy"), _of(PEOPLE, "woman", "girl")],
    "a child": [
        ("boy", "girl", "child", "children", "kid", "kids", "boys", "girls", "baby", "toddler")
    ],
    "a number of two or more": [_of(NUMBERS, name) for name in sorted(set(NUMBERS.values()))],
    "a dog": [("dog", "dogs", "puppy", "puppies")],
    "water, snow, sand or grass": [
        ("water", "ocean", "lake", "river", "pool", "sea", "waves", "wave"),
        *(("snow", "snowy"), ("sand", "sandy", "beach"), ("grass", "grassy", "field", "lawn")),
    ],
}


def count_claims(
    captions: Mapping[int, str], references: Mapping[int, list[str]]
) -> dict[str, tuple[int, int]]:
    """Count the captions with words of each kind, and those that the references confirm.

    A caption is confirmed if, for each of its words of the kind, a reference of its picture has
    that word or another one of the same meaning.

    Args:
        captions: a caption for each image id.
        references: the reference captions of the same images.

    Returns:
        For each kind that occurs, the number of captions with it and how many are confirmed.
    """
    written = tokenize_without_java({image: [text] for image, text in captions.items()})
    confirming = tokenize_without_java(dict(references))
    counts = {}
    for kind, groups in _KINDS.items():
        claimed = confirmed = 0
        for image, (caption,) in written.items():
            words, known = set(caption.split()), set(" ".join(confirming[image]).split())
            meant = [group for group in groups if words.intersection(group)]
            claimed += bool(meant)
            confirmed += bool(meant) and all(known.intersection(group) for group in meant)
        if claimed:
            counts[kind] = (claimed, confirmed)
    return counts
