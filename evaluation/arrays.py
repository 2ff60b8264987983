"""Numpy's archives of arrays (.npz), read without trusting them."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# When unpacked; the attention of a thousand images is a hundredth of it.
_MOST_BYTES = 2**30
# What numpy may raise for a file that is not, or not wholly, a .npz. It reads the arrays' headers
# with Python's tokenizer, and believes the shapes in them.
_NOT_ARRAYS: tuple[type[Exception], ...] = (
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


def read_arrays(path: Path, names: Iterable[str]) -> list[NDArray[Any]]:
    """Return the arrays called `names` of a .npz file. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a .npz, lacks one of the arrays, or unpacks to more than a gigabyte.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_BYTES:
            raise ValueError(f"it unpacks to {size} bytes")
        with path.open("rb") as file, np.load(file) as arrays:
            return [np.asarray(arrays[name]) for name in names]
    except FileNotFoundError:
        raise
    except _NOT_ARRAYS as error:
        raise ValueError(str(error)) from error
