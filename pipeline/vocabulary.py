"""The vocabulary: which words a decoder knows, and their ids."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from features.errors import UserError
from features.files import read_json, write_json
from pipeline.text import CONTROL, TOKENIZER, detokenize

# A decoder only ever reads the first three: it writes ids from EOS on, so that none of the three
# can be generated (see `decoder.model.decoders`).
PAD, BOS, UNK, EOS = range(4)
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
# Words of a caption; so long does a decoder write that never ends one by itself.
MAX_LENGTH = 1000


@dataclass(frozen=True)
class Vocabulary:
    """Words by id, the four special ones first; `counts` are those in the training captions.

    `counts[UNK]` is the number of training words that fell below `min_count`.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    min_count: int
    max_length: int
    tokenizer: str = TOKENIZER

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of `tokens`, unknown ones as UNK, then EOS.

        Of a longer caption the first `max_length` ids are returned, without EOS: a model that
        learns to end there would learn to end in mid-air.
        """
        ids = [self.ids.get(token, UNK) for token in tokens]
        return [*ids, EOS] if len(ids) <= self.max_length else ids[: self.max_length]

    def strip(self, ids: Iterable[int]) -> list[int]:
        """Return `ids` up to the first EOS or PAD, without it."""
        return list(takewhile(lambda i: i not in (EOS, PAD), ids))

    def words_of(self, ids: Iterable[int]) -> list[str]:
        """Return the word of each of `ids`, up to the first EOS or PAD."""
        return [self.words[i] for i in self.strip(ids)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` up to the first EOS (see `pipeline.text.detokenize`)."""
        return detokenize(self.words_of(ids))


def build(captions: Iterable[Sequence[str]], min_count: int, max_length: int) -> Vocabulary:
    """Count the tokens of the training captions and keep those seen `min_count` times.

    Words are ordered by falling count, then by alphabet. Counting sees whole captions, although
    training cuts them to `max_length` tokens.
    """
    counts = Counter(token for caption in captions for token in caption)
    # A caption may contain the text "<eos>"; it must not become a second special word.
    kept = [word for word, n in counts.items() if n >= min_count and word not in SPECIAL]
    kept.sort(key=lambda word: (-counts[word], word))
    rare = sum(counts.values()) - sum(counts[word] for word in kept)
    return Vocabulary(
        words=(*SPECIAL, *kept),
        counts=(0, 0, rare, 0, *(counts[word] for word in kept)),
        min_count=min_count,
        max_length=max_length,
    )


def save(vocabulary: Vocabulary, path: Path) -> None:
    """Write `vocabulary` to `path` as JSON, atomically."""
    write_json(
        path,
        {
            "tokenizer": vocabulary.tokenizer,
            "min_count": vocabulary.min_count,
            "max_length": vocabulary.max_length,
            "words": vocabulary.words,
            "counts": vocabulary.counts,
        },
    )


def load(path: Path) -> Vocabulary:
    """Read a vocabulary and check it.

    Raises:
        UserError: the file is missing, lacks a key, has a value of another type or out of its
            range, repeats a word or does not start with the special words.
    """
    content = read_json(path, "python -m pipeline.prepare")
    try:
        vocabulary = Vocabulary(
            tuple(map(_word, content["words"])),
            tuple(_count(count, 0) for count in content["counts"]),
            _count(content["min_count"], 1),
            _count(content["max_length"], 1, MAX_LENGTH),
            str(content["tokenizer"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a vocabulary ({error!r}); prepare it anew") from error
    if vocabulary.words[: len(SPECIAL)] != SPECIAL:
        raise UserError(f"{path}: expected the words to start with {' '.join(SPECIAL)}")
    if len(set(vocabulary.words)) != len(vocabulary) or len(vocabulary.counts) != len(vocabulary):
        raise UserError(f"{path}: a word occurs twice, or the counts do not match the words")
    return vocabulary


def _word(value: Any) -> str:
    if type(value) is not str or not value or any(map(str.isspace, value)) or CONTROL.search(value):
        raise ValueError(f"expected a word, found {value!r:.80}")
    return value


def _count(value: Any, least: int, most: int = 2**63 - 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected a whole number from {least} to {most}, found {value!r:.80}")
    return value
