"""Features that others computed: matched with the images, checked, and read one by one.

`find` reads the headers of all arrays and decides what the rows of the store are; `read` reads and
checks the values of one image.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from features.array_files import BESIDE, FEATURES, Stored, arrays_in, listing, lists_of
from features.backbones import FILES
from features.errors import UserError, first_few
from features.extraction import ahead

MOST_BOXES = 100
"""The largest number of regions of an image where it varies, as in bottom-up attention."""
# What the features of an image are called where its name comes before, as in 9_features.
_FEATURE_KINDS = ("features", "feats", "feat", "grids", "grid")
_PART = re.compile(rf"(.+?)[_/]({'|'.join((*_FEATURE_KINDS, *BESIDE, 'mask'))})")
_MAX_FLOAT16 = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Found:
    """The features of all images in files of another program, not yet read.

    Attributes:
        path: the files of the grids.
        grids: the grid or the boxes of each image, by image id.
        pooled: the pooled features of each image; None to take the mean of its regions.
        description: see `features.backbones.Backbone`.
        channels_first: whether the grids are (c, h, w), or the boxes (c, regions).
        left_out: number of arrays that belong to no image.
    """

    path: Path
    grids: Mapping[int, Stored]
    pooled: Mapping[int, Stored] | None
    description: dict[str, Any]
    channels_first: bool
    left_out: int

    def modified(self, image_id: int) -> int:
        """Return when the files of an image were changed last, in nanoseconds since 1970."""
        both = [self.grids[image_id]] + ([self.pooled[image_id]] if self.pooled else [])
        return max(stored.modified for stored in both)

    def read(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the features of an image: float32 [regions, channels] and [channels].

        Raises:
            AccessError: a file cannot be read.
            UserError: a file is damaged, has changed, or holds values that cannot be stored.
        """
        grid = _values(self.grids[image_id], image_id)
        grid = grid.reshape(_unbatched(grid.shape))
        if self.channels_first:
            grid = np.moveaxis(grid, 0, -1)
        grid = np.ascontiguousarray(grid.reshape(-1, grid.shape[-1]))
        pooled = grid.mean(0)
        if self.pooled is not None:
            pooled = _values(self.pooled[image_id], image_id).reshape(-1)
        return grid, pooled

    def read_all(
        self, image_ids: Sequence[int], workers: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the id and the features of images; threads read the next ones meanwhile."""
        with ThreadPoolExecutor(workers) as pool:
            started = ((i, pool.submit(self.read, i)) for i in image_ids)
            try:
                for image_id, features in ahead(started, 2 * workers):
                    yield image_id, *features.result()
            finally:
                pool.shutdown(cancel_futures=True)


def digest(path: Path) -> str:
    """Return a digest of the names, sizes and times of the files that `find` would read."""
    hashed = hashlib.sha256()
    for part in (part for part in _parts(path) if part is not None and part.exists()):
        for file in listing(part) if part.is_dir() else [part, *lists_of(part)]:
            status = file.stat()
            hashed.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return hashed.hexdigest()


def find(
    path: Path,
    images: Mapping[int, str],
    keys: str = "auto",
    layout: str = "auto",
    skip_extra: bool = False,
) -> Found:
    """Match arrays of files with images and check their shapes and types.

    Args:
        path: the folder or file; with a folder NAME_att the pooled features are read from NAME_fc
            if it is there, as ruotianluo/ImageCaptioning.pytorch writes them, and NAME stands for
            both.
        images: the file name of each image, by image id.
        keys: "id", "name" or "auto", what the arrays are named by.
        layout: "hwc", "chw" or "auto", whether the channels are the last axis or the first.
        skip_extra: leave out arrays of other images.

    Raises:
        AccessError: a file cannot be read.
        UserError: images are missing or occur twice, arrays belong to no image, or their shapes or
            types are not those of features.
    """
    own, beside = _parts(path)
    grids, extra = _matched(own, arrays_in(own), images, keys, skip_extra)
    _check_types(grids)
    shape, channels_first, regions = _shape(own, grids, layout)
    pooled = None
    if beside is not None:
        pooled, _ = _matched(beside, arrays_in(beside), images, keys, skip_extra)
        _check_types(pooled)
        for image_id, stored in pooled.items():
            if stored.shape not in ((shape[-1],), (1, shape[-1])):
                raise UserError(
                    f"image {image_id}: expected a vector of {shape[-1]} channels as in {own}, "
                    f"found {stored.shape} in {stored.where}"
                )
    description = {
        "backbone": f"{FILES}{_stem(own)}",
        "weights": "unknown",
        "weights_sha256": "unknown",
        "grid": list(shape[:2]),
        "channels": shape[-1],
        "dtype": "float16",
        "regions": regions,
    }
    return Found(own, grids, pooled, description, channels_first, extra)


def _parts(path: Path) -> tuple[Path, Path | None]:
    """Return the path of the grids, and that of the pooled features if it is another one."""
    if not path.exists():
        for end in ("_att", "_fc"):
            if (named := path.with_name(f"{path.name}{end}")).is_dir():
                return _parts(named)
        return path, None
    if path.is_dir() and not any(entry.is_file() for entry in path.iterdir()):
        inner = sorted({p.name.removesuffix("_att") for p in path.iterdir() if _is_att(p)})
        if inner:
            raise UserError(
                f"--from {path}: expected the features of one CNN, found the folders of "
                f"{first_few(inner)}; use --from {path / inner[0]}"
            )
    if not _is_att(path):
        return path, None
    suffix = path.name.removeprefix(_stem(path))
    beside = path.with_name(f"{_stem(path).removesuffix('_att')}_fc{suffix}")
    return path, beside if beside.exists() else None


def _is_att(path: Path) -> bool:
    return _stem(path).endswith("_att")


def _stem(path: Path) -> str:
    """Return the name of a file without its suffix, and that of a folder, which has none."""
    return path.name if path.is_dir() else path.stem


def _matched(
    path: Path, arrays: list[tuple[str, Stored]], images: Mapping[int, str], keys: str, skip: bool
) -> tuple[dict[int, Stored], int]:
    """Return the array of each image, and the number of those that belong to none."""
    arrays = _of_images(arrays, images)
    matched = _image_of_each(path, [name for name, _ in arrays], images, keys)
    extra = [stored.where for name, stored in arrays if name not in matched]
    if extra and not skip:
        raise UserError(
            f"--from {path}: expected features of the {len(images)} images of captions.json only, "
            f"found {len(extra)} others: {first_few(extra)}; move them away, or leave them out "
            "with --skip-extra"
        )
    counts = Counter(matched[name] for name, _ in arrays if name in matched)
    twice = {image_id for image_id, count in counts.items() if count > 1}
    if twice:
        where = [stored.where for name, stored in arrays if matched.get(name) in twice]
        raise UserError(
            f"--from {path}: {len(twice)} images have features twice: {first_few(where)}; keep "
            "one of each"
        )
    missing = [image_id for image_id in images if image_id not in counts]
    if missing:
        listed = first_few(f"{image_id} ({images[image_id]})" for image_id in missing)
        raise UserError(
            f"--from {path}: {len(missing)} of {len(images)} images have no features: {listed}; "
            "add their features, or prepare a data set without these images"
        )
    by_image = {matched[name]: stored for name, stored in arrays if name in matched}
    return {image_id: by_image[image_id] for image_id in images}, len(extra)


def _of_images(
    arrays: list[tuple[str, Stored]], images: Mapping[int, str]
) -> list[tuple[str, Stored]]:
    """Return the features of images, named by the image alone.

    M2 Transformer's files and their successors hold 9_features, 9_grids and 9_boxes for image 9,
    others 9/features, and Pythia's 9_info beside 9. Of features and grids the features are taken.
    """
    forms = {form for file_name in images.values() for form in _forms(file_name)}
    parts = []
    kinds: dict[str, set[str]] = {}
    for name, stored in arrays:
        whole = _posix(name) in forms or name in (*FEATURES, *BESIDE)
        found = None if whole else _PART.fullmatch(name)
        image, kind = found.groups() if found else (name, "")
        parts.append((image, kind, name, stored))
        kinds.setdefault(image, set()).add(kind)
    kept = []
    for image, kind, name, stored in parts:
        best = next((one for one in _FEATURE_KINDS if one in kinds[image]), None)
        if kind == best:
            kept.append((image, stored))
        elif not kind or (best is None and "" not in kinds[image]):
            kept.append((name, stored))
    return kept


def _posix(name: str) -> str:
    """Return a name with slashes, and accents not taken apart as macOS does."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _forms(file_name: str) -> tuple[str, str, str, str]:
    """Return a file name with and without suffix, and both without folder."""
    path = PurePosixPath(_posix(file_name))
    return str(path), str(path.with_suffix("")), path.name, path.stem


def _image_of_each(
    path: Path, names: list[str], images: Mapping[int, str], keys: str
) -> dict[str, int]:
    """Return the image of each name that has one; the name may begin with further folders."""
    known: dict[str, set[int]] = {}
    whole: dict[str, set[int]] = {}
    for image_id, file_name in images.items():
        for number, form in enumerate(_forms(file_name)):
            known.setdefault(form, set()).add(image_id)
            if number < 2:
                whole.setdefault(form, set()).add(image_id)
    by_id: dict[str, int] = {}
    by_name: dict[str, int] = {}
    ambiguous = []
    for name in names:
        posix = _posix(name)
        *folders, last = posix.split("/")
        tails = ("/".join((*folders[start:], last)) for start in range(1, len(folders) + 1))
        fitting = known.get(posix) or next((whole[tail] for tail in tails if tail in whole), set())
        if len(fitting) == 1:
            (by_name[name],) = fitting
        elif fitting:
            ambiguous.append(name)
        if last.isdecimal() and int(last) in images and not (folders and fitting):
            by_id[name] = int(last)
    if keys == "id" or (keys == "auto" and len(by_id) > len(by_name) + len(ambiguous)):
        chosen = by_id
    elif keys == "auto" and by_id and len(by_id) == len(by_name) and by_id != by_name:
        raise UserError(
            f"--from {path}: {first_few(by_id, 3)} may be image ids or file names of pictures; "
            "say which with --keys id or --keys name"
        )
    elif ambiguous:
        raise UserError(
            f"--from {path}: {len(ambiguous)} names fit several pictures: {first_few(ambiguous)}; "
            "name the files by image id, or by the path in captions.json"
        )
    else:
        chosen = by_name
    if not chosen:
        image_id, file_name = next(iter(images.items()))
        raise UserError(
            f"--from {path}: expected names that are image ids or file names of pictures, such as "
            f"{image_id} or {file_name}, found {first_few(names, 3) or 'no array'}"
        )
    return chosen


def _check_types(arrays: Mapping[int, Stored]) -> None:
    wrong = [stored for stored in arrays.values() if stored.dtype.kind != "f"]
    if wrong:
        raise UserError(
            f"expected floating-point numbers, found {wrong[0].dtype} in {wrong[0].where}"
            f"{f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''}; convert them to float32"
        )


def _shape(
    path: Path, arrays: Mapping[int, Stored], layout: str
) -> tuple[tuple[int, int, int], bool, str]:
    """Return the grid and the channels, whether channels come first, and the kind of regions."""
    channels_first = _channels_first(arrays, layout)
    shapes: dict[tuple[int, ...], Stored] = {}
    for stored in arrays.values():
        shape = _unbatched(stored.shape)
        if len(shape) not in (1, 2, 3) or 0 in shape:
            raise UserError(
                f"expected features (channels), (regions, channels) or a grid of them, found "
                f"{stored.shape} in {stored.where}"
            )
        if channels_first:
            shape = (*shape[1:], shape[0])
        shapes.setdefault(shape, stored)
    channels = {shape[-1]: stored for shape, stored in reversed(shapes.items())}
    axes = {len(shape): stored for shape, stored in reversed(shapes.items())}
    for what, different in (("the number of channels", channels), ("the number of axes", axes)):
        if len(different) > 1:
            listed = (f"{count} in {stored.where}" for count, stored in different.items())
            raise UserError(
                f"--from {path}: expected {what} to be the same, found {' and '.join(listed)}"
            )
    ((channel_count, _),) = channels.items()
    counts = {int(np.prod(shape[:-1])): stored for shape, stored in shapes.items()}
    if len(shapes) == 1:
        (shape,) = shapes
        if len(shape) == 2:
            return (1, shape[0], channel_count), channels_first, "boxes"
        return (*(shape[:-1] if len(shape) == 3 else (1, 1)), channel_count), channels_first, "grid"
    most = max(counts)
    if most > MOST_BOXES:
        raise UserError(
            f"expected at most {MOST_BOXES} regions where their number varies, found {most} in "
            f"{counts[most].where}; keep the {MOST_BOXES} with the highest scores"
        )
    return (1, MOST_BOXES, channel_count), channels_first, "varying boxes"


def _unbatched(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a grid without the first axis that it has as a batch of one."""
    return shape[1:] if len(shape) == 4 and shape[0] == 1 else shape


def _channels_first(arrays: Mapping[int, Stored], layout: str) -> bool:
    """Return whether arrays are (c, h, w) or (c, regions) rather than (h, w, c) or (regions, c)."""
    stored = next(iter(arrays.values()))
    shape = _unbatched(stored.shape)
    if len(shape) not in (2, 3):
        return False
    if layout != "auto":
        return layout == "chw"
    if len(shape) == 3:
        longest = "a grid (h, w, c) or (c, h, w) whose longest axis is the channels"
        if max(shape[0], shape[2]) > shape[1] and shape[0] != shape[2]:
            return shape[0] > shape[2]
    else:  # OpenVQA's files have a column for each box
        firsts, lasts = ({other.shape[end] for other in arrays.values()} for end in (0, -1))
        if len(lasts) > 1:
            return len(firsts) == 1
        if len(firsts) > 1 or shape[0] <= max(MOST_BOXES, shape[1]):
            return False
        longest = "(regions, channels) with fewer regions than channels"
    raise UserError(
        f"expected {longest}, found {stored.shape} in {stored.where}; say which with --layout hwc "
        "or --layout chw"
    )


def _values(stored: Stored, image_id: int) -> np.ndarray:
    """Read an array, check its values and return them as float32."""
    values = np.asarray(stored.read())
    if values.shape != stored.shape or values.dtype != stored.dtype:
        raise UserError(f"{stored.where} changed while it was read; run the same command again")
    finite = np.isfinite(values)
    if not finite.all():
        raise UserError(
            f"image {image_id}: expected finite numbers, found {int((~finite).sum())} that are NaN "
            f"or infinite in {stored.where}; compute these features again"
        )
    largest = float(np.abs(values).max())
    if largest > _MAX_FLOAT16:
        raise UserError(
            f"image {image_id}: expected values of at most {_MAX_FLOAT16:.0f}, which float16 can "
            f"hold, found {largest:.4g} in {stored.where}; scale all features down"
        )
    return values.astype(np.float32)
