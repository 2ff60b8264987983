"""Read archives of numpy arrays (.npz) from untrusted sources."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.errors import unreadable
from features.files import reading

# Unpacked; a hundred times the attention of a thousand images.
_MOST_BYTES = 2**30
# What numpy may raise for a damaged .npz or another file. It parses the headers of arrays with
# Python's tokenizer and trusts the shapes in them.
_DAMAGED: tuple[type[Exception], ...] = (
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def read(path: Path, names: Iterable[str]) -> list[NDArray[Any]]:
    """Return the arrays called `names` from a .npz file. Nothing is unpickled.

    Raises:
        FileNotFoundError: the file does not exist.
        AccessError: it cannot be read.
        ValueError: it is damaged or not a .npz, lacks an array, or unpacks to more than a gigabyte.
    """
    try:
        with reading(path), path.open("rb") as bytes_:
            bytes_.read(1)
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes, more than {_MOST_BYTES:,}")
        with path.open("rb") as file, np.load(file) as arrays:
            return [np.asarray(arrays[name]) for name in names]
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:  # numpy's own have no number
            raise unreadable(path, error) from error
        raise ValueError(str(error)) from error
