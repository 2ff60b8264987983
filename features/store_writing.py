"""Writing a store: each process writes a part of it, and at the end the parts are merged.

An extraction takes the lock (`only_writer`), finds what it continues (`resume`), prepares the parts
folder (`begin`), lets each process write a part (`features.parts`) with its share of the `pending`
images, and finally calls `merge`.
"""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from features.errors import UserError
from features.files import delete_temporaries, is_there, reading, replacing, sync, write_json
from features.locks import locked
from features.parts import CONTINUES, Place, read_record, scan
from features.row_format import Record, RowFormat
from features.store import (
    FAILED,
    FORMAT,
    STORED,
    FeatureStore,
    as_size,
    decisive,
    differences,
)
from features.store_layout import REASON_BYTES, layout

# ReLU features never deflate to less than this share of their size.
_LEAST_RATIO = 0.15
# At the end the features are on the disk twice: in the parts and in the store merged from them.
_COPIES = 2


def parts_folder(store: Path) -> Path:
    """Return the folder of the parts: what an unfinished extraction has written for `store`."""
    return store.with_suffix(".parts")


@contextmanager
def only_writer(store: Path) -> Iterator[None]:
    """Lock the store at the path `store`, and its parts, for one extraction at a time.

    Raises:
        UserError: another extraction holds the lock, or the folder is not writable.
    """
    busy = f"another process is writing {store}; wait until it ends"
    with ExitStack() as held:
        try:
            held.enter_context(locked(store.with_name(f".{store.name}.lock"), busy))
        except OSError as error:
            raise UserError(f"cannot write to {store.parent}: {error.strerror}") from error
        yield


def resume(
    store: Path, wanted: RowFormat, force: bool = False
) -> tuple[FeatureStore | None, RowFormat]:
    """Find what a new extraction continues; the caller must hold `only_writer`.

    Args:
        store: the path of the store.
        wanted: the format of the rows, without a scale.
        force: start from nothing; an existing store stays until the new one replaces it.

    Returns:
        The store to extend, or None, and `wanted` with the scale already in use, if there is one.

    Raises:
        AccessError: the existing store or parts cannot be read.
        UserError: they are damaged or hold other features, which must not be mixed with the wanted
            ones.
    """
    folder = parts_folder(store)
    with suppress(OSError):  # leftovers of a kill inside `write_store` or `discard`
        delete_temporaries(store)
        shutil.rmtree(_discarded(folder), ignore_errors=True)
    if force:
        discard(folder)
        return None, wanted
    settings = _read_settings(folder)
    scale = None
    if settings is not None:
        _require_same(folder, wanted, settings["kind"])
        scale = settings["scale"]
    old = None
    if is_there(store) and (settings is None or settings["extends"]):
        old = FeatureStore(store)
        _require_same(store, wanted, old.row_format.described())
        scale = old.row_format.scale
    return old, wanted if scale is None else replace(wanted, scale=np.array(scale, "<f4"))


def begin(store: Path, row_format: RowFormat, old: FeatureStore | None) -> Path:
    """Make the parts folder of a store unless it exists, and return its path.

    Raises:
        UserError: it cannot be written.
    """
    folder = parts_folder(store)
    settings = folder / "parts.json"
    if not settings.exists():
        scale = None if row_format.scale is None else row_format.scale.tolist()
        try:
            folder.mkdir(exist_ok=True)
            sync(folder.parent)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
        extends = old is not None
        write_json(settings, {"kind": row_format.described(), "scale": scale, "extends": extends})
    return folder


def pending(
    store: Path, row_format: RowFormat, old: FeatureStore | None, image_ids: Sequence[int]
) -> list[int]:
    """Return those of `image_ids`, in their order, whose features are not stored yet.

    They are stored if they are in `old` or in the parts folder of an unfinished extraction.
    """
    done = {i for i, place in scan(parts_folder(store), row_format).items() if place.stored}
    if old is not None:
        done.update(old.image_ids[old.status == STORED].tolist())
    return [image_id for image_id in image_ids if image_id not in done]


