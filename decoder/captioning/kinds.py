"""What a file is that was expected to be an HTML page."""

import json
import re
from pathlib import Path

from features.kinds import PICTURE_SUFFIXES

PAGE_SUFFIXES = {".html", ".htm", ".xhtml", ".xht", ".shtml"}
# Pages that a program fills in; in a folder they are passed over and counted.
TEMPLATE = re.compile(
    r".*\.(?:php|phtml|aspx?|cshtml|jsp|ftl|vm|erb|ejs|hbs|mustache|handlebars|twig|liquid|njk"
    r"|j2|jinja2?|tpl|vue|svelte|astro|[jt]sx)",
    re.IGNORECASE,
)
_MARKUP = {
    ".md": "Markdown",
    ".markdown": "Markdown",
    ".mdown": "Markdown",
    ".mkd": "Markdown",
    ".mdx": "Markdown",
    ".rst": "reStructuredText",
    ".adoc": "AsciiDoc",
    ".asciidoc": "AsciiDoc",
    ".org": "Org",
    ".tex": "LaTeX",
    ".ipynb": "a Jupyter notebook",
    ".css": "a style sheet",
    ".js": "JavaScript",
    ".ts": "TypeScript",
    ".eml": "an e-mail",
    ".mht": "a web archive (MHTML)",
    ".mhtml": "a web archive (MHTML)",
}
_STARTS = (
    (b"%PDF", "a PDF document"),
    (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"bplist", "a web archive of Safari"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"RIFF", "a picture"),
    (b"version https://git-lfs", "a Git LFS pointer; get the page with git lfs pull"),
)
_ZIPPED = (
    (b"application/epub+zip", "an EPUB book"),
    (b"word/", "a Word document"),
    (b"xl/", "an Excel workbook"),
    (b"ppt/", "a PowerPoint presentation"),
    (b"application/vnd.oasis.opendocument", "an OpenDocument file"),
)
_MAIL = re.compile(r"(?:From|MIME-Version|Received|Return-Path|Message-ID): ", re.IGNORECASE)
_PROLOGUE = re.compile(
    r"(?:\s|\ufeff|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\])?[^>]*>)*",
    re.DOTALL | re.IGNORECASE,
)
_ROOT = re.compile(r"<(?:\w+:)?([a-z][\w.-]*)", re.IGNORECASE)
_HTML_TAG = re.compile(
    r"<(?:!doctype\s+html|html|head|body|title|meta|link|base|script|style|template|main|header|footer|nav|"
    r"section|article|aside|div|span|p|a|b|i|u|em|strong|small|center|font|table|t[rdh]|ul|ol|li|dl|dt|dd|"
    r"h[1-6]|hr|br|img|image|picture|figure|figcaption|form|input|button|label|select|noscript|svg|video|"
    r"iframe|object|map|area|amp-img|blockquote|pre|code|details|frameset)(?=[\s/>])",
    re.IGNORECASE,
)
_XML_ROOTS = {
    "rss": "a news feed",
    "feed": "a news feed",
    "package": "an EPUB package",
    "ncx": "an EPUB table of contents",
    "urlset": "a site map",
    "plist": "a property list",
}


def not_html(file: Path, content: bytes, text: str) -> str | None:
    """Return what a file is, in words; None if it is an HTML page or a template of one.

    Args:
        file: its path; the suffix decides between kinds of text.
        content: its bytes.
        text: its text.
    """
    suffix = file.suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        return "a picture; caption it without --alt"
    if suffix in _MARKUP:
        return _MARKUP[suffix]
    if not content.strip():
        return "an empty file"
    for start, kind in _STARTS:
        if content.startswith(start):
            return kind
    if content.startswith(b"PK\x03\x04"):
        return next((kind for sign, kind in _ZIPPED if sign in content), "a ZIP archive")
    if _MAIL.match(text):
        return "an e-mail or a web archive (MHTML)"
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[") and _is_json(text):
        return "JSON"
    return _kind_of_markup(suffix, text)


def _kind_of_markup(suffix: str, text: str) -> str | None:
    prologue = _PROLOGUE.match(text)
    root = _ROOT.match(text, prologue.end() if prologue else 0)
    name = root[1].lower() if root else ""
    declared = text.lstrip("\ufeff \t\r\n").startswith("<?xml ")
    if name == "svg" and (declared or suffix not in PAGE_SUFFIXES):
        return "an SVG drawing"
    if name in _XML_ROOTS:
        return _XML_ROOTS[name]
    if declared and name and not _HTML_TAG.match(f"<{name}>"):
        return f"an XML document of <{name}>"
    if not _HTML_TAG.search(text):
        return "binary data" if "\0" in text else "text without any HTML tag"
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return True
