"""How the features of one image become bytes: float16 or int8, deflated or not."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from isal import igzip_lib, isal_zlib

DTYPES = ("float16", "int8")
COMPRESSIONS = ("deflate", "none")
_MAX_FLOAT16 = float(np.finfo(np.float16).max)
_MOST_BYTES = 2**28  # of a grid; the largest networks need a thirtieth of it
_DEFLATE_AT_MOST = 1032  # to 1; what claims more is damaged, or made to fill the memory
# float32 of every float16, by its bits: four times as fast as numpy's own conversion.
_FLOAT32 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def to_float16(values: np.ndarray) -> np.ndarray:
    """Return `values` as float16, clipped to its range (65504)."""
    return np.clip(values, -_MAX_FLOAT16, _MAX_FLOAT16).astype("<f2")


def to_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Write float16 `values` to `out`, float32 of the same shape, contiguous."""
    np.take(_FLOAT32, values.view("<u2"), out=out, mode="clip")  # "raise" would buffer `out`


@dataclass(frozen=True, eq=False)
class RowFormat:
    """What the rows of a store hold and how they are written.

    Attributes:
        description: what made the features, as JSON; see `features.backbones`. Its "grid" [height,
            width], "channels" and "dtype" say the shape and type of a row.
        views: the names of the views of each image.
        compression: one of `COMPRESSIONS`, for the grid; pooled features are never compressed.
        scale: float32 [channels], by which int8 grids are multiplied; None for float16, and for
            int8 as long as it is not known.
    """

    description: Mapping[str, Any]
    views: Sequence[str] = ("whole",)
    compression: str = "deflate"
    scale: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check what may come from a damaged file; ValueError says what is wrong."""
        numbers = [*self.description["grid"], self.description["channels"]]
        if len(numbers) != 3 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError(f"a grid of {numbers[:-1]} with {numbers[-1]} channels")
        if self.description["dtype"] not in DTYPES:
            raise ValueError(f"dtype {self.description['dtype']!r} is none of {DTYPES}")
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression {self.compression!r} is none of {COMPRESSIONS}")
        if not 0 < self.grid_bytes <= _MOST_BYTES:
            raise ValueError(f"a grid of {self.grid_bytes} bytes")
        if not self.views or not all(isinstance(name, str) for name in self.views):
            raise ValueError(f"views {self.views!r}")

    @property
    def regions(self) -> int:
        """How many regions a grid has."""
        height, width = self.description["grid"]
        return height * width

    @property
    def channels(self) -> int:
        """How many channels each region has."""
        return self.description["channels"]

    @property
    def dtype(self) -> np.dtype:
        """The stored type of the grid: little-endian float16, or int8."""
        return np.dtype({"float16": "<f2", "int8": "i1"}[self.description["dtype"]])

    @property
    def grid_bytes(self) -> int:
        """Bytes of a grid before compression."""
        return self.regions * self.channels * self.dtype.itemsize

    @property
    def packed_bytes(self) -> tuple[int, int]:
        """The least and the most bytes that `pack` returns."""
        if self.compression == "none":
            return self.grid_bytes, self.grid_bytes
        return self.grid_bytes // _DEFLATE_AT_MOST, self.grid_bytes + self.grid_bytes // 100 + 64

    @property
    def image_bytes(self) -> int:
        """The most bytes that the features of an image take, of all views."""
        return len(self.views) * (self.packed_bytes[1] + 2 * self.channels)

    def described(self) -> dict[str, Any]:
        """Return, as JSON, all in which the rows of one file must agree, except the scale."""
        views = {"views": list(self.views), "compression": self.compression}
        return {**self.description, **views}

    def quantise(self, grid: np.ndarray) -> np.ndarray:
        """Return float features [..., regions, channels] in the stored type, clipped to it."""
        if self.dtype.kind == "f":
            return to_float16(grid)
        return np.clip(np.rint(grid / self.scale), -127, 127).astype(np.int8)

    def dequantise(self, grid: np.ndarray, out: np.ndarray) -> None:
        """Write a stored grid [regions, channels] to `out`, float32, contiguous."""
        if self.dtype.kind == "f":
            to_float32(grid, out)
        else:
            np.copyto(out, grid)
            out *= self.scale

    def pack(self, grid: np.ndarray) -> bytes:
        """Return a stored grid [regions, channels] as a chunk of the file.

        Float16 is deflated by the fastest coder; int8 by Huffman codes alone, which is smaller than
        looking for repetitions, and faster to read.
        """
        if self.compression == "none":
            return grid.tobytes()
        if self.dtype.itemsize == 2:
            return isal_zlib.compress(grid.tobytes(), 1)
        huffman = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        return huffman.compress(grid.tobytes()) + huffman.flush()

    def unpack(self, chunk: bytes) -> np.ndarray:
        """Return the stored grid [regions, channels] of a chunk.

        Raises:
            ValueError: the chunk is not the compressed form of exactly one grid.
        """
        data = chunk
        if self.compression == "deflate":
            inflate = isal_zlib.decompressobj()
            try:
                data = inflate.decompress(chunk, self.grid_bytes + 1)  # bounds what a bomb can do
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # a variable, in its stubs
                raise ValueError(f"its compressed features are damaged ({error})") from error
            if not inflate.eof or inflate.unused_data:
                data = b""
        if len(data) != self.grid_bytes:
            raise ValueError("its features have the wrong size")
        return np.frombuffer(data, self.dtype).reshape(self.regions, self.channels)


class Packed(NamedTuple):
    """The features of one image as they are stored."""

    pooled: np.ndarray
    """float16 [views, channels]"""
    chunks: Sequence[bytes]
    """The packed grid of each view."""
    checksums: np.ndarray
    """uint32 [views, 2], of the pooled features and of the grid before packing."""


class Record(NamedTuple):
    """One image: its features, or why there are none."""

    image_id: int
    packed: Packed | None
    reason: str = ""


def checksum(values: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes."""
    return isal_zlib.crc32(np.ascontiguousarray(values))
