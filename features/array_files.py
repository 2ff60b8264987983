"""Arrays of another program, in .npy, .npz, HDF5 or bottom-up attention's .tsv files.

Only the headers are read at first, and the values of one image at a time, so that memory does not
grow with the number of images. Nothing is unpickled, and links in HDF5 files are not followed.
"""

import base64
import errno
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import h5py
import numpy as np

from features.errors import UserError, first_few, first_line
from features.files import reading
from features.folders import walk

# Names of the array with all features, of its ids, and of the number of regions of each image.
FEATURES = ("features", "feats", "feat", "att", "image_features")
_IDS = ("ids", "image_ids", "image_id", "names", "file_names")
_COUNTS = ("counts", "num_boxes", "num_bbox", "num_regions")
# What bottom-up attention's files and those of its successors hold beside the features.
BESIDE = {
    *("bbox", "bboxes", "boxes", "box", "image_bb", "spatial_features", "num_bbox", "num_boxes"),
    *("image_h", "image_w", "img_h", "img_w", "height", "width", "size", "image_id", "info"),
    *("classes", "objects", "attrs", "conf", "scores", "cls_prob", "attr_prob"),
    *("objects_id", "objects_conf", "attrs_id", "attrs_conf", "g_feature"),
}
_HDF5 = (".h5", ".hdf5", ".hdf", ".he5")
_LISTS = (".ids.txt", ".ids.json", ".ids.npy", "_ids.txt", "_ids.json", "_ids.npy")
_ACCEPTED = ".npy, .npz, HDF5 (.h5) or bottom-up attention's .tsv files, one or a folder of them"

