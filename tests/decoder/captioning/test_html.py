"""Alternative texts for a page, through the command line; every other byte stays the same."""

import re
import shutil
import time
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoder import caption
from decoder.captioning.html import HtmlPage
from pipeline.readers.cells import captions_in

ADDED = re.compile(r' alt="([^"]*)" data-alt-generated="(true|unsure)"')


@pytest.fixture
def site(captioner: Path, tmp_path: Path) -> Path:
    """A folder of pictures whose names need escapes in a page."""
    pictures = sorted((captioner / "images").iterdir())
    names = ("plain.png", "two words.png", "Schöne Straße.png", "inner/a&b.png")
    for picture, name in zip(pictures, names, strict=False):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(picture, tmp_path / name)
    return tmp_path


def add_texts(captioner: Path, page: Path, *options: str) -> int:
    return caption.main(
        ["--run", str(captioner / "runs" / "captioner"), "--alt", str(page), *options]
    )


def test_only_images_without_alt_get_one_and_every_other_byte_stays_the_same(
    captioner, site, capsys
):
    page = site / "page.html"
    page.write_bytes(
        "<!DOCTYPE html>\r\n<title><img src=plain.png></title>\n"
        '<IMG SRC="plain.png"><img src="two%20words.png" width=3>\n'
        "<img src='Schöne Straße.png'/><img src=inner/a&amp;b.png>\n"
        '<img src=plain.png alt=""><img src=plain.png alt="mine">\n'
        '<img src=plain.png role=presentation><img src=plain.png aria-hidden="true">\n'
        '<img src=plain.png aria-label="a thing"><!-- <img src=plain.png> -->\n'
        '<img src="https://example.org/x.png"><img src="data:image/png;base64,AA==">'
        "<img src=../outside.png><img>".encode()
    )
    original = page.read_bytes()
    assert add_texts(captioner, page) == 0
    assert page.read_bytes() == original
    copy = (site / "page.alt.html").read_text()
    assert len(ADDED.findall(copy)) == 4
    assert ADDED.sub("", copy).encode() == page.read_text().encode()
    assert all(unescape(text).endswith(".") for text, _ in ADDED.findall(copy))
    for place in ('<IMG alt="', "two%20words", "Straße", "a&amp;b"):
        assert place in copy
    assert re.search(r'<IMG alt="[^"]+" data-alt-generated="true" SRC="plain.png">', copy)
    out = capsys.readouterr().out
    assert "4 alternative texts" in out
    assert "5 images needed none, 2 are on the web or outside" in out
    assert "data:image/png;base64,AA==: left without a text: embedded in the page" in out
    assert "line 8: a picture without src: left without a text: no address" in out


def test_a_picture_is_refused_as_a_page(captioner, site, capsys):
    assert add_texts(captioner, site / "plain.png") == 2
    assert "--alt expects an HTML page" in capsys.readouterr().err
    assert not (site / "plain.alt.png").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "utf-8"])
def test_a_page_keeps_its_encoding(captioner, site, encoding):
    page = site / "page.html"
    page.write_bytes('<p>é ß</p><img src="Schöne Straße.png">'.encode(encoding))
    assert add_texts(captioner, page) == 0
    copy = (site / "page.alt.html").read_bytes().decode(encoding)
    assert len(ADDED.findall(copy)) == 1
    assert ADDED.sub("", copy) == page.read_bytes().decode(encoding)
    assert add_texts(captioner, page) == 0, "our own copy may be replaced"


def test_pictures_are_resolved_against_base_and_the_root_of_the_site(captioner, site, capsys):
    page = site / "inner" / "page.html"
    page.write_text('<img src="/plain.png"><img src="a&b.png"><img src="../plain.png">')
    assert add_texts(captioner, page) == 1, "without --site the root is the page's own folder"
    assert "plain.png" in capsys.readouterr().err
    assert add_texts(captioner, page, "--site", str(site)) == 0
    assert len(ADDED.findall((site / "inner" / "page.alt.html").read_text())) == 3
    page.write_text('<base href="../"><img src="plain.png">')
    assert add_texts(captioner, page, "--site", str(site)) == 0
    assert len(ADDED.findall((site / "inner" / "page.alt.html").read_text())) == 1


