"""Captions as people wrote them become plain text and tokens; what was changed is counted."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from features.errors import UserError, first_few
from pipeline.captions import Caption
from pipeline.readers.cells import is_missing, plain_text
from pipeline.text import CONTROL, tokenize

_NAMED = 5  # images that a remark names
# Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without blanks between words; eight of
# their letters in a row are rarely one word.
_WITHOUT_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]{8}"
)


class Cleaning:
    """Tokenizes captions, and counts what was changed or left out; its memory is constant."""

    def __init__(self) -> None:
        self._escaped = self._wordless = self._without_captions = self._unseparated = 0
        self._missing: Counter[str] = Counter()
        self._named: list[str] = []

    def captions(self, file_name: str, texts: Iterable[object]) -> tuple[Caption, ...]:
        """Return the captions of an image, without those that have no word.

        Raises:
            UserError: one of `texts` is not a string.
        """
        parsed = []
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"{file_name}: expected a string as caption, found {text!r}")
            if is_missing(text):
                self._missing[text.strip()] += 1
                text = ""
            self._escaped += (plain := plain_text(text)) != text
            text = plain
            # Newlines and tabs would break the formats that captions are written to later, escape
            # sequences would control terminals, and a lone surrogate (from JSON) has no UTF-8.
            text = " ".join(CONTROL.sub(" ", text).split()).encode(errors="replace").decode()
            self._unseparated += not text.isascii() and bool(_WITHOUT_BLANKS.search(text))
            parsed.append(Caption(text, tuple(tokenize(text))))
        kept = tuple(caption for caption in parsed if caption.tokens)
        self._wordless += len(parsed) - len(kept)
        if not kept:
            self._without_captions += 1
            if len(self._named) < _NAMED:
                self._named.append(file_name)
        return kept

    def remarks(self) -> Iterator[str]:
        """Yield what was changed or left out so far, for the user."""
        if self._escaped:
            yield f"{self._escaped} captions had HTML entities or tags, which became plain text"
        if self._unseparated:
            yield (
                f"{self._unseparated} captions are in a script without blanks between words, such "
                "as Chinese; what stands between two blanks counts as one word, so separate the "
                "words by blanks"
            )
        if self._wordless:
            values = first_few(f"{n} are {value!r}" for value, n in self._missing.items() if value)
            text = f"{self._wordless} captions are empty or have no word, left out"
            yield f"{text}: {values}" if values else text
        if self._without_captions:
            more = self._without_captions - len(self._named)
            named = ", ".join(self._named) + (f" and {more} more" if more else "")
            yield f"{self._without_captions} images have no caption, left out: {named}"
