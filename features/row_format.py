"""How the features of one image become bytes: float16 or int8, deflated or not."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from isal import igzip_lib, isal_zlib

DTYPES = ("float16", "int8")
COMPRESSIONS = ("deflate", "none")
REGIONS = ("grid", "boxes", "varying boxes")
_MAX_FLOAT16 = float(np.finfo(np.float16).max)
_MAX_GRID_BYTES = 2**28  # the largest networks need a thirtieth of it
_MAX_DEFLATE_RATIO = 1032  # a chunk that claims more is damaged, or made to exhaust memory
# The float32 of every float16, indexed by its bits: four times as fast as numpy's conversion.
_FLOAT32 = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)


def to_float16(values: np.ndarray) -> np.ndarray:
    """Return `values` as float16, clipped to its range (65504)."""
    return np.clip(values, -_MAX_FLOAT16, _MAX_FLOAT16).astype("<f2")


def to_float32(values: np.ndarray, out: np.ndarray) -> None:
    """Write float16 `values` to `out`, float32 of the same shape, contiguous."""
    np.take(_FLOAT32, values.view("<u2"), out=out, mode="clip")  # "raise" would buffer `out`


def scale_for(largest: np.ndarray) -> np.ndarray:
    """Return the scale of int8 features, float32 [channels]: the channel's largest value / 127.

    A channel whose largest value is 0 is scaled as if it were 1.
    """
    largest = np.minimum(largest, _MAX_FLOAT16)
    largest[largest == 0] = 1
    return largest / np.float32(127)


@dataclass(frozen=True, eq=False)
class RowFormat:
    """What the rows of a store contain and how they are encoded.

    Attributes:
        description: everything the features depend on, as JSON-able values; see
            `features.backbones`. Its "grid" [height, width], "channels" and "dtype" give the shape
            and type of a row. Where it has "regions" (see `REGIONS`), features came from files.
        views: the names of the views of each image.
        compression: one of `COMPRESSIONS`, for the grid; pooled features are never compressed.
        scale: float32 [channels], the factors of int8 grids; None for float16, and for int8 until
            it has been calibrated.
    """

    description: Mapping[str, Any]
    views: Sequence[str] = ("whole",)
    compression: str = "deflate"
    scale: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check values that may come from a damaged file; raise ValueError if one is wrong."""
        numbers = [*self.description["grid"], self.description["channels"]]
        if len(numbers) != 3 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError(f"a grid of {numbers[:-1]} with {numbers[-1]} channels")
        if self.description["dtype"] not in DTYPES:
            raise ValueError(f"dtype {self.description['dtype']!r} is not one of {DTYPES}")
        if self.description.get("regions", "grid") not in REGIONS:
            raise ValueError(f"regions {self.description['regions']!r} are not one of {REGIONS}")
        if self.varies and len(self.views) > 1:
            raise ValueError("boxes of varying number in several views")
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"compression {self.compression!r} is not one of {COMPRESSIONS}")
        if not 0 < self.grid_bytes <= _MAX_GRID_BYTES:
            raise ValueError(f"a grid of {self.grid_bytes} bytes")
        if not self.views or not all(isinstance(name, str) for name in self.views):
            raise ValueError(f"views {self.views!r}")

    @property
    def regions(self) -> int:
        """Number of regions of a grid."""
        height, width = self.description["grid"]
        return height * width

    @property
    def varies(self) -> bool:
        """Whether the number of an image's regions varies, up to `regions`; zeros follow them."""
        return self.description.get("regions") == "varying boxes"

    @property
    def has_map(self) -> bool:
        """Whether the regions form a grid over the picture, so that attention can be shown on it.

        Boxes from files lie anywhere.
        """
        return self.description.get("regions", "grid") == "grid"

    @property
    def channels(self) -> int:
        """Number of channels of each region."""
        return self.description["channels"]

    @property
    def dtype(self) -> np.dtype:
        """Stored type of the grid: little-endian float16 or int8."""
        return np.dtype({"float16": "<f2", "int8": "i1"}[self.description["dtype"]])

    @property
    def grid_bytes(self) -> int:
        """Size of a grid in bytes before compression."""
        return self.regions * self.channels * self.dtype.itemsize

    @property
    def packed_bytes(self) -> tuple[int, int]:
        """Smallest and largest number of bytes that `pack` can return."""
        if self.compression == "none":
            return self.grid_bytes, self.grid_bytes
        return self.grid_bytes // _MAX_DEFLATE_RATIO, self.grid_bytes + self.grid_bytes // 100 + 64

    @property
    def image_bytes(self) -> int:
        """Largest number of bytes that all views of an image can take."""
        return len(self.views) * (self.packed_bytes[1] + 2 * self.channels)

    def described(self) -> dict[str, Any]:
        """Return all that the rows of one file share, except the scale, as values for JSON."""
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
        """Encode a grid [regions, channels] of the stored type as a chunk of the file.

        Float16 is deflated at the fastest level. Int8 is deflated with Huffman coding alone:
        searching for repetitions as well makes the result larger and slower to read.
        """
        if self.compression == "none":
            return grid.tobytes()
        if self.dtype.itemsize == 2:
            return isal_zlib.compress(grid.tobytes(), 1)
        huffman = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
        return huffman.compress(grid.tobytes()) + huffman.flush()

    def unpack(self, chunk: bytes) -> np.ndarray:
        """Decode a chunk to its grid [regions, channels] of the stored type.

        Raises:
            ValueError: the chunk is not the compressed form of exactly one grid.
        """
        data = chunk
        if self.compression == "deflate":
            inflate = isal_zlib.decompressobj()
            try:
                data = inflate.decompress(chunk, self.grid_bytes + 1)  # stops a decompression bomb
            except igzip_lib.IsalError as error:  # type: ignore[misc]  # a variable, in its stubs
                raise ValueError(f"its compressed features are damaged ({error})") from error
            if not inflate.eof or inflate.unused_data:
                data = b""
        if len(data) != self.grid_bytes:
            raise ValueError("its features have the wrong size")
        return np.frombuffer(data, self.dtype).reshape(self.regions, self.channels)


class Packed(NamedTuple):
    """The features of one image, encoded for the file."""

    pooled: np.ndarray
    """float16 [views, channels]"""
    chunks: Sequence[bytes]
    """The packed grid of each view."""
    checksums: np.ndarray
    """uint32 [views, 2], the CRC-32 of the pooled features and of the grid before packing."""
    regions: int | None = None
    """The number of the image's regions, where it varies."""


class Record(NamedTuple):
    """One image with its features, or with the reason why it has none."""

    image_id: int
    packed: Packed | None
    reason: str = ""


def checksum(values: np.ndarray, start: int = 0) -> int:
    """Return the CRC-32 of an array's bytes.

    Args:
        values: the array.
        start: what the computation starts from: for a grid the number of the image's regions where
            it varies, so that the checksum protects this number too.
    """
    return isal_zlib.crc32(np.ascontiguousarray(values), start)
