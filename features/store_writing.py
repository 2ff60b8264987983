"""How a store is made: what is there already, the parts that processes write, and their merging.

An extraction holds `only_writer`, asks `resume` what it builds on, `begin`s the parts, lets each
process write a part (`features.parts`) of what is `pending`, and `merge`s them.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import h5py
import numpy as np

from features.errors import UserError
from features.parts import Place, read_record, scan, sync
from features.row_format import Record, RowFormat
from features.store import (
    FAILED,
    FORMAT,
    REASON_BYTES,
    STORED,
    FeatureStore,
    as_size,
    differences,
    layout,
)

# What ReLU features deflate to at least, and how often they lie on the disk: in a part and in the
# store that the parts are merged into.
_LEAST_RATIO = 0.15
_COPIES = 2


def parts_folder(store: Path) -> Path:
    """Return the folder of the parts of the store at the path `store`."""
    return store.with_suffix(".parts")


@contextmanager
def only_writer(store: Path) -> Iterator[None]:
    """Hold the store at the path `store`, and its parts, for one extraction at a time.

    Raises:
        UserError: another extraction holds it, or the folder cannot be written to.
    """
    lock = filelock.FileLock(store.with_name(f".{store.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"another process is writing {store}; wait until it ends") from error
    except OSError as error:
        raise UserError(f"cannot write to {store.parent}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def resume(
    store: Path, wanted: RowFormat, force: bool = False
) -> tuple[FeatureStore | None, RowFormat]:
    """Find what a new extraction builds on; called by whoever holds `only_writer`.

    Args:
        store: the path of the store.
        wanted: what the rows are to hold; without a scale.
        force: begin anew; the store that is there stands until the new one is whole.

    Returns:
        The store to extend, if there is one, and `wanted` with the scale that is in use, if it has
        one.

    Raises:
        UserError: the store or the parts there are of another kind, or damaged: features of two
            kinds never meet in one file.
    """
    folder = parts_folder(store)
    with suppress(OSError):  # what a kill left of `replacing` and `discard`
        store.with_name(f".{store.name}.new").unlink(missing_ok=True)
        shutil.rmtree(_discarded(folder), ignore_errors=True)
    if force:
        discard(folder)
        return None, wanted
    begun = _read_settings(folder)
    scale = None
    if begun is not None:
        _same(folder, wanted, begun["kind"])
        scale = begun["scale"]
    old = None
    if store.exists() and (begun is None or begun["extends"]):
        old = FeatureStore(store)
        _same(store, wanted, old.row_format.described())
        scale = old.row_format.scale
    return old, wanted if scale is None else replace(wanted, scale=np.array(scale, "<f4"))


def begin(store: Path, row_format: RowFormat, old: FeatureStore | None) -> Path:
    """Make the parts folder of a store, or keep the one there, and return it.

    Raises:
        UserError: it cannot be written.
    """
    folder = parts_folder(store)
    settings = folder / "parts.json"
    if not settings.exists():
        scale = None if row_format.scale is None else row_format.scale.tolist()
        text = {"kind": row_format.described(), "scale": scale, "extends": old is not None}
        try:
            folder.mkdir(exist_ok=True)
            sync(folder.parent)
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
        with replacing(settings) as temporary:
            temporary.write_text(json.dumps(text))
    return folder


def pending(
    store: Path, row_format: RowFormat, old: FeatureStore | None, image_ids: Sequence[int]
) -> list[int]:
    """Return those of `image_ids` whose features neither `old` nor the parts have."""
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
) -> None:
    """Write a store of the rows of `old` and of the parts, put it in place and remove the parts.

    Args:
        store: the path of the store.
        row_format: what the rows hold.
        old: the store that is extended.
        image_ids: the images of the first rows, in this order; `old` or the parts have them all.
        versions: the libraries that made the features.
        prune: drop the other images; else those that are stored follow.

    Raises:
        UserError: the disk is full, or a file is damaged; the parts and `old` are kept.
    """
    found = scan(parts_folder(store), row_format)
    sources: dict[int, Place | int] = {}
    stored = {image_id for image_id, place in found.items() if place.stored}
    if old is not None:
        sources.update({image_id: row for row, image_id in enumerate(old.image_ids.tolist())})
        stored.update(old.image_ids[old.status == STORED].tolist())
    sources.update(found)
    order = [*image_ids, *([] if prune else sorted(stored.difference(image_ids)))]
    if found or old is None or old.image_ids.tolist() != order:
        _check_free(
            store, (old.path.stat().st_size if old else 0) + sum(p.bytes for p in found.values())
        )
        records = (_record(sources[image_id], row_format, old) for image_id in order)
        write_store(store, row_format, order, records, versions)
    discard(parts_folder(store))


def _record(source: Place | int, row_format: RowFormat, old: FeatureStore | None) -> Record:
    if not isinstance(source, Place):
        assert old is not None
        return old.record(source)
    return read_record(source, row_format)


def discard(folder: Path) -> None:
    """Remove a parts folder, at once even if it takes a while: none is ever seen incomplete."""
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
) -> None:
    """Write a store, which appears at `path` when it is whole.

    Args:
        path: where; what was there is replaced.
        row_format: what the rows hold.
        image_ids: the images in the order of the rows.
        records: one of each image, in the same order.
        versions: the libraries that made the features.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    sets = layout(len(image_ids), row_format)
    # Since version 1.10 (2016) HDF5's own structures have checksums and take a third of the memory.
    since = ("v110", "v110")
    with replacing(path) as temporary, h5py.File(temporary, "w", libver=since) as file:
        attributes = {**row_format.described(), "format": FORMAT, "versions": dict(versions)}
        for key, value in attributes.items():
            file.attrs[key] = np.bytes_(json.dumps(value))
        values = {name: np.zeros(*sets[name]) for name in ("status", "failure", "checksum")}
        values["image_id"] = np.asarray(image_ids, np.int64)
        if row_format.scale is not None:
            values["scale"] = row_format.scale
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # it lies somewhere even if all failed
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
                # Cut between characters, not within one.
                reason = record.reason.encode()[:REASON_BYTES].decode(errors="ignore")
                values["failure"][row] = reason.encode()
                continue
            values["status"][row] = STORED
            values["checksum"][row] = record.packed.checksums.reshape(sets["checksum"][0][1:])
            pooled[row] = record.packed.pooled.reshape(pooled.shape[1:])
            for view, packed in enumerate(record.packed.chunks):
                place = (row, view) if len(shape) == 4 else (row,)
                grid.id.write_direct_chunk((*place, 0, 0), packed)
        for name, array in values.items():
            file[name] = array


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write, which then replaces `path` at once, whole or not at all.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # HDF5 raises both, and hides the number in the text
        number = re.search(r"errno = (\d+)", str(error))
        why = os.strerror(int(number[1])) if number else error
        raise UserError(
            f"cannot write {path}: {why}; what was extracted is kept, and the same command "
            "continues from there"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_disk(store: Path, row_format: RowFormat, images: int) -> None:
    """Raise UserError if the disk is surely too small to extract the features of `images` images.

    They take their place twice, in a part and in the store that the parts are merged into.
    """
    packed = row_format.grid_bytes
    if row_format.compression == "deflate":
        packed = int(packed * _LEAST_RATIO)
    views = len(row_format.views)
    _check_free(store, _COPIES * images * views * (packed + 2 * row_format.channels))


def _check_free(store: Path, needed: int) -> None:
    free = shutil.disk_usage(store.parent).free
    if needed > free:
        raise UserError(
            f"{store} needs {as_size(needed)} more, but the disk has {as_size(free)} free; free "
            "some space, take a smaller --grid or fewer --views, or a --work on another disk; what "
            "was extracted is kept"
        )


def _discarded(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _read_settings(folder: Path) -> dict[str, Any] | None:
    """Return what parts.json says, or nothing if there is none."""
    path = folder / "parts.json"
    try:
        settings = json.loads(path.read_text())
        settings["kind"]["dtype"], settings["extends"], settings["scale"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}); --force removes {folder} and extracts again"
        ) from error
    return settings


def _same(path: Path, wanted: RowFormat, found: Mapping[str, Any]) -> None:
    if wanted.described() != found:
        raise UserError(
            f"{path} holds other features than asked for: "
            f"{differences(wanted.described(), found)}; use another --work, or --force to extract "
            "again"
        )
