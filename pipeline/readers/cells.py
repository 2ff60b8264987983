"""Captions in one cell of a table: one text, a list in Python, JSON or NumPy form, or nothing."""

import ast
import html
import io
import json
import math
import re
import tokenize
from typing import Any

from features.errors import UserError

# What programs write into a cell without a value.
_MISSING = {"", "nan", "null", "none", "n/a", "#n/a", "<na>", "na", "nil", r"\n", "undefined", "-"}
_MISSING |= {"#name?", "#ref!", "#value!", "#div/0!", "#null!", "#num!"}  # errors of spreadsheets
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|[a-zA-Z][a-zA-Z0-9]*);")
_TAG = re.compile(r"</?(?:a|b|br|div|em|font|i|p|span|strong|u)(?:\s[^<>]*)?/?>", re.IGNORECASE)
# Several captions in one text, as some programs join them.
_JOINT = re.compile(r"\|\|?|###|<sep>|\[SEP\]", re.IGNORECASE)
# How Python and NumPy print containers: array(['a', 'b'], dtype=object), set(['a', 'b']).
_WRAPPED = re.compile(
    r"(?:array|list|tuple|set|frozenset)\(\s*([\[({].*[\])}])\s*(?:,\s*dtype=[^][()]*)?\)",
    re.DOTALL,
)
# Keys under which data sets store the text of a caption: Karpathy's "raw", COCO's "caption".
_TEXT_KEYS = ("raw", "caption", "text", "sentence", "value")


def is_missing(value: object) -> bool:
    """Whether a value stands for no value: None, NaN, or a text such as "", "nan" or "NULL"."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in _MISSING)


def plain_text(text: str) -> str:
    """Return `text` with HTML entities (also doubly escaped ones) as characters, without tags."""
    for _ in range(3):
        if "&" not in text or not _ENTITY.search(text):
            break
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return _TAG.sub(" ", text) if "<" in text else text


def captions_in(value: Any) -> list[str]:
    """Return the captions of a cell; a missing value gives one, such as "" or "nan".

    Raises:
        UserError: the value is no text and no list of texts, a list of single words, or a text of
            several captions.
    """
    if is_missing(value):
        return [_text_of(value)]
    if isinstance(value, str):
        match = _JOINT.search(value)
        if match and sum(len(part.split()) > 1 for part in _JOINT.split(value)) > 1:
            raise UserError(
                f"expected one caption, found several joined by {match[0]!r}: {value!r:.80}; put "
                "them in a list or in columns of their own"
            )
        listed = _written_list(value.strip())
        return captions_in(listed) if listed is not None else [value]
    if isinstance(value, dict):
        return [_text_of(value)]
    if not isinstance(value, list):
        raise UserError(f"expected a string as caption, found {value!r:.80}")
    texts = [_text_of(item) for item in value]
    if (
        len(texts) > 2
        and all(len(text.split()) < 2 for text in texts)
        and not all(map(is_missing, texts))
    ):
        raise UserError(
            f"expected a list of captions, found a list of words: {value!r:.80}; join them to "
            "sentences, or name other columns with --columns"
        )
    return texts


def _text_of(item: Any) -> str:
    if isinstance(item, str):
        return item
    if is_missing(item):
        return "" if item is None else "nan"
    if isinstance(item, dict):
        for key in _TEXT_KEYS:
            if isinstance(item.get(key), str):
                return str(item[key])
    raise UserError(f"expected a string as caption, found {item!r:.80}")


def _written_list(text: str) -> list[Any] | None:
    """Return the list that a cell holds as text; None if it is an ordinary caption.

    Lists are in JSON, in Python (also as a tuple or a set), or as NumPy prints an array of strings,
    without commas.

    Raises:
        UserError: the cell begins as a list of strings does and cannot be read as one.
    """
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1]
    if not re.match(r"""[\[({]\s*([bruBRU]?['"]|[\[{]\s*['"]|[\])}]$)""", text) and not (
        text.startswith("[") and re.match(r"\[\s*(None|null|nan|NaN|array)\b", text)
    ):
        if re.fullmatch(r"\[(?=[^][]*, )[^][]*\]", text):  # as Java writes a list: [a dog, a cat]
            raise UserError(f"expected a list of captions in Python or JSON, found {text!r:.80}")
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _python_list(text)
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    if text.startswith(("(", "{")):
        return None  # a caption in brackets
    raise UserError(f"expected a list of captions in Python or JSON, found {text!r:.80}")


def _python_list(text: str) -> Any:
    """Return the list or dict that `text` is in Python, None if it is neither.

    Strings that follow each other without a comma are separate, which Python would join.
    """
    text = re.sub(r"\bnan\b(?=\s*[,\])}])", "None", text)
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(f"({text})").readline))
        pieces, previous = [], None
        for token in tokens[1:]:
            if token.type == tokenize.STRING and previous == tokenize.STRING:
                pieces.append(",")
            if token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER):
                pieces.append(token.string)
                previous = token.type
        value = ast.literal_eval(" ".join(pieces)[:-1].strip())
    except (SyntaxError, ValueError, tokenize.TokenError, MemoryError, RecursionError, IndexError):
        return None
    if isinstance(value, (tuple, set)):
        # A set has no order; sorted, so that the result is the same on every run.
        return list(value) if isinstance(value, tuple) else sorted(value, key=repr)
    return value if isinstance(value, (list, dict)) else None
