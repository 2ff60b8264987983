"""Pages in the encodings that they declare: tags and names of files are found in all of them."""

import codecs
from pathlib import Path

import pytest

from decoder.captioning.html import HtmlPage
from decoder.captioning.sources import file_of

# The name in each script; the last byte of many double-byte characters is an ASCII letter or sign.
SCRIPTS = {
    "gbk": "图片冊",
    "gb2312": "图片",
    "gb18030": "图片",
    "shift_jis": "表ソ写真",
    "euc-jp": "写真",
    "iso-2022-jp": "写真ブブ",
    "euc-kr": "사진",
    "big5": "圖片功",
    "windows-1251": "Фото",
    "koi8-r": "фото",
    "iso-8859-2": "łódź",
    "windows-1252": "œuvre",
}
DECLARATIONS = (
    '<meta charset="{}">',
    '<META HTTP-EQUIV="Content-Type" CONTENT="text/html; charset={}">',
    '<?xml version="1.0" encoding="{}"?>',
)


def check_page(content: bytes, name: str, folder: Path) -> None:
    page = HtmlPage(content)
    assert [bare.line for bare in page.bare] == [2]
    assert file_of(page.bare[0].sources[0], page.codec, folder, folder) == folder / f"{name}.png"
    made = page.with_texts({0: ("A dog.", False)})
    codec = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else page.codec
    before, after = made.decode(codec).split(' alt="A dog." data-alt-generated="true"')
    assert before + after == content.decode(codec)


@pytest.mark.parametrize("label", SCRIPTS)
def test_a_declared_charset_is_honoured_for_tags_and_names(label, tmp_path):
    name = SCRIPTS[label]
    (tmp_path / f"{name}.png").touch()
    for declaration in DECLARATIONS:
        text = f'{declaration.format(label)}<p>{name}</p>\r\n<img src="{name}.png"> {name}'
        check_page(text.encode(label), name, tmp_path)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-8"])
def test_unicode_needs_no_declaration_and_a_mark_counts_more_than_one(codec, tmp_path):
    (tmp_path / "写真.png").touch()
    declared = '<meta charset="gbk">' if codec in ("utf-8-sig", "utf-16") else ""
    check_page(f"<p>{declared}\n<img src=写真.png>".encode(codec), "写真", tmp_path)


def test_names_are_found_in_every_form_that_servers_accept(tmp_path):
    for name in ("é.png", "u\u0308.png", "folder/写.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for address, name in {
        "%C3%A9.png?v=3#top": "é.png",
        "%E9.png": "é.png",
        "e\u0301.png": "é.png",
        "%C3%BC.png": "u\u0308.png",
        "folder\\写.png": "folder/写.png",
        "folder/%8E%CA.png": "folder/写.png",
    }.items():
        found = file_of(address, "cp932", tmp_path, tmp_path)
        assert found == tmp_path / name, address


def test_pages_that_break_their_own_declaration_are_still_read():
    for start in ("<meta charset=nonsense>", "<meta charset=utf-8>", "<meta charset=utf-7>", ""):
        for broken in (b"\xff\x81", b"\xe9", b"\x1b$B\x21"):
            content = start.encode() + broken + b"<img src=a.png>" + broken
            made = HtmlPage(content).with_texts({0: ("A dog.", False)})
            assert made.replace(b' alt="A dog." data-alt-generated="true"', b"") == content
