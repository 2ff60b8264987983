"""Damage to bytes, text and JSON, as attackers, disks and networks cause it.

Each function draws from a `random.Random`. With hypothesis's own one, hypothesis can shrink a
failing case; with a plain one, `tests/fuzz/run.py` tries about one case a millisecond.
"""

import json
from copy import deepcopy
from random import Random
from typing import Any

# Lengths, offsets and counts, as a hostile header would claim them.
_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)

_SIGNS = ('"', "'", ",", ";", "\t", "\n", "\r", "\r\n", "\0", "#", "\\", "{", "}", "[", "\ufeff")
_TEXTS = (
    *_SIGNS,
    "\u2028",
    "\x85",
    "\x1b[2J",
    "../",
    "/etc/passwd",
    "é",
    "😀",
    "\u202e",
    "a" * 1000,
)

# JSON that no encoder writes; it replaces placeholders after encoding.
_RAW = (
    "[" * 100_000,
    '{"a":' * 100_000,
    "9" * 5000,
    "1e999",
    "-1e999",
    '"\\ud83d"',
    '"\\u0000"',
    "NaN",
    "-",
    '{"a": 1, "a": 2}',
    "",
)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "7",
    "<eos>",
    "train",
    "\0",
    "a\nb",
    "../x",
    "/etc/passwd",
    "x" * 1000,
    "x/" * 3000,
    [],
    [[]],
    {},
    {"": None},
    [0] * 1000,
    *(f"@raw{i}@" for i in range(len(_RAW))),
)


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Return `data` with one to four changes to bytes, runs or numbers, or truncated."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        size = len(changed)
        start = random.randint(0, max(size - 1, 0))
        end = min(size, start + random.choice((1, 2, 4, 8, 64, 1024)))
        match random.randint(0, 6):
            case 0:
                changed[start:end] = random.randbytes(end - start)
            case 1:
                changed[start:end] = bytes([random.choice((0, 255))]) * (end - start)
            case 2:
                width = random.choice((1, 2, 4, 8))
                order = random.choice(("little", "big"))
                number = random.choice(_NUMBERS) & (2 ** (8 * width) - 1)
                changed[start : start + width] = number.to_bytes(width, order)
            case 3:
                del changed[start:]
            case 4:
                del changed[start:end]
            case 5:
                changed[start:start] = changed[start:end] * random.choice((1, 2, 100))
            case 6 if size:
                changed[start] ^= 1 << random.randint(0, 7)
    return bytes(changed)


def damage_text(text: str, random: Random) -> str:
    """Return `text` with up to three short pieces replaced by special characters or deleted."""
    for _ in range(random.randint(1, 3)):
        start = random.randint(0, len(text))
        end = min(len(text), start + random.randint(0, 20))
        text = text[:start] + random.choice((*_TEXTS, "")) + text[end:]
    return text


def damage_json(value: Any, random: Random) -> str:
    """Return the JSON of `value` with one to three parts replaced, deleted or duplicated."""
    value = json.loads(json.dumps(value))  # a copy
    for _ in range(random.randint(1, 3)):
        value = _damaged_part(value, random)
    text = json.dumps(value)
    for i, raw in enumerate(_RAW):
        text = text.replace(f'"@raw{i}@"', raw)
    return text


def _damaged_part(value: Any, random: Random) -> Any:
    """Descend at random, then replace, delete or duplicate a part."""
    inside = isinstance(value, (dict, list)) and value and random.random() < 0.9
    if not inside:
        return deepcopy(random.choice(_VALUES))
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = random.choice(keys)
    match random.randint(0, 9):
        case 0:
            del value[key]
        case 1 if isinstance(value, list):
            value.append(value[key])
        case 1:
            value[random.choice(("x", "", "id"))] = value[key]
        case _:
            value[key] = _damaged_part(value[key], random)
    return value