_DAMAGED: tuple[type[Exception], ...] = (
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


class Stored(NamedTuple):
    """The array of one image, in such a file."""

    where: str
    """The file, and the key inside it, for messages."""
    shape: tuple[int, ...]
    dtype: np.dtype
    modified: int
    """When its file was changed or put there last, in nanoseconds since 1970."""
    read: Callable[[], np.ndarray]
    """Reads the values."""


Named = Iterable[tuple[str, Stored]]
"""Arrays by file name without its suffix, or by key; a name may occur twice."""


def arrays_in(path: Path) -> list[tuple[str, Stored]]:
    """Return the arrays in a folder or a file, by name.

    Raises:
        AccessError: a file cannot be read.
        UserError: something is missing, damaged or of another kind.
    """
    if path.is_dir():
        return list(_in_folder(path))
    if not path.exists():
        raise UserError(f"--from {path}: expected {_ACCEPTED}, but it is not there")
    with reading(path), _damage_named(path):
        if _suffix(path) == ".npy":
            return list(_in_array(path))
        if _suffix(path) == ".npz":
            return list(_in_archive(path))
        if in_file := _in_file(path):
            return list(in_file(path))
    raise UserError(f"--from {path}: expected {_ACCEPTED}, found a file of another kind")


def _in_file(path: Path) -> Callable[[Path], Named] | None:
    """Return what reads an HDF5 or .tsv file; None for other kinds."""
    if _suffix(path) in _HDF5 or h5py.is_hdf5(path):
        return _in_hdf5
    if ".tsv" in (suffix.lower() for suffix in path.suffixes[-2:]):
        return _in_tsv
    return None


def listing(path: Path) -> Iterator[Path]:
    """Yield the files of a folder and of the folders in it, sorted, hidden ones left out."""
    for folder, inner, names in walk(path):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _in_folder(folder: Path) -> Named:
    files = list(listing(folder))
    tables = {f: lists for f in files if _suffix(f) == ".npy" and (lists := lists_of(f))}
    listed = {ids for lists in tables.values() for ids in lists}
    files = [file for file in files if file not in listed]
    single = {".npy": _of_array, ".npz": _of_archive}
    others = [file for file in files if _suffix(file) not in single and not _in_file(file)]
    if others:
        raise UserError(
            f"--from {folder}: expected {_ACCEPTED}, found {len(others)} others: "
            f"{first_few(file.relative_to(folder) for file in others)}; move them away"
        )
    if not files:
        raise UserError(f"--from {folder}: expected {_ACCEPTED}, found an empty folder")
    for file in files:
        with reading(file), _damage_named(file):
            if file in tables:
                yield from _in_array(file)
            elif of_file := single.get(_suffix(file)):
                yield file.relative_to(folder).with_suffix("").as_posix(), of_file(file)
            elif in_file := _in_file(file):
                yield from in_file(file)


def _changed(file: Path) -> int:
    """Return when a file was changed or put in its place, in nanoseconds since 1970."""
    status = file.stat()
    return max(status.st_mtime_ns, status.st_ctime_ns)  # a copy may keep the time of the original


def _suffix(file: Path) -> str:
    return file.suffix.lower()


def _of_array(file: Path) -> Stored:
    with file.open("rb") as opened:
        shape, dtype = _header(opened)

    def read() -> np.ndarray:
        with reading(file), _damage_named(file):
            return np.load(file, allow_pickle=False)

    return Stored(str(file), shape, dtype, _changed(file), read)


def _of_archive(file: Path) -> Stored:
    """Return the only array of an .npz file, or its features beside boxes and sizes."""
    with zipfile.ZipFile(file) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        known = [name for name in (*FEATURES, "x", "z") if name in names]
        chosen = names[0] if len(names) == 1 else known[0] if known else None
        unknown = sorted(set(names) - BESIDE - {chosen})
        if chosen is None or unknown:
            raise ValueError(
                f'expected one array, or one named "feat" beside boxes, found {first_few(names)}'
            )
        with archive.open(f"{chosen}.npy") as member:
            shape, dtype = _header(member)

    def read() -> np.ndarray:
        with reading(file), _damage_named(file), np.load(file, allow_pickle=False) as arrays:
            return arrays[chosen]

    return Stored(f"{file} ({chosen})", shape, dtype, _changed(file), read)


def _in_array(file: Path) -> Named:
    """Return the rows of an .npy file, whose ids are in a file beside it."""
    found = lists_of(file)
    if len(found) != 1:
        raise UserError(
            f"--from {file}: expected one list of image ids or file names beside it, found "
            f"{first_few(found) or 'none'}; write one a line to {file.stem}{_LISTS[0]}"
        )
    ids = _ids_of(found[0])
    rows = np.load(file, mmap_mode="r", allow_pickle=False)
    return _rows(str(file), rows, ids, None, file, found[0])


def lists_of(file: Path) -> list[Path]:
    """Return the lists of ids beside an .npy file."""
    return [path for end in _LISTS if (path := file.with_name(f"{file.stem}{end}")).is_file()]


def _ids_of(file: Path) -> list[Any]:
    with reading(file), _damage_named(file):
        if file.suffix == ".npy":
            return _listed(np.load(file, allow_pickle=False))
        text = file.read_text(encoding="utf-8-sig")
        return list(json.loads(text)) if file.suffix == ".json" else text.split("\n")


def _listed(ids: np.ndarray) -> list[Any]:
    """Return an array of ids, which may be a column of numbers as MATLAB writes them."""
    ids = ids.reshape(-1) if max(ids.shape, default=0) == ids.size else ids
    whole = ids.dtype.kind == "f" and bool((ids == ids.round()).all())
    return (ids.astype(np.int64) if whole else ids).tolist()


def _in_archive(file: Path) -> Named:
    """Return the arrays of an .npz file, or the rows of its only array with ids."""
    archive = zipfile.ZipFile(file)  # open as long as its arrays are in use
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if table := _table(names):
        features, ids, counts = table
        with np.load(file, allow_pickle=False) as arrays:
            listed = _listed(arrays[ids])
            numbers = None if counts is None else arrays[counts]
        # A member of an archive can only be read from its beginning, so it is unpacked once.
        with archive.open(f"{features}.npy") as member, tempfile.NamedTemporaryFile() as unpacked:
            _unpack(member, unpacked, file)
            rows = np.load(unpacked.name, mmap_mode="r", allow_pickle=False)
        yield from _rows(f"{file} ({features})", rows, listed, numbers, file)
        return
    for member_name, name in zip(archive.namelist(), names, strict=True):
        with archive.open(member_name) as member:
            shape, dtype = _header(member)

        def read(member_name: str = member_name) -> np.ndarray:
            with reading(file), _damage_named(file), archive.open(member_name) as member:
                return np.lib.format.read_array(member, allow_pickle=False)

        yield name, Stored(f"{file} ({name})", shape, dtype, _changed(file), read)


def _unpack(member: IO[bytes], unpacked: IO[bytes], file: Path) -> None:
    try:
        shutil.copyfileobj(member, unpacked)
        unpacked.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"cannot unpack {file} in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
            "folder on a larger disk"
        ) from error


