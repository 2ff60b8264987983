"""Shards are named and read rightly, or refused by name in bounded time and memory."""

import bz2
import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from features.errors import UserError
from features.generated_texts import REGISTRY
from features.images import PictureError
from features.shard_lists import parse_columns
from features.shard_samples import id_of_key, read_sample, samples_of
from features.shards import Shard, ShardError, expand_braces, find_shards
from tests.tar_shards import jpeg, shard, tar


def read(path: Path, folder: Path | None = None, **options) -> dict[str, list[str]]:
    """The captions of each key of a shard."""
    (found,) = find_shards([str(path)])
    copies = path.parent / "copies"
    copies.mkdir(exist_ok=True)
    return {s.key: s.captions for s in samples_of(found, folder or copies, **options)}


@pytest.mark.parametrize("packed", [False, True])
def test_captions_that_a_captioner_wrote_are_not_learnt_and_what_is_left_out_is_counted(
    packed: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(jpeg())
    (folder / "a.txt").write_text("A dog.\n")
    (folder / "b.txt").write_text("A cat of a person.\n")
    for registry, name, text in (
        (REGISTRY, "a.txt", b""),
        (".captions-generated-1f.json", "a.txt", b"A dog.\n"),  # of a download that was unpacked
        (".captions-generated-2f.json", "b.txt", b""),
    ):
        (folder / registry).write_text(json.dumps({name: hashlib.sha256(text).hexdigest()}))
    (folder / ("README" if packed else "c.cr2")).write_bytes(b"raw")
    path = folder
    if packed:
        path = tmp_path / "album.tar"
        with tarfile.open(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.add(file, file.name)
    passed_over: Counter[str] = Counter()
    found = read(path, tmp_path, passed_over=passed_over)
    assert found == {"a": [], "b": ["A cat of a person."]}
    assert passed_over["text file that decoder.caption wrote"] == 1
    assert passed_over.total() == 2
    (folder / REGISTRY).write_text("[]")
    with pytest.raises(ShardError, match="records which text files are generated, and is damaged"):
        read(folder, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{8..11}.tar", ["8.tar", "9.tar", "10.tar", "11.tar"]),
        ("a{008..010}", ["a008", "a009", "a010"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{x,y{1..2}}/{0..1}", ["x/0", "x/1", "y1/0", "y1/1", "y2/0", "y2/1"]),
        ("{one}-{a,b}", ["{one}-a", "{one}-b"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_expand_as_in_a_shell_and_webdataset(pattern: str, expected: list[str]) -> None:
    assert list(expand_braces(pattern)) == expected


def test_patterns_find_archives_folders_and_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set" / "c.d").mkdir(parents=True)
    for name in ("a.tar", "b.tar.gz", "e.parquet"):
        (tmp_path / "set" / name).touch()
    (tmp_path / "f{0,1} [x].tar").touch()
    monkeypatch.setenv("HOME", str(tmp_path))  # the patterns are quoted
    found = find_shards(
        ["~/set/*", f"{tmp_path}/later/{{0..1}}.tgz", f"{tmp_path}/f{{0,1}} [x].tar"]
    )
    assert [(s.name, s.suffix) for s in found] == [
        *(("a", ".tar"), ("b", ".tar.gz"), ("c.d", ""), ("e", ".parquet")),
        *(("0", ".tgz"), ("1", ".tgz"), ("f{0,1} [x]", ".tar")),
    ]
    (remote,) = find_shards(["s3://bucket/100%20 #1.tar"])
    assert (remote.name, str(remote)) == ("100%20 #1", "100%20 #1 (s3://bucket/100%20 #1.tar)")
    (remote,) = find_shards(["ftp://user:pa@secret@example.org/a/0.tar"])
    assert str(remote) == "0 (ftp://example.org/a/0.tar)"
    (remote,) = find_shards(["https://user:secret@example.org/a/0%200.tar?token=secret"])
    assert str(remote) == "0 0 (https://example.org/a/0%200.tar)"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["{here}/x/*.tar"], "matches nothing"),
        (["{here}/*"], "expected archives (.tar, .tar.gz, .tgz, .parquet) or folders, found"),
        (["{here}/a.tar", "{here}/b/A.tar"], "are both called A"),
        (["https://example.org/*.tar"], "a web server cannot be listed; name the shards with"),
        (["{here}/.tar"], "cannot name an output"),
        (["{here}/\udcff/0.tar"], "is not UTF-8; rename it"),
        (["http://[a/0.tar"], "is no web address: Invalid IPv6 URL"),
        (["ftp://127.0.0.1:1/*.tar"], "ftp://127.0.0.1:1/*.tar cannot be reached"),
        (["{0..99999999999}.tar"], "names more than 10,000,000 shards"),
    ],
)
def test_wrong_patterns_are_refused(
    patterns: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.shards._MAX_SHARDS", 1000)
    (tmp_path / "stats.json").touch()
    with pytest.raises(UserError) as caught:
        find_shards([pattern.replace("{here}", str(tmp_path)) for pattern in patterns])
    assert message.replace("10,000,000", "1,000") in str(caught.value)


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("pattern", ["**/*.tar", "*/*.tar", "closed/*.tar"])
def test_a_folder_that_cannot_be_opened_is_not_left_out(pattern: str, tmp_path: Path) -> None:
    for folder in ("open", "closed", "lost+found"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.tar").touch()
    with pytest.raises(UserError, match=r"cannot read .*closed: Permission denied"):
        find_shards([f"{tmp_path}/{pattern}"])
    assert len(find_shards([f"{tmp_path}/o*/*.tar"])) == 1


def test_ids_of_keys_never_change() -> None:
    assert id_of_key("000000012") == 5525286757591489760
    assert all(0 <= id_of_key(str(number)) < 2**63 for number in range(1000))


def test_a_tar_of_img2dataset_gives_pictures_and_captions(tmp_path: Path) -> None:
    path = shard(tmp_path / "00000.tar", ["0001", "0002"])
    (found,) = find_shards([str(path)])
    samples = samples_of(found, tmp_path)
    assert [(s.key, s.file_name, s.captions) for s in samples] == [
        ("0001", "0001.jpg", ["picture 0001 of a collection"]),
        ("0002", "0002.jpg", ["picture 0002 of a collection"]),
    ]
    assert [read_sample(s).size for s in samples] == [(48, 40)] * 2
    assert [s.key for s in samples_of(found, tmp_path, prefix=True)] == ["00000/0001", "00000/0002"]


def test_keys_end_at_the_first_dot_and_files_of_a_key_may_lie_apart(tmp_path: Path) -> None:
    members = [
        ("./x/a.1.jpg", jpeg()),
        ("x/a.jpg", jpeg()),
        ("x/b.JPG", jpeg()),
        ("__meta__.json", b"not JSON"),
        ("README", b"text"),
        ("x/a.txt", b"one\r\n\ntwo \n"),
        ("x/a.cls", b"7"),
        ("x/b.json", json.dumps({"captions": ["one", "\ud800"]}).encode()),
    ]
    folder = tarfile.TarInfo("x")
    folder.type = tarfile.DIRTYPE
    path = tar(tmp_path / "0.tar", [(folder, b""), *members])
    assert read(path) == {"x/a": ["one", "two"], "x/b": ["one", "?"]}


def test_captions_in_a_text_and_a_json_are_all_read_and_none_is_read_twice(tmp_path: Path) -> None:
    files = {
        # What img2dataset writes: the caption of the .json is in the .txt too, by str().
        "a": ("line\nbreak", {"caption": "line\nbreak"}),
        "b": ("nan", {"caption": float("nan")}),
        "c": ("['one', 'two']", {"caption": ["one", "two"]}),
        # What others write.
        "d": ("by hand", {"caption": "one", "captions": ["one", None, "two"]}),
        "e": ("1\u2028one\r\n2\x85two\r3\x0bthree", {}),
    }
    members = []
    for key, (text, value) in files.items():
        members += [(f"{key}.jpg", jpeg()), (f"{key}.json", json.dumps(value).encode())]
        members += [(f"{key}.txt", text.encode())]
    assert read(tar(tmp_path / "0.tar", members)) == {
        "a": ["line\nbreak"],
        "b": [],
        "c": ["one", "two"],
        "d": ["by hand", "one", "two"],
        "e": ["1\u2028one", "2\x85two", "3\x0bthree"],
    }


def test_a_dotted_name_is_a_picture_where_its_key_has_no_other_and_strange_files_are_counted(
    tmp_path: Path,
) -> None:
    members = [
        ("IMG.2020.jpg", jpeg()),
        ("IMG.2020.txt", b"dotted"),
        ("IMG.txt", b"not named like the picture"),
        ("left.image.jpg", jpeg()),
        ("left.json", b'{"caption": "a"}'),
        ("one.jpg", jpeg()),
        ("one.mask.png", b"mask"),
        ("one.jpg.txt", b"not read"),
        ("one.cls", b"7"),
        ("Thumbs.db", b"thumbnails"),
        ("__MACOSX/one.jpg", b"metadata"),
        ("._one.jpg", b"metadata"),
        ("metadata.csv", b"a,b"),
        ("x//./two.jpg", jpeg()),
    ]
    passed_over: Counter[str] = Counter()
    found = read(tar(tmp_path / "0.tar", members), passed_over=passed_over)
    assert found == {"IMG": ["dotted"], "left": ["a"], "one": [], "x/two": []}
    assert passed_over == {
        "further picture of a key": 1,
        "text file not named as a picture": 2,
        "file that is no picture": 3,
    }


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read(format_: int, tmp_path: Path) -> None:
    name = f"{'long/' * 30}é"
    with tarfile.open(tmp_path / "0.tar", "w", format=format_) as archive:
        header = tarfile.TarInfo(f"{name}.jpg")
        header.size = len(jpeg())
        archive.addfile(header, io.BytesIO(jpeg()))
    assert read(tmp_path / "0.tar") == {name: []}


def test_a_compressed_tar_is_read_whatever_its_name(tmp_path: Path) -> None:
    plain = shard(tmp_path / "0.tar", ["a", "b"]).read_bytes()
    for name in ("1.tar.gz", "2.tgz", "3.tar"):
        (tmp_path / name).write_bytes(gzip.compress(plain))
        assert list(read(tmp_path / name)) == ["a", "b"]


def special(type_: bytes, name: str = "a.jpg", size: int = 0) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = type_, "/etc/passwd", size
    return header


def sparse() -> bytes:
    """A member that stands for a terabyte of zeros in a few bytes."""
    header = tarfile.TarInfo("a.jpg")
    header.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.map": "0,1",
    }
    return header.tobuf(tarfile.PAX_FORMAT) + bytes(10240)


def huge_pax_header() -> bytes:
    return special(tarfile.XHDTYPE, size=2**33).tobuf(tarfile.GNU_FORMAT) + b"x" * 2000


def many_pax_headers() -> bytes:
    header = special(tarfile.XHDTYPE, size=10).tobuf(tarfile.GNU_FORMAT) + b"10 a=bcde\n".ljust(
        512, b"\0"
    )
    return header * 1500


def too_large(name: str = "a.jpg") -> bytes:
    return special(tarfile.REGTYPE, name, 2**40).tobuf(tarfile.GNU_FORMAT) + bytes(1024)


PICTURE = ("a.jpg", jpeg())
HOSTILE_TARS: dict[str, tuple[Callable[[Path], object], str]] = {
    "path traversal": (lambda p: tar(p, [("../a.jpg", jpeg())]), "'../a.jpg' leads outside"),
    "absolute path": (lambda p: tar(p, [("/etc/a.jpg", jpeg())]), "'/etc/a.jpg' leads outside"),
    "symbolic link": (lambda p: tar(p, [(special(tarfile.SYMTYPE), b"")]), "is a link"),
    "hard link": (lambda p: tar(p, [PICTURE, (special(tarfile.LNKTYPE), b"")]), "is a link"),
    "device": (lambda p: tar(p, [(special(tarfile.CHRTYPE), b"")]), "neither a file nor a folder"),
    "pipe": (lambda p: tar(p, [(special(tarfile.FIFOTYPE), b"")]), "neither a file nor a folder"),
    "unknown type": (lambda p: p.write_bytes(special(b"Z").tobuf() + bytes(1024)), "neither a"),
    "sparse": (lambda p: p.write_bytes(sparse()), "sparse"),
    "terabyte": (lambda p: p.write_bytes(too_large()), "ends beyond the end of the file"),
    "huge header": (lambda p: p.write_bytes(huge_pax_header()), "a header of more than"),
    "endless headers": (lambda p: p.write_bytes(many_pax_headers()), "headers without end"),
    "control characters": (lambda p: tar(p, [("a\n.jpg", jpeg())]), "control characters"),
    "no tar": (lambda p: p.write_bytes(b"<html>" * 999), "not a tar archive"),
    "empty file": (lambda p: p.write_bytes(b""), "not a tar archive (empty file)"),
    "empty archive": (lambda p: tar(p, []), "it has no pictures"),
    "two archives": (
        lambda p: p.write_bytes(2 * shard(p, ["a"]).read_bytes()),
        "damaged, or followed by other data",
    ),
    "same name twice": (lambda p: tar(p, [PICTURE, PICTURE]), "the key 'a' occurs twice"),
    "two pictures": (lambda p: tar(p, [PICTURE, ("a.png", b"")]), "'a.jpg' and 'a.png'"),
    "dotted names": (
        lambda p: tar(p, [("a.1.jpg", jpeg()), ("a.2.jpg", jpeg())]),
        "for keys end at the first dot as in webdataset: a.1.jpg, a.2.jpg; rename them",
    ),
    "bzip2": (lambda p: p.write_bytes(bz2.compress(bytes(999))), "but a bzip2 file"),
    "Git LFS": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "not a tar archive but a Git LFS pointer",
    ),
    "no picture": (lambda p: tar(p, [PICTURE, ("b.txt", b"b")]), "'b' has no picture, only b.txt"),
    "wrong json": (lambda p: tar(p, [PICTURE, ("a.json", b"{")]), "'a.json' is not JSON"),
    "deep json": (lambda p: tar(p, [PICTURE, ("a.json", b"[" * 10**6)]), "'a.json' is not JSON"),
    "json list": (lambda p: tar(p, [PICTURE, ("a.json", b"[]")]), "expected a JSON object"),
    "caption number": (
        lambda p: tar(p, [PICTURE, ("a.json", b'{"caption": 7}')]),
        "expected captions as text, found '7'",
    ),
    "text not UTF-8": (lambda p: tar(p, [PICTURE, ("a.txt", b"\xff")]), "'a.txt' is not UTF-8"),
    "huge text": (
        lambda p: tar(p, [PICTURE, ("a.txt", bytes(2**22 + 1))]),
        "'a.txt' has more than",
    ),
    "gzip bomb": (lambda p: p.write_bytes(gzip.compress(bytes(2**22))), "a decompression bomb"),
    "damaged gzip": (
        lambda p: p.write_bytes(gzip.compress(shard(p, ["a"]).read_bytes())[:-300]),
        "its gzip compression is damaged or cut off",
    ),
    "missing": (lambda p: None, "no such file"),
    "folder": (lambda p: p.mkdir(), "it is a folder; name the files in it"),
    "named pipe": (os.mkfifo, "it is not a file but a device"),
}


@pytest.mark.parametrize("name", HOSTILE_TARS)
def test_a_damaged_or_hostile_tar_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.shard_tar._ALWAYS_ALLOWED", 2**21)
    write, message = HOSTILE_TARS[name]
    path = tmp_path / "0.tar"
    write(path)
    start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ShardError) as caught:
        samples_of(Shard("0", str(path)), tmp_path)
    assert message in str(caught.value)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # kilobytes


def test_a_tar_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = shard(tmp_path / "0.tar", ["a", "b"]).read_bytes()
    complete = whole.rstrip(b"\0")
    for length in {*range(0, len(complete), 512), *range(100, len(complete), 777)}:
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with pytest.raises(ShardError, match=r"cut off|not a tar|no picture|damaged"):
            read(tmp_path / "0.tar")


def test_a_flipped_byte_in_a_header_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(shard(tmp_path / "0.tar", ["a", "b"]).read_bytes())
    places = [i for i in range(0, len(whole), 512) if whole[i + 257 : i + 262] == b"ustar"]
    assert len(places) == 6
    for place in places:
        whole[place + 3] ^= 1
        (tmp_path / "0.tar").write_bytes(whole)
        whole[place + 3] ^= 1
        with pytest.raises(ShardError, match=r"damaged|not a tar"):
            read(tmp_path / "0.tar")


def test_a_bomb_of_a_picture_costs_its_row_only(tmp_path: Path) -> None:
    header = b"IHDR" + 2 * (60_000).to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")
    png += b"\0\0\0\x0aIDAT" + bytes(14)
    path = tar(tmp_path / "0.tar", [("a.png", png), ("b.jpg", jpeg())])
    (found,) = find_shards([str(path)])
    bomb, good = samples_of(found, tmp_path)
    with pytest.raises(PictureError, match="pixels"):
        read_sample(bomb)
    assert read_sample(good).size == (48, 40)


def test_a_folder_gives_its_pictures_and_the_captions_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "walks"
    (folder / "2020.05").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for name in ("a.JPG", "2020.05/b.c.jpg", ".thumbnails/a.jpg"):
        (folder / name).write_bytes(jpeg())
    (folder / "a.TXT").write_text("one\ntwo\n")
    (folder / "2020.05" / "b.c.json").write_text('{"caption": "three"}')
    (folder / "notes.txt").write_text("no caption")
    os.mkfifo(folder / "a.json")
    passed_over: Counter[str] = Counter()
    found = read(folder, passed_over=passed_over)
    assert found == {"2020.05/b.c": ["three"], "a": ["one", "two"]}
    assert passed_over["text file not named as a picture"] == 1
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(ShardError, match="the key 'a' occurs twice"):
        read(folder)
    (folder / "a.png").unlink()
    (folder / "a.TXT").write_bytes(bytes(2**22 + 1))
    with pytest.raises(ShardError, match=r"'a.TXT' cannot be read: larger than 4,194,304 bytes"):
        read(folder)
    with pytest.raises(ShardError, match="expected a folder, or a file that ends in"):
        read(tmp_path / "missing")


def listing(file: Path, **columns: list) -> Path:
    parquet.write_table(pa.table(columns), file)
    return file


def test_names_that_are_not_utf_8_are_escaped_and_their_pictures_read(tmp_path: Path) -> None:
    members = [
        ("caf\udce9.jpg", jpeg()),
        ("caf\udce9.txt", b"A caf\xc3\xa9."),
        ("plain.jpg", jpeg()),
    ]
    (tmp_path / "0").mkdir()
    for name, data in members:
        (tmp_path / "0" / name).write_bytes(data)
    tar(tmp_path / "0.tar", members)
    for source in ("0", "0.tar"):
        coffee, plain = samples_of(Shard("0", str(tmp_path / source)), tmp_path)
        assert (coffee.key, plain.key) == ("caf%E9", "plain")
        assert (coffee.file_name, coffee.captions) == ("caf%E9.jpg", ["A café."])
        assert read_sample(coffee).size == (48, 40)


def test_a_parquet_list_names_pictures_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    paths = ["a.jpg", f"{tmp_path}/b.jpg", "a.jpg"]
    path = listing(tmp_path / "0.parquet", URL=paths, TEXT=["one", None, "two"])
    (found,) = find_shards([str(path)])
    first, second = samples_of(found, tmp_path)
    assert (first.key, first.captions) == ("a.jpg", ["one", "two"])
    assert read_sample(first).size == (48, 40)
    assert (second.file_name, second.captions) == (f"{tmp_path}/b.jpg", [])
    with pytest.raises(PictureError, match="no such file"):
        read_sample(second)


def test_a_folder_and_a_list_of_an_object_store_are_read_as_on_a_disk(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    pictures = ("a.JPG", ".trash/b.jpg", "__MACOSX/a.jpg", "._a.jpg", "d/c.jpg")
    texts = ("a.txt", "d/notes.txt", "d/Thumbs.db")
    for name in (*pictures, *texts):
        memory.pipe_file(f"/walks/{name}", jpeg() if name in pictures else b"caption")
    passed_over: Counter[str] = Counter()
    samples = samples_of(Shard("walks", "memory://walks"), tmp_path, passed_over=passed_over)
    assert {s.key: s.captions for s in samples} == {"a": ["caption"], "d/c": []}
    kinds = ["hidden folder", "folder of metadata", "text file not named as a picture"]
    assert passed_over == dict.fromkeys([*kinds, "file that is no picture"], 1)
    path = listing(tmp_path / "0.parquet", path=["../walks/./a.JPG"])
    memory.put_file(str(path), "/lists/0.parquet")
    (sample,) = samples_of(Shard("0", "memory://lists/0.parquet"), tmp_path)
    assert (sample.key, read_sample(sample).size) == ("../walks/./a.JPG", (48, 40))
    memory.rm("/", recursive=True)


def test_columns_of_a_list_can_be_chosen(tmp_path: Path) -> None:
    columns = parse_columns("image=photo,caption=alt,key=number")
    path = listing(tmp_path / "0.parquet", photo=["a", "a"], alt=[["x", "y"], []], number=[7, 8])
    assert read(path, columns=columns) == {"7": ["x", "y"], "8": []}
    with pytest.raises(
        ShardError, match=r"expected a column path, url, .* found photo, alt, number"
    ):
        read(path)
    with pytest.raises(ShardError, match="it has no column 'foto'"):
        read(path, columns={"image": "foto"})
    for wrong in ("photo", "image=", "picture=a", "image=a,image=b"):
        with pytest.raises(UserError, match="--columns: expected image=NAME"):
            parse_columns(wrong)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"URL": ["a"], "url": ["b"]}, "several columns 'url'; its columns: URL, url"),
        ({"path": [1, 2]}, "row 1: expected the path of a picture, found '1'"),
        ({"path": ["a", None]}, "row 2: expected the path of a picture, found nothing"),
        ({"path": ["a", "b"], "key": ["k", "k"]}, "two pictures have the key 'k'"),
        ({"path": ["a", "b"], "key": ["k", None]}, "row 2: expected a key, found nothing"),
        ({"path": ["a"], "caption": [7]}, "row 1: expected captions as text, found '7'"),
        ({"path": ["zip://a.jpg::http://example.org/b.zip"]}, "is no address of a picture"),
        ({"path": []}, "it has no pictures"),
        ({"path": ["a" * 3000]}, "is too long"),
    ],
)
def test_wrong_rows_of_a_list_are_refused(columns: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError) as caught:
        read(listing(tmp_path / "0.parquet", **columns))
    assert message in str(caught.value)


