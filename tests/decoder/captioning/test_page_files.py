"""Captions of the page as files: what a person corrected is kept apart from what is generated."""

import asyncio
import io
import json
import os
import zipfile
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from decoder import demo
from decoder.captioning import page_files
from decoder.captioning.confidence import in_words
from decoder.captioning.page import Match
from decoder.captioning.xmp import Xmp
from features.errors import UserError
from features.generated_texts import REGISTRY, is_registry
from pipeline.readers.beside import read_beside


def sent(name: str, text: str, corrected: bool = False, unsure: bool = False) -> dict:
    values = {"name": name, "text": text, "corrected": corrected, "unsure": unsure}
    return {**values, "confidence": 0.5, "bytes": 10, "modified": 1234, "picture": ""}


CAPTIONS = [
    sent("trip/dog.jpg", "A dog runs."),
    sent("cat.png", "A cat\nof mine.", corrected=True, unsure=True),
    sent("../../cat.png", "Another cat.", unsure=True),
]


def downloaded(kind: str) -> dict[str, str]:
    name, content = page_files.download(page_files.parse({"captions": CAPTIONS}), kind, "writer")
    if kind == "csv":
        return {name: content.decode()}
    archive = zipfile.ZipFile(io.BytesIO(content))
    return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_table_has_a_row_for_each_picture_without_a_confidence_for_corrections():
    header, *rows = downloaded("csv")["captions.csv"].splitlines()
    assert header == "path,caption,unsure,confidence,bytes,modified,writer,labels,error"
    assert rows == [
        "trip/dog.jpg,A dog runs.,false,0.5,10,1234000000,writer,,",
        "cat.png,A cat of mine.,false,,10,1234000000,writer,,",
        "cat (2).png,Another cat.,true,0.5,10,1234000000,writer,,",
    ]


@pytest.mark.parametrize(
    ("kind", "dog", "cat"), [("txt", "dog.jpg", "cat.png"), ("stem-txt", "dog", "cat")]
)
def test_text_files_that_a_person_corrected_are_not_registered_as_generated(kind, dog, cat):
    files = downloaded(kind)
    assert files[f"trip/{dog}.txt"] == "A dog runs.\n"
    assert files[f"{cat}.txt"] == "A cat of mine.\n"
    registries = [name for name in files if is_registry(PurePosixPath(name).name)]
    assert REGISTRY not in (PurePosixPath(name).name for name in registries), "it may exist"
    (of_trip,), (second,) = (json.loads(files[name]) for name in registries)
    assert registries[0].startswith("trip/")
    assert of_trip == f"{dog}.txt"
    assert files[second] == "Perhaps: another cat.\n"


