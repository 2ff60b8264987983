"""The records of the text files that decoder.caption wrote, beside pictures, instead of people.

They must not be learnt as captions. `--sidecar txt` keeps a record in each folder, and the page of
decoder.demo puts others, of the same kind, into its downloads; readers of captions beside pictures
look in all of them.
"""

import json

REGISTRY = ".captions-generated.json"


def is_registry(name: str) -> bool:
    """Whether a file is a record of generated texts, by its name: `REGISTRY` or one beside it."""
    return name.startswith(".captions-generated") and name.endswith(".json")


def registered(content: bytes) -> dict[str, set[str]]:
    """Return the names of generated text files and the SHA-256 of the contents they may have.

    Args:
        content: of a record, in which blanks separate the hashes of a file.

    Raises:
        ValueError: it is not what decoder.caption writes.
    """
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise ValueError(f"expected an object of names and hashes, found {str(found)[:60]!r}")
    return {name: set(digests.split()) for name, digests in found.items()}
