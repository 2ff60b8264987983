"""Properties of captions that no score shows: cut-off endings, repetitions, vocabulary."""

import re
from collections.abc import Iterable

# A caption that ends in one of these words was cut off. REINFORCE without the end token in the
# reward learns to write "a man on a", which CIDEr rewards.
BAD_ENDINGS = frozenset(
    (
        *("a", "an", "the", "his", "her", "its", "their"),
        *("of", "in", "on", "at", "to", "by", "for", "from", "with", "without", "near", "next"),
        *("into", "onto", "and", "or", "as", "while", "which", "who", "is", "are", "was", "were"),
    )
)

# "the the", "in the grass in the grass", "a hat and a hat". One in 4,000 captions that people wrote
# for Flickr8k has such a phrase. "on a rock on a hill", which is not a repetition, is ten times as
# frequent.
_REPEATED = re.compile(r"(?<!\S)(\S+(?: \S+)*?)(?: and)? \1(?!\S)")


def diagnose(captions: Iterable[str]) -> dict[str, float]:
    """Return statistics of one or more tokenized captions.

    Returns:
        "bad_endings" is the share that is empty or ends in one of `BAD_ENDINGS`;
        "repeated_phrases" the share with a phrase that is repeated immediately or after "and";
        "distinct_words" the number of distinct words; "distinct_captions" the number of distinct
        captions, divided by the number of captions; "mean_length" the mean number of words.
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


def share_of_new(training: Iterable[str], captions: Iterable[str]) -> float | None:
    """Return the share of one or more captions that are not among the `training` captions.

    Both must be tokenized in the same way. Return None if there are no training captions.
    """
    texts = list(captions)
    new, trained = set(texts), False
    for text in training:  # there may be too many to remember
        trained = True
        new.discard(text)
    return sum(text in new for text in texts) / len(texts) if trained else None