def merge(
    store: Path,
    row_format: RowFormat,
    old: FeatureStore | None,
    image_ids: Sequence[int],
    versions: Mapping[str, str],
    prune: bool = False,
    keys: Sequence[str] | None = None,
    advice: str = CONTINUES,
) -> None:
    """Merge the rows of `old` and the parts into a new store at `store`, then remove the parts.

    Args:
        store: the path of the store.
        row_format: the format of the rows.
        old: the store to extend, or None.
        image_ids: the images of the first rows, in this order, all of them in `old` or the parts.
        versions: versions of the libraries that computed the features.
        prune: drop all other images; without it, those with features follow, sorted by id.
        keys: see `write_store`; only where there are no other images.
        advice: as there.

    Raises:
        UserError: the disk is full, or a file is damaged; the parts and `old` are kept.
    """
    places = scan(parts_folder(store), row_format)
    sources: dict[int, Place | int] = {}
    stored = {image_id for image_id, place in places.items() if place.stored}
    if old is not None:
        sources.update({image_id: row for row, image_id in enumerate(old.image_ids.tolist())})
        stored.update(old.image_ids[old.status == STORED].tolist())
    sources.update(places)
    order = [*image_ids, *([] if prune else sorted(stored.difference(image_ids)))]
    if places or old is None or old.image_ids.tolist() != order:
        size = (old.path.stat().st_size if old else 0) + sum(p.bytes for p in places.values())
        _check_free(store, size, f"free some space; {advice}")
        records = (_record(sources[image_id], row_format, old) for image_id in order)
        write_store(store, row_format, order, records, versions, keys, advice)
    discard(parts_folder(store))


def _record(source: Place | int, row_format: RowFormat, old: FeatureStore | None) -> Record:
    if not isinstance(source, Place):
        assert old is not None
        return old.record(source)
    return read_record(source, row_format)


def discard(folder: Path) -> None:
    """Remove a parts folder, if there is one.

    It is renamed first, so that a kill while its files are deleted leaves no incomplete folder.
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(_discarded(folder), ignore_errors=True)
        folder.replace(_discarded(folder))
        shutil.rmtree(_discarded(folder), ignore_errors=True)


def write_store(
    path: Path,
    row_format: RowFormat,
    image_ids: Sequence[int],
    records: Iterable[Record],
    versions: Mapping[str, str],
    keys: Sequence[str] | None = None,
    advice: str = CONTINUES,
) -> None:
    """Write a store and put it at `path` once it is complete.

    Args:
        path: the path of the store, which may exist.
        row_format: the format of the rows.
        image_ids: the image of each row.
        records: the record of each row.
        versions: versions of the libraries that computed the features.
        keys: the name of each picture in its shard, of which the image id was made.
        advice: what to do if it cannot be written, for the user.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    sets = layout(len(image_ids), row_format)
    # The structures of HDF5 1.10 (2016) have checksums and need a third of the memory.
    libver = ("v110", "v110")
    with (
        _write_errors(path, advice),
        replacing(path) as temporary,
        # Nobody else knows the temporary file, and some network disks have no locks.
        h5py.File(temporary, "w", libver=libver, locking=False) as file,
    ):
        attributes = {**row_format.described(), "format": FORMAT, "versions": dict(versions)}
        for key, value in attributes.items():
            file.attrs[key] = np.bytes_(json.dumps(value))
        values = {name: np.zeros(*sets[name]) for name in ("status", "failure", "checksum")}
        if row_format.varies:
            values["regions"] = np.zeros(*sets["regions"])
        values["image_id"] = np.asarray(image_ids, np.int64)
        if row_format.scale is not None:
            values["scale"] = row_format.scale
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so it has a place even if all failed
        pooled = file.create_dataset("pooled", *sets["pooled"], dcpl=early)
        shape, dtype = sets["grid"]
        chunk = (*(1,) * (len(shape) - 2), *shape[-2:])
        deflate = {"compression": "gzip"} if row_format.compression == "deflate" else {}
        grid = file.create_dataset("grid", shape, dtype, chunks=chunk, **deflate)
        for row, record in enumerate(records):
            if record.image_id != image_ids[row]:
                raise ValueError(f"row {row} is image {record.image_id}, not {image_ids[row]}")
            if record.packed is None:
                values["status"][row] = FAILED
                # Cut between characters, not inside one.
                reason = record.reason.encode()[:REASON_BYTES].decode(errors="ignore")
                values["failure"][row] = reason.encode()
                continue
            values["status"][row] = STORED
            values["checksum"][row] = record.packed.checksums.reshape(sets["checksum"][0][1:])
            if row_format.varies:
                values["regions"][row] = record.packed.regions
            pooled[row] = record.packed.pooled.reshape(pooled.shape[1:])
            for view, packed in enumerate(record.packed.chunks):
                place = (row, view) if len(shape) == 4 else (row,)
                grid.id.write_direct_chunk((*place, 0, 0), packed)
        if keys is not None:
            # Of fixed length: HDF5 loops for ever over damaged strings of variable length.
            encoded = np.array([key.encode() for key in keys])
            values["key"] = encoded.astype(h5py.string_dtype("utf-8", encoded.itemsize))
        for name, array in values.items():
            file[name] = array


