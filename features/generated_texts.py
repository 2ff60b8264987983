"""The record of the text files that decoder.caption wrote, beside pictures, instead of people.

They must not be learnt as captions. `--sidecar txt` keeps the record in each folder; readers of
captions beside pictures look there.
"""

import json

REGISTRY = ".captions-generated.json"


def registered(content: bytes) -> dict[str, str]:
    """Return the names of generated text files and the SHA-256 of their contents.

    Args:
        content: of a `REGISTRY` file.

    Raises:
        ValueError: it is not what decoder.caption writes.
    """
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise ValueError(f"expected an object of names and hashes, found {str(found)[:60]!r}")
    return found
