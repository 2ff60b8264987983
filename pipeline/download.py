"""Download a public data set: resume transfers, verify checksums, unpack atomically."""

import lzma
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen
from zipfile import BadZipFile, ZipFile, ZipInfo

from features.errors import UserError, first_few
from features.progress import Progress, track
from pipeline.options import PrepareOptions
from pipeline.readers.files import find

_ATTEMPTS = 5
_TIMEOUT_SECONDS = 60
_CHUNK_BYTES = 2**20
# What zipfile may raise for a file that is not an archive, or is a damaged one.
_DAMAGED: tuple[type[Exception], ...] = (
    BadZipFile,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zlib.error,
)
_NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, SSLError)


@dataclass(frozen=True)
class Archive:
    """A zip archive; `members` are its files and folders that belong in the root."""

    url: str
    checksum: str
    members: tuple[str, ...]


_COCO = "http://images.cocodataset.org"
_TRAIN2014 = Archive(
    f"{_COCO}/zips/train2014.zip",
    "sha256:ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ("train2014",),
)
_VAL2014 = Archive(
    f"{_COCO}/zips/val2014.zip",
    "sha256:fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ("val2014",),
)
# The sources publish no checksums. Those of COCO and Karpathy's archive are from url_checksums in
# TensorFlow Datasets, those of Flickr8k from the R package torchvision.
SOURCES = {
    "flickr8k": (
        Archive(
            "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_text.zip",
            "md5:bf6c1abcb8e4a833b7f922104de18627",
            (
                "Flickr8k.token.txt",
                "Flickr_8k.trainImages.txt",
                "Flickr_8k.devImages.txt",
                "Flickr_8k.testImages.txt",
            ),
        ),
        Archive(
            "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k/Flickr8k_Dataset.zip",
            "md5:f18a1e2920de5bd84dae7cf08ec78978",
            ("Flicker8k_Dataset",),
        ),
    ),
    "coco karpathy": (
        Archive(
            "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
            "sha256:4cfd70132527b80933105e5829dc9034eaab9573482e2e680abbab6130244817",
            ("dataset_coco.json",),
        ),
        _TRAIN2014,
        _VAL2014,
    ),
    "coco 2014": (
        Archive(
            f"{_COCO}/annotations/annotations_trainval2014.zip",
            "sha256:031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
            ("annotations/captions_train2014.json", "annotations/captions_val2014.json"),
        ),
        _TRAIN2014,
        _VAL2014,
    ),
    "coco 2017": (
        Archive(
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            ("annotations/captions_train2017.json", "annotations/captions_val2017.json"),
        ),
        Archive(
            f"{_COCO}/zips/train2017.zip",
            "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            ("train2017",),
        ),
        Archive(
            f"{_COCO}/zips/val2017.zip",
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            ("val2017",),
        ),
    ),
}


def download(options: PrepareOptions) -> None:
    """Download and unpack the archives of the data set whose members are not yet in the root.

    ROOT/downloads holds an archive until it is unpacked, and a partial transfer as NAME.part.

    Raises:
        UserError: there is no public source, the source cannot be reached, an archive has the wrong
            checksum or names files outside its folder, or the disk is full.
    """
    if options.dataset == "flickr30k":
        raise UserError(
            "Flickr30k is available only on request: fill in https://forms.illinois.edu/sec/229675 "
            "and put flickr30k-images/ and results_20130124.token into --root"
        )
    name = options.dataset
    if name == "coco":
        name += f" {options.release or 'karpathy'}"
    if name not in SOURCES or options.root is None:
        raise UserError(f"--download: {options.dataset} has no public source to download")
    root = options.root
    for archive in SOURCES[name]:
        if all(find(root, (member,)) for member in archive.members):
            continue
        url = archive.url
        if options.mirror:
            url = f"{options.mirror.rstrip('/')}/{PurePosixPath(url).name}"
        print(f"prepare: downloading {url}", flush=True)
        try:
            path = _fetch(url, archive.checksum, root / "downloads")
            _unpack(path, archive.members, root)
            path.unlink()
        except OSError as error:
            raise UserError(
                f"cannot download into {root}: {error}; run the command again to continue the "
                "download"
            ) from error


def _fetch(url: str, checksum: str, folder: Path) -> Path:
    """Download `url` into `folder` unless it is there, verify its checksum, and return its path."""
    import pooch

    name = PurePosixPath(url).name
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(
                url, checksum, name, folder, downloader=partial(_resume, folder / f"{name}.part")
            )
        )
    except ValueError as error:  # pooch has removed the file
        raise UserError(
            f"{url}: expected a file with the checksum {checksum}, found another and deleted it; "
            "the source has changed or is damaged, or a proxy answered instead"
        ) from error


def _resume(part: Path, url: str, output: str, _: object) -> None:
    """Continue the transfer of `url` in `part`; move it to `output` when it is complete.

    Apart from `part`, this is the signature that pooch expects of a downloader.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue(part, url)
            part.replace(output)
            return
        except _NETWORK_ERRORS as error:
            refused = isinstance(error, HTTPError) and 400 <= error.code < 500
            if attempt == _ATTEMPTS or refused:
                kept = f"; the partial file is kept in {part}" if part.exists() else ""
                raise UserError(f"cannot download {url}: {error}{kept}; try again later") from error
            time.sleep(0.5 * attempt)


def _continue(part: Path, url: str) -> None:
    """Append the rest of `url` to `part`, or start again if the server does not support ranges.

    If the file changed at the source in between, its checksum will not match.
    """
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=_TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        # 416: there are no further bytes, so the file is complete or its checksum will not match.
        if error.code == 416:
            return
        raise
    with response:
        if response.status != 206:
            have = 0
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        _check_space(part.parent, (total or have) - have)
        with (
            part.open("ab" if have else "wb") as file,
            Progress(part.stem, total, "B", done=have, scale=True) as progress,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                progress.update(file.write(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"the transfer ended after {part.stat().st_size} of {total} bytes")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free"
        )


def _unpack(archive: Path, members: Iterable[str], root: Path) -> None:
    """Unpack into a temporary folder, then move each member into `root`.

    A single folder around all members, which some archives have, is dropped. Links and devices are
    refused: a link could lead out of the folder, and no data set needs a device.

    Raises:
        UserError: the archive is damaged, has names that lead out of its folder, contains links
            or devices, needs more disk space than is free, or cannot be written.
    """
    folder = root / "downloads" / f"{archive.stem}.unpacking"
    shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left it
    try:
        with ZipFile(archive) as file:
            entries = file.infolist()
            outside = [e.filename for e in entries if _leaves(e.filename) or _is_special(e)]
            if outside:
                raise UserError(
                    f"{archive}: {len(outside)} names lead out of the target folder or are links: "
                    f"{first_few(map(repr, outside))}; nothing was unpacked"
                )
            _check_space(root, sum(entry.file_size for entry in entries))
            for entry in track(entries, f"unpack {archive.name}", "file"):
                file.extract(entry, folder)
        for member in members:
            source = find(folder, (member,))
            if source is None:
                raise UserError(f"{archive}: expected {member} in the archive, found none")
            target = root / member
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                source.rename(target)
    except _DAMAGED as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}); delete it and run the command again"
        ) from error
    except OSError as error:  # also from a damaged archive with impossible names
        raise UserError(f"cannot unpack {archive} into {root}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _leaves(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def _is_special(entry: ZipInfo) -> bool:
    mode = entry.external_attr >> 16
    return stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
