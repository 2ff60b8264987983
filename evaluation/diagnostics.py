"""Figures about captions that no score shows: mid-air endings, repetition, wealth of words."""

import re
from collections.abc import Iterable

# A caption whose last word is one of these was cut off: REINFORCE without the end token in the
# reward writes "a man on a", and CIDEr likes it.
BAD_ENDINGS = frozenset(
    (
        *("a", "an", "the", "his", "her", "its", "their"),
        *("of", "in", "on", "at", "to", "by", "for", "from", "with", "without", "near", "next"),
        *("into", "onto", "and", "or", "as", "while", "which", "who", "is", "are", "was", "were"),
    )
)

# "the the", "in the grass in the grass", "a hat and a hat". Of the captions that people wrote for
# Flickr8k one in 4,000 has such a phrase; "on a rock on a hill", which is none, is ten times as
# frequent.
_REPEATED = re.compile(r"(?<!\S)(\S+(?: \S+)*?)(?: and)? \1(?!\S)")


def diagnose(captions: Iterable[str]) -> dict[str, float]:
    """Return figures about tokenized captions, at least one.

    They are the share with a bad ending (an empty caption is one), the share with a phrase that is
    repeated at once or after "and", the number of distinct words, the share of captions that differ
    from all before, and the mean number of words.
    """
    texts = [caption.split() for caption in captions]
    return {
        "bad_endings": sum(not words or words[-1] in BAD_ENDINGS for words in texts) / len(texts),
        "repeated_phrases": sum(_REPEATED.search(" ".join(words)) is not None for words in texts)
        / len(texts),
        "distinct_words": len({word for words in texts for word in words}),
        "distinct_captions": len({tuple(words) for words in texts}) / len(texts),
        "mean_length": sum(map(len, texts)) / len(texts),
    }


def share_not_in(training: Iterable[str], captions: Iterable[str]) -> float | None:
    """Return the share of captions, at least one, that nobody wrote for a training image.

    Both must be tokenized alike. Without training captions there is none.
    """
    known = set(training)
    texts = list(captions)
    return sum(text not in known for text in texts) / len(texts) if known else None