def test_missing_and_broken_pictures_are_reported_and_the_others_get_texts(captioner, site, capsys):
    (site / "broken.png").write_bytes(b"\x89PNG")
    page = site / "page.html"
    page.write_text("<img src=broken.png><img src=plain.png><img src=gone.png>")
    assert add_texts(captioner, page) == 1
    errors = capsys.readouterr().err
    assert "broken.png" in errors
    assert "gone.png" in errors
    copy = (site / "page.alt.html").read_text()
    assert [m.start() for m in ADDED.finditer(copy)] == [copy.index("<img", 5) + 4]


def test_only_a_copy_of_ours_is_replaced(captioner, site, capsys):
    page, copy = site / "page.html", site / "page.alt.html"
    page.write_text("<img src=plain.png>")
    copy.write_text("somebody's page")
    assert add_texts(captioner, page) == 2
    assert "not a copy made by this command" in capsys.readouterr().err
    assert copy.read_text() == "somebody's page"
    assert add_texts(captioner, page, "--force") == 0
    first = copy.read_text()
    page.write_text("<p>new</p><img src=plain.png>")
    assert add_texts(captioner, page) == 0
    assert copy.read_text() == f"<p>new</p>{first}"
    assert add_texts(captioner, page, "--out", str(page), "--force") == 2
    assert page.read_text() == "<p>new</p><img src=plain.png>"


def test_a_page_that_needs_no_texts_can_be_captioned_twice(captioner, site):
    page = site / "page.html"
    page.write_text("<img src=plain.png alt=mine>")
    for _ in range(2):
        assert add_texts(captioner, page) == 0
        assert (site / "page.alt.html").read_text() == page.read_text()


def test_unsure_texts_are_marked_and_pictures_outside_the_site_are_not_read(captioner, site):
    """With the packaged captioner, which has a confidence estimate, always below 1."""
    inner = site / "inner"
    (inner / "out.png").symlink_to(site / "plain.png")
    page = inner / "page.html"
    page.write_text(
        '<img src="a&b.png"><img src="../plain.png"><img src="out.png"><img src="//h/x">'
    )
    assert caption.main(["--alt", str(page), "--unsure", "1"]) == 0
    found = ADDED.findall((inner / "page.alt.html").read_text())
    assert [mark for _, mark in found] == ["unsure"]
    assert found[0][0].startswith("Perhaps: ")


def test_a_page_that_is_not_utf_16_despite_its_first_bytes_is_refused(captioner, site, capsys):
    page = site / "page.html"
    page.write_bytes(b"\xff\xfe<")
    assert add_texts(captioner, page) == 2
    assert "starts as UTF-16, but is not" in capsys.readouterr().err


XHTML = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN" "xhtml1-strict.dtd">\n'
    '<html xmlns="http://www.w3.org/1999/xhtml">'
)


def bare_sources(text: str) -> list[str]:
    return [bare.sources[0] for bare in HtmlPage(text.encode()).bare]


@pytest.mark.parametrize(
    "hiding",
    ["<title/>", '<script src="a.js" />', "<textarea/>", "<iframe src='x>y'/>", "<style/>"],
)
def test_an_element_that_xhtml_closes_itself_hides_nothing(hiding):
    for html in (XHTML, XHTML.split("\n")[0] + "<html>", XHTML.split("\n")[2]):
        page = HtmlPage(
            f'{html}<head>{hiding}</head><img src="a"/>\n<img src="b"/></html>'.encode()
        )
        assert [bare.sources for bare in page.bare] == [("a",), ("b",)]
        assert page.unseen == []