def test_an_unpacked_download_is_known_as_generated_beside_earlier_texts(tmp_path):
    for name in ("dog.jpg", "cow.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (one,) = page_files.parse({"captions": [sent("cow.jpg", "A cow.")]})
    page_files.save({tmp_path / "cow.jpg": one}, tmp_path, "stem-txt", "writer", False)
    _, content = page_files.download(
        page_files.parse({"captions": [sent("dog.jpg", "A dog.")]}), "stem-txt", "writer"
    )
    zipfile.ZipFile(io.BytesIO(content)).extractall(tmp_path)
    pairs, remarks = read_beside(tmp_path, ["cow.jpg", "dog.jpg"])
    assert pairs == []
    assert any("2 text files were written by decoder.caption" in remark for remark in remarks)
    corrected = page_files.parse({"captions": [sent("dog.jpg", "My dog.", corrected=True)]})
    saved = page_files.save(
        {tmp_path / "dog.jpg": corrected[0]}, tmp_path, "stem-txt", "writer", False
    )
    assert saved.pictures == [tmp_path / "dog.jpg"], "it replaces a text that is known as ours"


def test_one_text_file_is_not_downloaded_for_two_pictures():
    captions = page_files.parse({"captions": [sent("dog.jpg", "A."), sent("dog.png", "B.")]})
    with pytest.raises(UserError, match=r"dog.txt would be the caption of both dog.jpg and dog.pn"):
        page_files.download(captions, "stem-txt", "writer")
    assert page_files.download(captions, "txt", "writer")


def test_characters_that_no_file_can_hold_are_replaced():
    text = "A\x01dog\ufffe\u2028runs \ud83d."
    (one,) = page_files.parse({"captions": [sent("caf\udce9\n.jpg", text, corrected=True)]})
    assert (one.name, one.text) == ("caf__.jpg", "A dog runs ?.")
    for kind in page_files.KINDS:
        assert page_files.download([one], kind, "writer")


def test_xmp_files_say_who_wrote_the_description():
    files = downloaded("xmp")
    assert Xmp(files["trip/dog.jpg.xmp"].encode()).generated
    corrected = Xmp(files["cat.png.xmp"].encode())
    assert (corrected.described, corrected.generated) == (True, False)


def test_a_correction_replaces_a_generated_text_beside_its_picture_but_no_text_of_a_person(
    tmp_path,
):
    for kind, suffix in (("txt", ".txt"), ("xmp", ".xmp")):
        pictures = [tmp_path / kind / name for name in ("dog.jpg", "cat.png")]
        pictures[0].parent.mkdir()
        for picture in pictures:
            Image.new("RGB", (8, 8)).save(picture)
        beside = [picture.with_name(picture.name + suffix) for picture in pictures]

        def save(
            text: str, corrected: bool, replace: bool = False, kind=kind, pictures=pictures
        ) -> str:
            captions = page_files.parse(
                {"captions": [sent(one.name, text, corrected) for one in pictures]}
            )
            named = dict(zip(pictures, captions, strict=True))
            return page_files.save(named, pictures[0].parent, kind, "writer", replace).said

        assert save("Generated.", False).startswith("2 files saved")
        assert "2 are already there" in save("Generated again.", False)
        assert save("By a person.", True).startswith("2 files saved")
        assert all("By a person." in file.read_text() for file in beside)
        assert "2 are already there" in save("By another person.", True)
        assert save("By another person.", True, replace=True).startswith("2 files saved")
        assert all("By another person." in file.read_text() for file in beside)
        if kind == "txt":
            assert json.loads((tmp_path / kind / REGISTRY).read_text()) == {}


def test_a_table_in_the_album_takes_the_last_text_of_a_person(tmp_path):
    picture, table = tmp_path / "dog.jpg", tmp_path / "captions.csv"
    picture.write_bytes(b"x")
    left = " 1 is already there and was left as it is."
    for text, replace, said in (
        ("A dog.", False, f"1 caption saved in {table}."),
        ("My dog.", False, f"1 caption saved in {table}."),
        ("A cat.", False, f"0 captions saved in {table}.{left}"),
        ("A cow.", True, f"1 caption saved in {table}."),
    ):
        (one,) = page_files.parse({"captions": [sent("dog.jpg", text, text == "My dog.")]})
        saved = page_files.save({picture: one}, tmp_path, "csv", "writer", replace)
        assert saved.said == said
        assert saved.pictures == [picture] * saved.said.startswith("1")
        _, row = table.read_text().splitlines()
        kept = "My dog." if text == "A cat." else text
        assert row.startswith(f"dog.jpg,{kept},false,")
    with pytest.raises(UserError, match="save text or XMP files"):
        page_files.save({tmp_path / "a\nb.jpg": one}, tmp_path, "csv", "writer", False)
    with pytest.raises(UserError, match=r"another captioner .*; move the file elsewhere, or save"):
        page_files.save({picture: one}, tmp_path, "csv", "another", True)
    with pytest.raises(UserError, match="expected one of csv, txt"):
        page_files.save({picture: one}, tmp_path, "exe", "writer", False)


class Found:
    """A search that finds the pictures given to it."""

    def __init__(self, folder: Path, *pictures: Path) -> None:
        self.folder, self.count, self.pictures = folder, len(pictures), pictures

    def find(self, sentence: str) -> tuple[list[Match], list[str]]:
        return [Match(picture, "good match") for picture in self.pictures], []


def post(page: Any, path: str, content: dict) -> tuple[int, Any]:
    """Send a request with JSON to a page in this process; return the status and the answer."""
    answers = []

    async def receive() -> dict:
        return {"type": "http.request", "body": json.dumps(content).encode()}

    async def send(message: dict) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    asyncio.run(page.application()(scope, receive, send))
    return answers[0]["status"], json.loads(answers[1]["body"])


@pytest.fixture
def open_page(tmp_path):
    pytest.importorskip("starlette")
    from decoder.captioning.page_server import Page

    def opened(*pictures: Path) -> Any:
        options = {"max_upload": 1, "max_queue": 1}
        captioner = SimpleNamespace(identity="writer")
        return Page(captioner, Found(tmp_path, *pictures), tmp_path, **options)

    return opened


def test_of_two_cards_of_a_picture_the_edited_one_else_the_newest_is_saved(tmp_path, open_page):
    picture = tmp_path / "dog.jpg"
    picture.write_bytes(b"x")
    page = open_page(picture)
    status, found = post(page, "/api/search", {"sentence": "a dog"})
    (one,) = found["pictures"]
    assert (status, one["name"]) == (200, "dog.jpg")
    for newest, oldest, wanted in (
        ("New.", "Old.", 0),
        ("New.", "My old.", 1),
        ("My new.", "My old.", 0),
    ):
        captions = [
            {**sent("dog.jpg", text, text.startswith("My")), "picture": one["picture"]}
            for text in (newest, oldest)
        ]
        status, saved = post(page, "/api/save/csv", {"captions": captions, "replace": True})
        assert (status, saved["written"]) == (200, [wanted])
        _, row = (tmp_path / "captions.csv").read_text().splitlines()
        assert row.startswith(f"dog.jpg,{(newest, oldest)[wanted]},")


def test_a_name_that_is_not_utf_8_is_found_saved_and_named_in_errors(tmp_path, open_page):
    picture = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    status, found = post(open_page(picture), "/api/search", {"sentence": "a dog"})
    assert (status, found["pictures"][0]["name"]) == (200, picture.name)
    page = open_page()
    page._search.find = lambda sentence: (_ for _ in ()).throw(UserError(f"no {picture.name}"))
    assert post(page, "/api/search", {"sentence": "a dog"}) == (
        422,
        {"error": f"No {picture.name}."},
    )


@pytest.mark.parametrize("host", ["..", "a" * 64])
def test_an_address_that_cannot_be_is_named(host, capsys):
    assert demo.main(["--host", host]) == 2
    assert f"cannot listen on {host}, port 7860: " in capsys.readouterr().err


def test_confidence_in_words():
    assert in_words(0.83, False) == "Probably right: about 8 in 10 such captions are right."
    assert in_words(0.55, False) == "Perhaps right: about 6 in 10 such captions are right."
    assert in_words(0.31, True) == "Unsure: about 3 in 10 such captions are right."
    assert in_words(0.01, True) == "Unsure: fewer than 1 in 10 such captions are right."
    assert in_words(0.99, False) == "Probably right: more than 9 in 10 such captions are right."


def test_a_folder_is_needed_to_save(capsys):
    assert demo.main(["--save"]) == 2
    assert "--save needs --folder" in capsys.readouterr().err
    assert demo.main(["--folder", "a", "--work", "b"]) == 2
    assert "choose one" in capsys.readouterr().err
