"""Alternative texts for pages with odd pictures and for sites, through the command line."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from decoder import caption
from decoder.captioning.writer import CaptionWriter

SPACER = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


@pytest.fixture
def site(captioner: Path, tmp_path: Path) -> Path:
    """A site of two pages in two folders, with pictures that do and do not show something."""
    folder = tmp_path / "site"
    (folder / "inner").mkdir(parents=True)
    pictures = sorted((captioner / "images").iterdir())
    for picture, name in zip(pictures, ("a.png", "inner/b.png"), strict=False):
        shutil.copy(picture, folder / name)
    Image.new("RGB", (1, 1)).save(folder / "dot.gif")
    Image.new("RGBA", (300, 200)).save(folder / "clear.png")
    Image.new("RGB", (300, 200), "white").save(folder / "white.png")
    (folder / "index.html").write_text("<html lang=de>\n<img src=a.png>\n<img src=inner/b.png>")
    (folder / "inner" / "page.htm").write_text("<img src=/a.png><img src=b.png>\n<img src=b.png>")
    return folder


def add_texts(captioner: Path, *arguments: Path | str) -> int:
    run = str(captioner / "runs" / "captioner")
    return caption.main(["--run", run, "--alt", *map(str, arguments)])


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save_rows(table: Path, rows: list[dict[str, str]], **options: str) -> None:
    with table.open("w", encoding="cp1252", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


def test_nothing_is_invented_for_pictures_that_show_nothing(captioner, site, capsys):
    page = site / "page.html"
    lines = [
        "<img src=dot.gif>",
        "<img src=clear.png>",
        f"<img src={SPACER}>",
        "<img style='width: 1px; height:1px' src=https://example.org/count>",
        "<img src=white.png>",
        "<img src=dot.gif data-src=https://example.org/a.png>",
        f"<img src={SPACER} class=lazyload>",
        f"<img src={SPACER} data-interchange='[a.png, small]'>",
        "<img src=dot.gif data-src=a.png>",
        "<img src=white.png srcset='dot.gif 9w, inner/b.png 3w'>",
    ]
    page.write_text("\n".join(lines))
    assert add_texts(captioner, page) == 0
    made = page.with_name("page.alt.html").read_text().split("\n")
    for number in range(4):
        assert made[number].startswith('<img alt="" data-alt-generated="true" '), lines[number]
    assert made[4:8] == lines[4:8]
    assert all('alt="' in line and 'alt=""' not in line for line in made[8:])
    printed = capsys.readouterr()
    assert '4 are spacers and got alt=""' in printed.out
    assert "line 5: white.png: left without a text: it shows nothing" in printed.out
    assert "1 are on the web" in printed.out
    assert printed.err == ""


def test_an_empty_picture_gets_no_caption_but_the_reason(captioner, site, capsys):
    run = str(captioner / "runs" / "captioner")
    assert caption.main(["--run", run, str(site / "white.png"), str(site / "a.png")]) == 0
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [str(site / "a.png")]
    assert f"no caption for {site / 'white.png'}: it shows nothing" in printed.err


def test_english_texts_in_a_page_of_another_language_say_so(captioner, site):
    assert add_texts(captioner, site / "index.html") == 0
    made = (site / "index.alt.html").read_text()
    assert made.count('data-alt-generated="true" lang="en" src=') == 2


def test_pictures_that_a_broken_page_hides_are_named(captioner, site, capsys):
    page = site / "page.html"
    page.write_text("<title/>\n<img src=a.png>\n\n<img src=a.png>")
    assert add_texts(captioner, page) == 0
    assert "finds pictures in lines 2, 4 that browsers do not show" in capsys.readouterr().err


def test_a_site_is_copied_with_one_caption_for_each_picture(captioner, site, capsys, monkeypatch):
    captioned = []
    captions = CaptionWriter.captions
    monkeypatch.setattr(
        CaptionWriter,
        "captions",
        lambda self, paths, **more: captioned.extend(paths) or captions(self, paths, **more),
    )
    out = site / "copies"
    (site / ".git").mkdir()
    (site / ".git" / "x.html").write_text("<img src=../a.png>")
    (site / "link").symlink_to(site)
    (site / "none.html").write_text("<p>no picture")
    (site / "data.html").write_text('{"a": 1}')
    assert add_texts(captioner, site, "--out", out) == 1, "one of the files is no page"
    assert "data.html is JSON" in capsys.readouterr().err
    assert sorted(path.name for path in captioned) == ["a.png", "b.png"]
    made = {path.relative_to(out).as_posix() for path in out.rglob("*.htm*")}
    assert made == {"index.html", "inner/page.htm", "none.html"}
    assert (out / "inner" / "page.htm").read_text().count('alt="') == 3
    (site / "none.html").write_text("<p>changed")
    (site / "data.html").unlink()
    assert add_texts(captioner, site, "--out", out) == 0
    assert (out / "none.html").read_text() == "<p>changed"
    (out / "index.html").write_text('<img alt="mine" data-alt-generated="true" src=a.png>')
    assert add_texts(captioner, site, "--out", out) == 2, "a copy that a person changed"
    assert "changed since" in capsys.readouterr().err
    assert "mine" in (out / "index.html").read_text()


def test_several_pages_get_copies_beside_them_which_are_no_pages_of_the_site(captioner, site):
    assert add_texts(captioner, site / "index.html", site / "inner") == 1, "/a.png is outside inner"
    for _ in range(2):
        assert add_texts(captioner, site, "--site", site) == 0
    names = {path.name for path in site.rglob("*.htm*")}
    assert names == {"index.html", "index.alt.html", "page.htm", "page.alt.htm"}


def test_corrected_texts_are_applied_wherever_the_picture_occurs(captioner, site, capsys):
    table, out = site.parent / "texts.csv", site.parent / "copies"
    arguments = (site, "--out", out, "--review", table)
    assert add_texts(captioner, *arguments) == 0
    rows = rows_of(table)
    assert [(row["page"], row["line"], row["picture"]) for row in rows] == [
        ("site/index.html", "2", "site/a.png"),
        ("site/index.html", "3", "site/inner/b.png"),
        ("site/inner/page.htm", "1", "site/a.png"),
        ("site/inner/page.htm", "1", "site/inner/b.png"),
        ("site/inner/page.htm", "2", "site/inner/b.png"),
    ]
    assert [row["lang"] for row in rows] == ["en", "en", "", "", ""]
    generated = rows[1]["text"]
    assert generated
    rows[0] |= {"text": 'Ein "roter" Kreis; für alle', "lang": ""}
    rows[4]["text"] = "Only here"
    save_rows(table, rows, delimiter=";")  # as a spreadsheet program saves it
    (site / "index.html").write_text("\n" + (site / "index.html").read_text())
    for _ in range(2):  # what was applied stays
        assert add_texts(captioner, *arguments) == 0
        index, page = (out / "index.html").read_text(), (out / "inner/page.htm").read_text()
        red = 'alt="Ein &quot;roter&quot; Kreis; f&#252;r alle" data-alt-generated="reviewed" src='
        assert red in index
        assert red in page
        assert page.count('alt="Only here"') + index.count('alt="Only here"') == 3
    (site / "index.html").write_text("<p>no picture")
    assert add_texts(captioner, *arguments) == 0
    assert "1 corrections belong" not in capsys.readouterr().out
    assert any(row["page"] == "site/index.html" for row in rows_of(table)), "nothing is lost"


def test_corrections_in_another_encoding_are_refused_not_garbled(captioner, site, capsys):
    table, page = site.parent / "texts.csv", site / "index.html"
    assert add_texts(captioner, page, "--review", table) == 0
    content = table.read_text("utf-8-sig")
    generated, made = content.splitlines()[1].split(",")[3], page.with_name("index.alt.html")
    before = made.read_bytes()
    for encoding, text in {
        "cp932": "犬が走る",
        "cp1251": "Собака",
        "cp1250": "Pies i łódź",
        "gbk": "一只狗在跑",
    }.items():
        table.write_bytes(content.replace(f",{generated},", f",{text},", 1).encode(encoding))
        assert add_texts(captioner, page, "--review", table) == 2
        assert "found the encoding of another program; save it again" in capsys.readouterr().err
        assert made.read_bytes() == before
    corrected = content.replace(f",{generated},", ",L'été à 20 °C: «œuvre»,", 1)
    table.write_bytes(f"sep=,\n{corrected}".encode("cp1252"))
    assert add_texts(captioner, page, "--review", table) == 0
    assert "read as Windows-1252" in capsys.readouterr().out
    assert b"20 &#176;C: &#171;&#339;uvre&#187;" in made.read_bytes()


def test_names_in_another_case_are_found_and_templates_of_a_site_are_named(captioner, site, capsys):
    (site / "inner" / "page.php").write_text("<img src=b.png>")
    (site / "index.html").write_text("<img src=A.PNG><img src=Inner/B.png>")
    assert add_texts(captioner, site, "--out", site.parent / "copy") == 0
    assert "1 templates are passed over, name a file" in capsys.readouterr().out
    assert (site.parent / "copy" / "index.html").read_text().count('alt="') == 2


def test_a_table_that_is_not_ours_is_refused(captioner, site, capsys):
    table = site / "mine.csv"
    for content in ("image,caption\na.png,mine\n", "", "page,line,picture,text\n"):
        table.write_text(content)
        assert add_texts(captioner, site / "index.html", "--review", table) == 2
        assert "expected the columns page, line, picture" in capsys.readouterr().err
        assert table.read_text() == content


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.md", b"# Title\n<img src=a.png>", "Markdown"),
        ("a.html", b"%PDF-1.7\n<img src=a.png>", "a PDF document"),
        ("a.epub", b"PK\x03\x04mimetypeapplication/epub+zip<img>", "an EPUB book"),
        ("a.docx", b"PK\x03\x04...word/document.xml", "a Word document"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href=a /></svg>", "an SVG"),
        ("a.html", b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x --><svg><image/></svg>', "an SVG"),
        ("a.json", b'{"html": "<img src=a.png>"}', "JSON"),
        ("a.html", b'<?xml version="1.0"?><rss><item/></rss>', "a news feed"),
        ("a.xml", b'<?xml version="1.0"?><book><img/></book>', "an XML document of <book>"),
        ("a.rst", b".. image:: a.png\n<p>", "reStructuredText"),
        ("a.html", b"MIME-Version: 1.0\n\n<html><img src=a.png>", "MHTML"),
        ("a.html", b"just words", "text without any HTML tag"),
        ("a.html", b" \n", "an empty file"),
        ("a.html", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_files_that_are_no_html_are_refused_by_kind(name, content, kind, tmp_path, capsys):
    file = tmp_path / name
    file.write_bytes(content)
    assert caption.main(["--alt", str(file)]) == 2
    error = capsys.readouterr().err
    assert f"--alt expects an HTML page, but {file} is " in error
    assert kind in error
    assert list(tmp_path.iterdir()) == [file]


def test_fragments_and_templates_are_pages(tmp_path):
    for name, content in {
        "part.html": "<svg><path d=z /></svg>",
        "part.php": "<?php x() ?><div>",
        "one.vue": "<template><img :alt=a src=b></template>",
        "list.html": "[<b>1</b>] and {more}",
    }.items():
        page = tmp_path / name
        page.write_text(content)
        assert caption.main(["--alt", str(page)]) == 0
        assert page.with_name(f"{page.stem}.alt{page.suffix}").read_text() == content