@contextmanager
def _write_errors(path: Path, advice: str) -> Iterator[None]:
    """Turn the errors of h5py while it writes `path` into a UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 raises both, with errno only in the text
        number = re.search(r"errno = (\d+)", str(error))
        why = os.strerror(int(number[1])) if number else error
        raise UserError(f"cannot write {path}: {why}; {advice}") from error


def check_disk(store: Path, row_format: RowFormat, images: int) -> None:
    """Raise UserError if the disk is certainly too small for the features of `images` images."""
    packed = row_format.grid_bytes
    if row_format.compression == "deflate":
        packed = int(packed * _LEAST_RATIO)
    views = len(row_format.views)
    needed = _COPIES * images * views * (packed + 2 * row_format.channels)
    _check_free(
        store,
        needed,
        "free some space, choose a smaller --grid or fewer --views, or a --work on another disk; "
        "what was stored is kept",
    )


def _check_free(store: Path, needed: int, advice: str) -> None:
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise UserError(
            f"{store} needs {as_size(needed)} more, but the disk has {as_size(free)} free; {advice}"
        )


def _discarded(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Return the content of parts.json, or None if there is none."""
    path = folder / "parts.json"
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        settings = json.loads(text)
        settings["kind"]["dtype"], settings["extends"], settings["scale"]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}); --force removes {folder} and extracts again"
        ) from error
    return settings


def _require_same(path: Path, wanted: RowFormat, found: Mapping[str, Any]) -> None:
    """Raise UserError unless `path` holds the wanted kind of features."""
    kind = wanted.described()
    if decisive(kind) == decisive(found):
        return
    before = _options(found)
    options = [option for option in before if option not in _options(kind)]
    repeat = "repeat the options of the first extraction to extend it"
    advice = f"{repeat} ({' '.join(options)}), or " if options else ""
    raise UserError(
        f"{path} holds other features than requested: {differences(kind, found)}; {advice}use "
        "another --work; --force replaces these features"
    )


def _options(kind: Mapping[str, Any]) -> list[str]:
    """Return the options of an extraction that determine what kind of features it stores."""
    from features.backbones import from_files  # loads torch

    options = [f"--dtype {kind['dtype']}", f"--compression {kind.get('compression')}"]
    if from_files({"backbone": None, **kind}):
        return ["--from FILES", *options]
    files = (f"--weights {shlex.quote(str(file))}" for file in kind.get("weights_file", ()))
    grid, views = kind.get("grid"), len(kind.get("views", ()))
    size = grid[0] if isinstance(grid, list) and grid else grid
    return [
        f"--backbone {kind.get('backbone')}",
        *files,
        f"--grid {size}",
        f"--views {views}",
        *options,
    ]
