"""Figures about captions that no score shows: mid-air endings, repetition, length."""

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


def diagnose(captions: Iterable[str]) -> dict[str, float]:
    """Return figures about tokenized captions, at least one.

    They are the share with a bad ending (an empty caption is one), the number of distinct words,
    the share of captions that differ from all before, and the mean number of words.
    """
    texts = [caption.split() for caption in captions]
    return {
        "bad_endings": sum(not words or words[-1] in BAD_ENDINGS for words in texts) / len(texts),
        "distinct_words": len({word for words in texts for word in words}),
        "distinct_captions": len({tuple(words) for words in texts}) / len(texts),
        "mean_length": sum(map(len, texts)) / len(texts),
    }