@pytest.mark.parametrize("hiding", ["<title/>", "<title>", "<!-- a -- >", "<script>", "<textarea>"])
def test_pictures_hidden_by_a_broken_page_are_counted_with_their_lines(hiding):
    page = HtmlPage(f"<p>{hiding}</p>\r\n<img src=a>\r\n\r\n<img src=b>".encode())
    assert page.bare == []
    assert page.unseen == [2, 4]


def test_tags_in_comments_scripts_and_text_are_no_pictures():
    text = "<!-- <img src=a> --><script>'<img src=b>'</script><title><img src=c></title>"
    page = HtmlPage(f"{text}<textarea><img src=d></textarea><img src=e>".encode())
    assert [bare.sources for bare in page.bare] == [("e",)]
    assert page.unseen == []


def test_buttons_drawings_and_other_spellings_of_pictures_are_seen():
    page = HtmlPage(
        b"<image src=a><input type=IMAGE src=b><input type=text><amp-img src=c></amp-img>"
        b"<template><img src=d></template><noscript><img src=e></noscript>"
        b"<svg><image href=f /><image xlink:href=g></image></svg>"
        b"<svg role=img aria-label=x><image href=h /></svg>"
        b"<svg><image href=i><title>x</title></image></svg>"
        b"<img src=l role='NONE presentation'>"
        b"<input type=image alt=Search src=j><div aria-hidden=true><img src=k></div>"
    )
    assert [bare.sources[0] for bare in page.bare] == list("abcdefg")
    assert page.others == 5
    made = page.with_texts({5: ("A dog.", False)})
    assert b'<image aria-label="A dog." data-alt-generated="true" href=f />' in made


@pytest.mark.parametrize(
    ("tag", "source"),
    [
        ("<img src=x.gif data-src=a.png>", "a.png"),
        ("<img src=x.gif data-original=a.png>", "a.png"),
        ("<img src=x.gif data-lazy-src=a.png>", "a.png"),
        ("<img src=x.gif data-lazy=a.png>", "a.png"),
        ("<img src=x.gif data-echo=a.png>", "a.png"),
        ("<img src=x.gif data-cfsrc=a.png>", "a.png"),
        ("<img src=x.gif data-actualsrc=a.png>", "a.png"),
        ("<img src=x.gif nitro-lazy-src=a.png>", "a.png"),
        ('<img src=x.gif srcset="b.png 300w, a.png 900w, c.png 600w">', "a.png"),
        ('<img src=x.gif srcset="b.png, a.png 2x">', "a.png"),
        ('<img src=x.gif data-srcset="b.png 1x,a,b.png 1.5x">', "a,b.png"),
        ("<picture><source srcset=a.webp><img src=x.gif></picture>", "a.webp"),
        ("<picture><source data-srcset='a.webp 9w'><img src=x.gif></picture>", "a.webp"),
        ("<img src=x.gif data-flickity-lazyload=a.png>", "a.png"),
        ("<img src=x.gif data-src='a.png|b.png'>", "a.png"),
        ("<img ngSrc=a.png>", "a.png"),
        ("<img src=a.png data-hover-src=b.png data-title=c.png data-url=page/5>", "a.png"),
        ("<img src=a.png data-src-placeholder=b.png data-fallback-src=c.png>", "a.png"),
    ],
)
def test_the_picture_that_people_see_comes_first(tag, source):
    assert bare_sources(tag) == [source]


def test_a_noscript_copy_shows_what_its_neighbour_will_show():
    assert bare_sources("<img src=x.gif class=lazy>\n<noscript><img src=a.png></noscript>") == [
        "a.png",
        "a.png",
    ]