def _in_hdf5(file: Path) -> Named:
    """Return the data sets of an HDF5 file, or the rows of its only one with ids."""
    opened = h5py.File(file, "r", locking=False)  # open as long as its arrays are in use
    sets: list[h5py.Dataset] = []

    def note(_: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                raise ValueError(f"the data set {item.name} lies in another file")
            sets.append(item)

    opened.visititems(note)
    modified = _changed(file)
    if table := _table([data.name.lstrip("/") for data in sets]):
        features, ids, counts = table
        listed = _listed(opened[ids][()])
        numbers = None if counts is None else opened[counts][:]
        yield from _rows(f"{file} (/{features})", opened[features], listed, numbers, file)
        return
    for data in sets:

        def read(data: h5py.Dataset = data) -> np.ndarray:
            with reading(file), _damage_named(file):
                return data[()]

        where = f"{file} ({data.name})"
        yield data.name.lstrip("/"), Stored(where, data.shape, data.dtype, modified, read)


def _table(names: list[str]) -> tuple[str, str, str | None] | None:
    """Return the names of the features, ids and counts if names are those of a table."""
    found = [[name for name in known if name in names] for known in (FEATURES, _IDS, _COUNTS)]
    features, ids, counts = found
    if not (features and ids):
        return None
    used = {features[0], ids[0], *counts[:1]}
    if unknown := sorted(set(names) - used - BESIDE):
        raise ValueError(
            f"expected {features[0]}, {ids[0]} and perhaps {_COUNTS[0]}, found also "
            f"{first_few(unknown)}"
        )
    return features[0], ids[0], counts[0] if counts else None


def _rows(
    where: str, rows: Any, ids: list[Any], counts: np.ndarray | None, file: Path, *lists: Path
) -> Iterator[tuple[str, Stored]]:
    """Return the rows of an array of all images; `counts` are their numbers of regions.

    The rows are in `file`, and their ids there or in `lists` beside it.
    """
    while ids and ids[-1] == "":
        ids = ids[:-1]  # the end of the last line
    numbers = None if counts is None else _listed(counts)
    for what, length in (("ids", len(ids)), ("counts", len(ids if numbers is None else numbers))):
        if not rows.ndim or length != len(rows):
            raise ValueError(f"expected as many {what} as rows {rows.shape}, found {length}")
    modified = max(map(_changed, (file, *lists)))
    for row, one in enumerate(ids):
        shape = rows.shape[1:]
        if numbers:
            if not 0 <= numbers[row] <= shape[0]:
                raise ValueError(
                    f"row {row} has {shape[0]} regions, found the count {numbers[row]}"
                )
            shape = (numbers[row], *shape[1:])

        def read(row: int = row, shape: tuple[int, ...] = shape) -> np.ndarray:
            with reading(file), _damage_named(file):
                values = np.asarray(rows[row])
                return values[: shape[0]] if numbers else values

        yield _text(one), Stored(f"{where}, row {row}", shape, rows.dtype, modified, read)


def _in_tsv(file: Path) -> Named:
    """Return the rows of a .tsv file of bottom-up attention (Anderson et al. 2018).

    The columns are image id, sizes, ..., number of boxes, boxes and features, the last two float32
    in base64. LXMERT's files have objects and attributes too.
    """
    start, modified = 0, _changed(file)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) not in (6, 10):
                raise ValueError(f"line {number}: expected 6 or 10 columns, found {len(columns)}")
            regions, coded = int(columns[-3]), columns[-1]
            size = (len(coded) // 4 * 3 - coded[-2:].count(b"=")) // 4
            if regions < 1 or size % regions:
                raise ValueError(f"line {number}: {size} values for {regions} boxes")
            shape = (regions, size // regions)
            end = start + len(line.rstrip(b"\r\n"))
            begin = end - len(coded)

            def read(
                begin: int = begin, end: int = end, shape: tuple[int, int] = shape
            ) -> np.ndarray:
                with reading(file), _damage_named(file), file.open("rb") as opened:
                    opened.seek(begin)
                    values = base64.b64decode(opened.read(end - begin), validate=True)
                    return np.frombuffer(values, "<f4").reshape(shape)

            where = f"{file}, line {number}"
            yield columns[0].decode(), Stored(where, shape, np.dtype("<f4"), modified, read)
            start += len(line)


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value).strip()


def _header(opened: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Read the shape and the type of an array in numpy's format."""
    stream: BinaryIO = opened
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turn what libraries raise for a damaged file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # HDF5 raises OSError for a damaged file too, but without a number
        raise UserError(
            f"--from: {file} is damaged or of another kind ({first_line(error)}); copy it again, "
            "or write it as features/README.md says"
        ) from error