def test_a_damaged_list_is_refused(tmp_path: Path) -> None:
    whole = listing(tmp_path / "0.parquet", path=[f"{i}.jpg" for i in range(999)]).read_bytes()
    for content in (b"", b"PAR1", whole[:-1], whole[: len(whole) // 2], b"\0" * 40 + whole[40:]):
        (tmp_path / "0.parquet").write_bytes(content)
        with pytest.raises(ShardError, match="not a parquet file, or a damaged one"):
            read(tmp_path / "0.parquet")


def test_a_list_that_repeats_a_long_caption_is_refused_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.shard_lists.MAX_TEXTS_BYTES", 2**24)
    path, names = tmp_path / "0.parquet", [str(i) for i in range(20_000)]
    captions = pa.DictionaryArray.from_arrays([0] * len(names), ["x" * 2**18])
    table = pa.table({"path": names, "caption": captions})
    parquet.write_table(table, path, store_schema=False)
    assert path.stat().st_size < 2**20
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ShardError, match=r"bytes of captions|have more than"):
        read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000


def test_a_shard_of_too_many_pictures_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.shard_samples.MAX_PICTURES", 3)
    with pytest.raises(ShardError, match="more than 3 pictures; divide it"):
        read(shard(tmp_path / "0.tar", ["a", "b", "c", "d"]))
