"""Corrected texts of pages that change, through the command line: each stays at its place.

The command line is the real one; only the captioner is replaced, by one with a fixed sentence.
"""

import csv
import os
import sys
from pathlib import Path

import pytest

from decoder import caption
from decoder.captioning import caption_stage
from decoder.captioning.writer import Caption, CaptionWriter
from tests.pictures import moon


class Writer(CaptionWriter):
    """Captions every picture with the same unsure sentence, without loading a model."""

    def results(self, paths, done=0, quiet=False):
        for path in paths:
            yield path, [Caption("A dog runs.", True, 0.3, -1.0)]

    def identity(self):
        return "writer"


SPACER = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
GENERATED = "Perhaps: a dog runs."


class Site:
    """A site of pages with the icons a.png and b.png, and its table of texts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / "texts.csv"
        for name, size in (("a.png", (80, 60)), ("b.png", (90, 60))):
            moon(size).save(folder / name)

    def rows(self) -> list[dict[str, str]]:
        with self.table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return list(csv.DictReader(file))

    def correct(self, *texts: str | None) -> None:
        """Write texts into the first rows, as a person does; None leaves a row as it is."""
        rows = self.rows()
        for row, text in zip(rows, texts, strict=False):
            row["text"] = row["text"] if text is None else text
        with self.table.open(
            "w", encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    def run(self, *pages: str) -> list[str]:
        """Caption pages 0.html, 1.html, ...; return the texts of all pictures in the copies."""
        files = [self.folder / f"{number}.html" for number, _ in enumerate(pages)]
        for file, content in zip(files, pages, strict=True):
            file.write_text(content)
        assert caption.main(["--alt", *map(str, files), "--review", str(self.table)]) == 0
        made = "".join(file.with_name(f"{file.stem}.alt.html").read_text() for file in files)
        return [
            part.split('alt="')[1].split('"')[0] if "alt=" in part else ""
            for part in made.split("<img")[1:]
        ]


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    monkeypatch.setattr(caption_stage, "CaptionWriter", Writer)
    return Site(tmp_path)


A, B = "<img src=a.png>", "<img src=b.png>"


def test_places_of_one_picture_keep_their_own_texts_when_the_page_moves(site, capsys):
    assert site.run(A + A + B) == [GENERATED] * 3
    site.correct("Home", "Next")
    for page in (A + A + B, f"<p>\n{A}\n{B}{A}", f"<p>\n\n{A}\n{A}\n{B}"):
        texts = site.run(page)
        assert [text for text in texts if text != GENERATED] == ["Home", "Next"], page
    assert "correction" not in capsys.readouterr().out
    site.run(B)
    assert "kept in the table: 2 corrections: " in capsys.readouterr().out
    assert site.run(A + B + A) == ["Home", GENERATED, "Next"], "they are back"


def test_places_in_their_old_lines_keep_their_texts_beside_new_ones(site):
    site.run(f"{A}\n{A}")
    site.correct("Home", "Next")
    assert site.run(f"{A}\n{A}\n{A}") == ["Home", "Next", GENERATED]


def test_corrections_whose_place_is_not_certain_are_listed(site, capsys):
    site.run(A + A)
    site.correct("Home", "Next")
    assert site.run(A + A + A) == [GENERATED] * 3
    said = capsys.readouterr().out
    assert "not on their page any more, but kept in the table: 2 corrections: " in said
    assert "0.html, line 1: a.png" in said
    site.correct(None, "Middle", None)  # the new rows can be corrected as any others
    assert site.run(A + A + A) == ["Middle"] * 3
    assert {row["text"] for row in site.rows()} == {"Home", "Next", "Middle"}


def test_an_edit_changes_places_with_the_same_text_and_no_other_correction(site):
    site.run(A + A, A)
    site.correct("Home", "Next", "Home")
    site.run(A + A, A)
    site.correct("Start")
    assert site.run(A + A, A) == ["Start", "Next", "Start"]


def test_pictures_that_are_known_by_no_file_share_no_text(site):
    script = "<img class=js-photo>"
    lazy = f"<img class=lazy src={SPACER}>"
    long = "https://example.org/" + "x" * 300
    web = f"<img src={long}1.png><img src={long}2.png>"
    site.run(script + script + lazy + lazy + web, script + lazy + web)
    site.correct("The team", None, "The house", None, "One", "Two")
    for _ in range(2):
        assert site.run(script + script + lazy + lazy + web, script + lazy + web) == [
            *("The team", "", "The house", "", "One", "Two"),
            *("", "", "One", "Two"),
        ]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has no such names")
def test_a_table_with_a_name_that_is_not_utf_8_is_read_again(site, capsys):
    (site.folder / "a.png").rename(site.folder / os.fsdecode(b"caf\xe9.png"))
    page = "<img src=caf%E9.png>"
    site.run(page)
    site.correct("Ein Café")
    assert site.run(page) == ["Ein Caf&#233;"]
    assert "not UTF-8" not in capsys.readouterr().out


def test_an_unsure_text_stays_unsure_however_a_spreadsheet_program_saves_it(site):
    site.run(A)
    site.table.write_text(site.table.read_text("utf-8-sig").replace(",true,", ",WAHR,"))
    site.run(A)
    assert 'data-alt-generated="unsure"' in (site.folder / "0.alt.html").read_text()


@pytest.mark.usefixtures("closed")
def test_a_folder_of_a_site_that_cannot_be_opened_is_not_left_out(site, capsys):
    (site.folder / "closed").mkdir()
    (site.folder / "0.html").write_text(A)
    assert caption.main(["--alt", str(site.folder)]) == 2
    assert f"cannot read {site.folder / 'closed'}: Permission denied" in capsys.readouterr().err
    assert not (site.folder / "0.alt.html").exists()
