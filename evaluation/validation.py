"""Scores of validation captions during training: fast, and robust against a missing Java."""

import logging
import math
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from evaluation.prepared import PreparedReferences
from evaluation.toolkit import Captions, tokenize
from features.errors import UserError
from features.extras import need

log = logging.getLogger(__name__)

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))(?!\w)")
# Words with inner hyphens and the like are one token, and so are numbers such as 1,000 and 5:30 and
# abbreviations such as u.s.; any other character is a token by itself.
_TOKEN = re.compile(
    r"n't|'(?:s|re|ve|ll|d|m)(?!\w)|(?:[a-z]\.){2,}|\w+(?:(?:[-'/@]|(?<=\d)[.,:](?=\d))\w+)*|[^\w\s]"
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_RENAMED = _BRACKETS | {"cannot": "can not"}
# What the toolkit drops, and the characters that its tokenizer turns into these.
_REMOVED = frozenset(("''", "``", "--", "...", *"'`.?!,:-;", *'"‘’“”–—…'))

OFFICIAL, APPROXIMATE = "PTB", "without Java"


class Validator:
    """Scores candidates against references that are tokenized only once.

    If Java is missing, fails or takes more than `time_limit` seconds, a warning is logged once, and
    `tokenize_without_java` tokenizes candidates and references from then on. The scores are then
    close to the official ones.
    """

    beside = False
    """Whether another process does the work, so that this one can train meanwhile."""

    def __init__(self, references: Captions, time_limit: float = 120.0) -> None:
        """Score against `references`, the reference captions of each validation image.

        Raises:
            UserError: the toolkit is not installed.
        """
        need("pycocoevalcap")
        self._captions = references
        self._time_limit = time_limit
        self._java = True
        self._references: Future[dict[int, list[str]]] | None = None
        self._prepared: PreparedReferences | None = None
        if len(references) == 1:
            log.warning("with one validation image CIDEr is always 0; it needs two or more")

    def begin(self) -> None:
        """Start to tokenize the references in the background, because Java takes a second."""
        if self._references is None:
            self._references = ThreadPoolExecutor(1).submit(self._tokenize, self._captions)

    def close(self) -> None:
        """End what works in the background."""

    @property
    def tokenizer(self) -> str:
        """The tokenizer of the last scores, `OFFICIAL` (the toolkit's) or `APPROXIMATE`."""
        return OFFICIAL if self._java else APPROXIMATE

    def score(
        self, candidates: Mapping[int, str], greedy: Mapping[int, str] | None = None
    ) -> dict[str, float]:
        """Return CIDEr, ROUGE_L and Bleu_1 to Bleu_4 of one caption for each image.

        CIDEr is 0 with a single image.

        Args:
            candidates: a caption for each image.
            greedy: other captions, of which the result has the CIDEr, as "greedy_CIDEr".

        Raises:
            UserError: the image ids differ from those of the references, or no reference has a
                word.
        """
        captions = {
            image: [caption] if greedy is None else [caption, greedy[image]]
            for image, caption in candidates.items()
        }
        tokens, references = self._with_references(captions)
        scores = references.score({image: texts[0] for image, texts in tokens.items()})
        if greedy is not None:
            of_greedy = {image: texts[1] for image, texts in tokens.items()}
            scores["greedy_CIDEr"] = references.cider(of_greedy)
        return {name: 0.0 if math.isnan(value) else value for name, value in scores.items()}

    def _with_references(
        self, captions: Captions
    ) -> tuple[dict[int, list[str]], PreparedReferences]:
        """Return captions and references, tokenized in the same way."""
        self.begin()
        assert self._references is not None
        references, had_java = self._references.result(), self._java
        tokens = self._tokenize(captions)
        if had_java and not self._java:
            references = tokenize_without_java(self._captions)
            self._references = Future()
            self._references.set_result(references)
            self._prepared = None
        if self._prepared is None:
            self._prepared = PreparedReferences(references)
        return tokens, self._prepared

    def _tokenize(self, captions: Captions) -> dict[int, list[str]]:
        if self._java:
            try:
                return tokenize(captions, self._time_limit)
            except (OSError, UserError) as error:
                log.warning("validation continues without the official tokenizer: %s", error)
                self._java = False
        return tokenize_without_java(captions)


def tokenize_without_java(captions: Captions) -> dict[int, list[str]]:
    """Approximate `evaluation.toolkit.tokenize`, for validation only, not for reported scores."""
    return {image: [_tokens(caption) for caption in texts] for image, texts in captions.items()}


def _tokens(caption: str) -> str:
    words = _TOKEN.findall(_CLITIC.sub(r" \1", caption.lower()))
    renamed = (_RENAMED.get(word, word) for word in words)
    return " ".join(word for word in renamed if word not in _REMOVED)
