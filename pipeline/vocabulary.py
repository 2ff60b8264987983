"""The vocabulary: the words that a decoder can read and write, and their ids."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from features.commands import PREPARE
from features.errors import UserError
from features.files import read_json, write_json
from pipeline.text import CONTROL, detokenize, tokenizer

# A decoder reads the first three but never writes them: its outputs are the ids from EOS on (see
# `decoder.model.decoders`).
PAD, BOS, UNK, EOS = range(4)
SPECIAL = ("<pad>", "<bos>", "<unk>", "<eos>")
# The most words in a caption. A decoder that never writes EOS stops here.
MAX_LENGTH = 1000


@dataclass(frozen=True)
class Vocabulary:
    """Words by id, the four special ones first, and their counts in the training captions.

    `counts[UNK]` is the total count of the words that were rarer than `min_count`.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    min_count: int
    max_length: int
    tokenizer: str = field(default_factory=tokenizer)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Map each word to its id."""
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of `tokens`, with UNK for unknown ones, followed by EOS.

        A caption longer than `max_length` is cut and gets no EOS: the model would learn to end
        captions in the middle of a sentence.
        """
        ids = [self.ids.get(token, UNK) for token in tokens]
        return [*ids, EOS] if len(ids) <= self.max_length else ids[: self.max_length]

    def strip(self, ids: Iterable[int]) -> list[int]:
        """Return `ids` up to the first EOS or PAD, exclusive."""
        return list(takewhile(lambda i: i not in (EOS, PAD), ids))

    def words_of(self, ids: Iterable[int]) -> list[str]:
        """Return the words of `ids` up to the first EOS or PAD, exclusive."""
        return [self.words[i] for i in self.strip(ids)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the caption of `ids` up to the first EOS or PAD, as `detokenize` joins it."""
        return detokenize(self.words_of(ids))


def build(captions: Iterable[Sequence[str]], min_count: int, max_length: int) -> Vocabulary:
    """Count the tokens of the training captions and keep those seen at least `min_count` times.

    Words are sorted by descending count, then alphabetically. All tokens are counted, although
    training cuts captions to `max_length` tokens.
    """
    counts = Counter(token for caption in captions for token in caption)
    return of_counts(counts.items(), min_count, max_length)


def of_counts(counts: Iterable[tuple[str, int]], min_count: int, max_length: int) -> Vocabulary:
    """Return the vocabulary of words with their counts; see `build`."""
    frequent, rare = {}, 0
    for word, count in counts:
        # A caption may contain the text "<eos>", which must not become a second special word.
        if count >= min_count and word not in SPECIAL:
            frequent[word] = count
        else:
            rare += count
    kept = sorted(frequent, key=lambda word: (-frequent[word], word))
    return Vocabulary(
        words=(*SPECIAL, *kept),
        counts=(0, 0, rare, 0, *(frequent[word] for word in kept)),
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
    """Read and check a vocabulary.

    Raises:
        UserError: the file is missing, lacks a key, has a value of the wrong type or out of range,
            repeats a word, or does not start with the special words.
    """
    content = read_json(path, PREPARE)
    try:
        vocabulary = Vocabulary(
            tuple(map(_word, content["words"])),
            tuple(_count(count, 0) for count in content["counts"]),
            _count(content["min_count"], 1),
            _count(content["max_length"], 1, MAX_LENGTH),
            str(content["tokenizer"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a vocabulary ({error!r}); create it again with {PREPARE} --force"
        ) from error
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
        raise ValueError(f"expected an integer from {least} to {most}, found {value!r:.80}")
    return value