@pytest.mark.parametrize(
    "tag",
    [
        '<img :alt="title" src=a.png>',
        '<img v-bind:alt="title" src=a.png>',
        '<img [alt]="title" src=a.png>',
        '<img [attr.alt]="title" src=a.png>',
        '<img [attr.aria-label]="title" src=a.png>',
        '<img :[key]="title" src=a.png>',
        '<img alt.bind="title" src=a.png>',
        "<img .alt=${title} src=a.png>",
        '<img data-th-alt="${title}" src=a.png>',
        '<img tal:attributes="alt title" src=a.png>',
        "<img ...attributes src=a.png>",
        '<img src.bind="picture">',
        '<img [ngSrc]="picture">',
        "{{!-- <img src=a.png> --}}",
        "{{-- <img src=a.png> --}}",
        "{/* <img src=a.png> */}",
        "{# <img src=a.png> #}",
        "{% comment %}<img src=a.png>{% endcomment %}",
        '<img th:alt="${title}" src=a.png>',
        '<img ng-attr-alt="{{title}}" src=a.png>',
        "<img src={logo} alt={title}>",
        "<img onClick={() => go({a: 1})} src=a.png alt={title}>",
        "<img {...props} src=a.png>",
        '<img src="<?php echo $src ?>">',
        '<img <?= $attributes ?> src="a.png">',
        '<?php if ($a > 1) echo "<img src=a.png>"; ?>',
        '<img src="{{ url_for(x) }}">',
        '<img src="{% static "a.png" %}">',
        "<img {{ attributes }} src=a.png>",
        '<img src="<%= image_path %>">',
        '<img :src="picture">',
        '<img src="%PUBLIC_URL%/a.png">',
    ],
)
def test_templates_are_left_alone_and_counted(tag):
    page = HtmlPage(f"<p>{tag}</p><img src=b.png>".encode())
    assert [bare.sources for bare in page.bare] == [("b.png",)]
    assert page.templates == 1
    assert page.unseen == []


def test_code_that_does_not_touch_the_text_does_not_hide_a_picture():
    assert bare_sources('<img src=a.png class="{{ x }}" style="<?= $s ?>"><p>{{ a }}') == ["a.png"]


@pytest.mark.parametrize(
    ("page", "foreign"),
    [
        ("<html lang=de><img src=a>", True),
        ("<html lang='zh-Hant'><img src=a>", True),
        ("<html xml:lang=fr><img src=a>", True),
        ("<meta http-equiv=Content-Language content=es><img src=a>", True),
        ("<html lang=en><p lang=ja><img src=a>", True),
        ("<html lang=de><p lang=EN-gb><img src=a>", False),
        ("<html lang=de><img lang=de src=a>", False),
        ("<html lang=''><img src=a>", False),
        ("<html lang='{{ l }}'><img src=a>", False),
        ("<img src=a>", False),
    ],
)
def test_the_language_of_a_page_is_that_of_the_nearest_element(page, foreign):
    assert [bare.foreign for bare in HtmlPage(page.encode()).bare] == [foreign]


@given(
    st.lists(
        st.sampled_from(
            ["<img>", "<img src=a", " alt", ">", "<p>", '"', "é", "<!--", "\n", "{{", "<?"]
        )
    )
)
def test_removing_the_texts_gives_back_any_page(parts):
    text = "".join(parts)
    page = HtmlPage(text.encode())
    hostile = '"><script>alert("é & 文")</script>'
    made = page.with_texts(dict.fromkeys(range(len(page.bare)), (hostile, True))).decode()
    found = ADDED.findall(made)
    assert len(found) == len(page.bare)
    assert all(unescape(value) == hostile for value, _ in found)
    assert "<script" not in made
    assert ADDED.sub("", made) == text


def test_a_hostile_style_and_a_hostile_cell_are_read_in_linear_time():
    start = time.process_time()
    HtmlPage(f"<img src=a.png style='width:0{' ' * 100_000}x'>".encode())
    for cell in (f"[{', ' * 100_000}", f"array([{'],dtype=a' * 20_000}"):
        assert captions_in(cell) == [cell]
    assert time.process_time() - start < 5
