import hashlib
import io
import re
import stat
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

import pytest

from pipeline import download
from pipeline.download import SOURCES, Archive

CAPTIONS = "".join(f"{name}.jpg#0\tA dog runs .\n{name}.jpg#1\tDogs .\n" for name in "abc")
TEXT = {
    "Flickr8k.token.txt": CAPTIONS,
    "Flickr_8k.trainImages.txt": "a.jpg\n",
    "Flickr_8k.devImages.txt": "b.jpg\n",
    "Flickr_8k.testImages.txt": "c.jpg\n",
    "__MACOSX/Flickr8k.token.txt": "finder",
}
PICTURES = {f"Flicker8k_Dataset/{name}.jpg": name * 50_000 for name in "abc"}


def zipped(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Server:
    """A local file server that can break off transfers."""

    def __init__(self) -> None:
        self.files = {
            "Flickr8k_text.zip": zipped(TEXT),
            "Flickr8k_Dataset.zip": zipped(PICTURES),
        }
        self.cut_after: list[
            int
        ] = []  # the number of bytes after which each of the next answers breaks off
        self.ranges = True
        self.claimed_length: int | None = None
        self.requests: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, wanted = self.path.rsplit("/", 1)[-1], self.headers["Range"]
                server.requests.append((name, wanted))
                if name not in server.files:
                    self.send_error(404)
                    return
                content = server.files[name]
                start = 0
                if wanted and server.ranges:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        self.send_error(416)
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header(
                    "Content-Length", str(server.claimed_length or len(content) - start)
                )
                self.end_headers()
                end = start + server.cut_after.pop(0) if server.cut_after else None
                self.wfile.write(content[start:end])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/mirror/"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror of two small archives; their checksums replace the published ones."""
    server = Server()
    archives = [
        Archive(
            archive.url,
            f"sha256:{hashlib.sha256(server.files[archive.url.rsplit('/', 1)[-1]]).hexdigest()}",
            archive.members,
        )
        for archive in SOURCES["flickr8k"]
    ]
    monkeypatch.setitem(SOURCES, "flickr8k", tuple(archives))
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def fetch(prepare: Callable, server: Server) -> Callable:
    return lambda *more: prepare("flickr8k", "--download", "--mirror", server.url, *more)


def test_data_set_is_downloaded_unpacked_and_prepared(
    fetch: Callable, server: Server, root: Path
) -> None:
    outcome = fetch()
    assert outcome.splits == {"a.jpg": "train", "b.jpg": "val", "c.jpg": "test"}
    assert server.url in outcome.out
    # No archives, temporary folders or other members of the archives are left.
    assert sorted(path.name for path in root.iterdir()) == sorted(
        [*list(TEXT)[:4], "Flicker8k_Dataset", "downloads"]
    )
    assert not list((root / "downloads").iterdir())


def test_existing_files_are_not_downloaded_again(fetch: Callable, server: Server) -> None:
    fetch()
    before = len(server.requests)
    assert "unchanged, skipped" in fetch().out
    assert len(server.requests) == before


def test_missing_root_is_created(prepare: Callable, server: Server, tmp_path: Path) -> None:
    new = tmp_path / "new" / "root"
    outcome = prepare("flickr8k", "--download", "--mirror", server.url, root=new)
    assert len(outcome.table.images) == 3


def test_interrupted_transfer_is_resumed(fetch: Callable, server: Server) -> None:
    server.cut_after = [100, 10_000_000, 60_000, 50_000]
    assert len(fetch().table.images) == 3
    assert server.requests == [
        ("Flickr8k_text.zip", None),
        ("Flickr8k_text.zip", "bytes=100-"),
        ("Flickr8k_Dataset.zip", None),
        ("Flickr8k_Dataset.zip", "bytes=60000-"),
        ("Flickr8k_Dataset.zip", "bytes=110000-"),
    ]


def test_later_run_resumes_a_transfer_that_an_earlier_one_gave_up(
    fetch: Callable, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_ATTEMPTS", 1)
    server.cut_after = [100]
    outcome = fetch()
    assert outcome.status == 2
    assert "the transfer ended after 100 of" in outcome.err
    assert (root / "downloads" / "Flickr8k_text.zip.part").stat().st_size == 100
    assert len(fetch().table.images) == 3
    assert ("Flickr8k_text.zip", "bytes=100-") in server.requests


def test_complete_part_is_not_downloaded_again(fetch: Callable, server: Server, root: Path) -> None:
    (root / "downloads").mkdir()
    (root / "downloads" / "Flickr8k_text.zip.part").write_bytes(server.files["Flickr8k_text.zip"])
    assert len(fetch().table.images) == 3


def test_transfer_from_a_server_without_ranges_starts_again(
    fetch: Callable, server: Server
) -> None:
    server.ranges = False
    server.cut_after = [100]
    assert len(fetch().table.images) == 3


def test_file_with_a_wrong_checksum_is_refused_and_removed(
    fetch: Callable, server: Server, root: Path
) -> None:
    server.files["Flickr8k_text.zip"] = zipped(TEXT | {"more": "than was published"})
    outcome = fetch()
    assert outcome.status == 2
    assert "Flickr8k_text.zip: expected a file with the checksum sha256:" in outcome.err
    assert not list((root / "downloads").iterdir())


def publish(server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Serve `content` as Flickr8k_text.zip, with its checksum as the published one."""
    server.files["Flickr8k_text.zip"] = content
    text, pictures = SOURCES["flickr8k"]
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    archives = (Archive(text.url, checksum, text.members), pictures)
    monkeypatch.setitem(SOURCES, "flickr8k", archives)


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../b", "..\\b"])
def test_archive_that_writes_outside_its_folder_is_refused(
    fetch: Callable, server: Server, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch, zipped(TEXT | {name: "evil"}))
    outcome = fetch()
    assert outcome.status == 2
    assert re.search(r"1 names lead out of the target folder .*nothing was unpacked", outcome.err)
    assert [path.name for path in root.iterdir()] == ["downloads"]
    assert not (root.parent / "outside.txt").exists()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (stat.S_IFLNK, "/etc/passwd"),
        (stat.S_IFLNK, "../../outside.txt"),
        (stat.S_IFIFO, ""),
        (stat.S_IFCHR, ""),
    ],
)
def test_archive_with_a_link_or_a_device_is_refused(
    fetch: Callable,
    server: Server,
    root: Path,
    kind: int,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO(zipped(TEXT))
    with ZipFile(buffer, "a") as archive:
        entry = ZipInfo("a.jpg")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, target)
    publish(server, monkeypatch, buffer.getvalue())
    outcome = fetch()
    assert outcome.status == 2
    assert "or are links: 'a.jpg'; nothing was unpacked" in outcome.err
    assert [path.name for path in root.iterdir()] == ["downloads"]


def test_archive_that_unpacks_to_more_than_the_free_space_is_refused(
    fetch: Callable, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive may claim, and unpack to, any size."""
    content = bytearray(zipped(TEXT))
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = (2**32 - 2).to_bytes(4, "little")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: Usage(free=2**31))
    publish(server, monkeypatch, bytes(content))
    outcome = fetch()
    assert outcome.status == 2
    assert "4.3 GB are needed, but only 2.1 GB are free" in outcome.err


class Usage(NamedTuple):
    free: int


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "cannot be unpacked"),
        (zipped({"x": ""}).replace(b"x", b"\0"), "cannot be unpacked"),
        (zipped({"x" * 300: ""}), "File name too long"),
        (zipped({"é": ""}).replace("é".encode(), b"\xff\xff"), "cannot be unpacked"),
        (zipped(TEXT).replace(b"A dog", b"A cat"), "cannot be unpacked"),
        (zipped({"readme.txt": "?"}), "expected Flickr8k.token.txt in the archive"),
    ],
    ids=["no archive", "no name", "long name", "name not UTF-8", "wrong checksum", "no captions"],
)
def test_damaged_archive_leaves_nothing_half_unpacked(
    fetch: Callable,
    server: Server,
    root: Path,
    content: bytes,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish(server, monkeypatch, content)
    outcome = fetch()
    assert outcome.status == 2
    assert message in outcome.err
    assert [path.name for path in root.rglob("*")] == ["downloads", "Flickr8k_text.zip"]


def test_folder_around_the_members_is_dropped(
    fetch: Callable, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(server, monkeypatch, zipped({f"around/{name}": text for name, text in TEXT.items()}))
    assert len(fetch().table.images) == 3


def test_transfer_larger_than_the_disk_is_refused_before_it_starts(
    fetch: Callable, server: Server, root: Path
) -> None:
    server.claimed_length = 10**18
    outcome = fetch()
    assert outcome.status == 2
    assert re.search(r"1000000000.0 GB are needed, but only \d+\.\d GB are free", outcome.err)
    assert not list((root / "downloads").iterdir())


def test_file_that_the_server_lacks_is_requested_only_once(fetch: Callable, server: Server) -> None:
    del server.files["Flickr8k_text.zip"]
    outcome = fetch()
    assert outcome.status == 2
    assert "404" in outcome.err
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flickr30k", "--download"], "https://forms.illinois.edu/sec/229675"),
        (["folder", "--download"], "folder has no public source"),
        (["coco", "--download", "--mirror", "ftp://x"], "expected http://... or https://..."),
    ],
)
def test_impossible_download_is_refused_with_the_reason(
    prepare: Callable, arguments: list[str], message: str
) -> None:
    outcome = prepare(*arguments)
    assert outcome.status == 2
    assert message in outcome.err


@pytest.mark.parametrize("release", ["karpathy", "2014", "2017"])
def test_coco_requests_the_files_of_its_release_from_the_mirror(
    prepare: Callable, server: Server, release: str
) -> None:
    outcome = prepare("coco", "--download", "--mirror", server.url, "--release", release)
    assert outcome.status == 2  # this mirror has no COCO
    first = SOURCES[f"coco {release}"][0].url.rsplit("/", 1)[-1]
    assert server.requests == [(first, None)]
