"""The words of a query: which of them a captioner knows, and which say what to look for."""

import re
from typing import NamedTuple

from pipeline.vocabulary import Vocabulary

# Words that stand in captions of anything, so a query needs others. The embedding reads them too.
_FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "those", "some", "any", "every", "each"),
        *("all", "both", "either", "neither", "no", "not", "such", "i", "me", "my", "mine"),
        *("you", "your", "yours", "he", "him", "his", "she", "her", "hers", "it", "its", "we"),
        *("us", "our", "ours", "they", "them", "their", "theirs", "who", "whom", "whose"),
        *("which", "what", "where", "when", "why", "how", "there", "here", "of", "in", "on"),
        *("at", "to", "by", "for", "from", "with", "without", "into", "onto", "over", "under"),
        *("near", "next", "through", "across", "along", "around", "between", "behind", "beside"),
        *("above", "below", "against", "during", "before", "after", "up", "down", "out", "off"),
        *("as", "like", "and", "or", "but", "nor", "so", "than", "then", "if", "while"),
        *("because", "until", "is", "are", "was", "were", "be", "been", "being", "am", "has"),
        *("have", "had", "having", "do", "does", "did", "doing", "can", "could", "will", "would"),
        *("shall", "should", "may", "might", "must", "'s", "'re", "'ve", "'ll", "'d", "'m"),
        *("n't"),
    )
)
_WORD = re.compile(r"(?<!\w)'(?:s|re|ve|ll|d|m)(?!\w)|[^\W_]+(?:[-'.&][^\W_]+)*")
_CLITIC = re.compile(r"(?<=\w)(?:n't|'(?:s|re|ve|ll|d|m))$")


class Query(NamedTuple):
    """A query, divided into words."""

    words: list[str]
    """All of them, in lower case."""
    unknown: list[str]
    """The words that the vocabulary lacks, each once."""
    content: list[str]
    """The known words that say what to look for, each once."""


def parse(text: str, vocabulary: Vocabulary) -> Query:
    """Divide a query into words as captions are divided, but without spaCy.

    Args:
        text: what somebody typed.
        vocabulary: the captioner's.
    """
    words: list[str] = []
    for word in _WORD.findall(text.lower().replace("’", "'")):
        clitic = _CLITIC.search(word)
        words += [word] if clitic is None else [word[: clitic.start()], clitic.group()]
    distinct = list(dict.fromkeys(words))
    unknown = [word for word in distinct if word not in vocabulary.ids]
    content = [word for word in distinct if word in vocabulary.ids and is_content(word)]
    return Query(words, unknown, content)


def is_content(word: str) -> bool:
    """Whether a word in lower case says what a picture shows."""
    return word not in _FUNCTION_WORDS
