"""Captions of the page as files: what a person corrected is kept apart from what is generated."""

import io
import json
import zipfile

import pytest
from PIL import Image

from decoder import demo
from decoder.captioning import page_files
from decoder.captioning.confidence import in_words
from decoder.captioning.xmp import Xmp
from features.errors import UserError
from features.generated_texts import REGISTRY


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
    assert list(json.loads(files[f"trip/{REGISTRY}"])) == [f"{dog}.txt"]
    (second,) = json.loads(files[REGISTRY])
    assert files[second] == "Perhaps: another cat.\n"


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
            return page_files.save(named, pictures[0].parent, kind, "writer", replace)

        assert save("Generated.", False).startswith("2 files written")
        assert "2 are already there" in save("Generated again.", False)
        assert save("By a person.", True).startswith("2 files written")
        assert all("By a person." in file.read_text() for file in beside)
        assert "2 are already there" in save("By another person.", True)
        assert save("By another person.", True, replace=True).startswith("2 files written")
        assert all("By another person." in file.read_text() for file in beside)
        if kind == "txt":
            assert json.loads((tmp_path / kind / REGISTRY).read_text()) == {}


def test_a_table_in_the_album_takes_the_last_text(tmp_path):
    picture = tmp_path / "dog.jpg"
    picture.write_bytes(b"x")
    for text in ("A dog.", "My dog."):
        (one,) = page_files.parse({"captions": [sent("dog.jpg", text, text == "My dog.")]})
        said = page_files.save({picture: one}, tmp_path, "csv", "writer", False)
        assert said == f"1 captions saved in {tmp_path / 'captions.csv'}."
    _, row = (tmp_path / "captions.csv").read_text().splitlines()
    assert row.startswith("dog.jpg,My dog.,false,,1,")
    with pytest.raises(UserError, match="expected one of csv, txt"):
        page_files.save({picture: one}, tmp_path, "exe", "writer", False)


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
