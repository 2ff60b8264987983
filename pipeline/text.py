"""From a caption to tokens and back to a sentence that people read."""

import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

# Written to vocabulary.json, so that a change here is seen there.
TOKENIZER = (
    f"spacy.lang.en {version('spacy')}, lower case, hyphenated words whole, punctuation dropped"
)

# Characters that end a line, or steer the terminal they are printed on.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_CLITICS = ("n't", "'s", "'re", "'ve", "'ll", "'d", "'m")


@cache
def _spacy_tokenizer() -> Callable[[str], Iterable[Any]]:
    # Imported here: spaCy takes longer to import than everything else `pipeline.prepare` does.
    from spacy.lang.en import English
    from spacy.util import compile_infix_regex

    language: Any = English()
    # The scorer's PTB tokenizer keeps "t-shirt" whole, so the vocabulary does too.
    infixes = [infix for infix in language.Defaults.infixes if "-|–|—" not in infix]
    language.tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
    return language.tokenizer


def tokenize(caption: str) -> list[str]:
    """Split an English caption into lower-case words without punctuation.

    Hyphenated words stay whole and clitics are split off ("dog's" gives "dog", "'s"), as the PTB
    tokenizer of the official scorer does: of 34,963 of the 35,000 captions of Flickr8k's train and
    dev splits it makes the same words as of `detokenize(tokenize(caption))`.
    """
    words = _spacy_tokenizer()(" ".join(caption.lower().replace("’", "'").split()))
    return [sys.intern(str(word)) for word in words if any(c.isalnum() for c in str(word))]


def detokenize(tokens: Iterable[str]) -> str:
    """Join tokens into plain lower-case text, clitics rejoined: the form that is scored."""
    text = ""
    for token in tokens:
        text += token if token in _CLITICS or not text else f" {token}"
    return text


def as_sentence(text: str) -> str:
    """Return `text` as people expect to read it: a capital first, a full stop last."""
    return f"{text[0].upper()}{text[1:]}." if text else ""
