"""The character encoding of a page: what it declares, its text, and places in its bytes."""

import codecs
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise

# The labels of the WHATWG Encoding Standard whose meaning differs from Python's. Browsers read each
# as the superset that real pages use.
_LABELS = {
    "cp932": "shift_jis shift-jis sjis x-sjis ms_kanji csshiftjis windows-31j",
    "cp949": "euc-kr euckr ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 korean windows-949",
    "cp1252": "iso-8859-1 iso8859-1 iso_8859-1 latin1 l1 ascii us-ascii ansi_x3.4-1968 x-cp1252",
    "cp1254": "iso-8859-9 iso8859-9 latin5 l5 x-cp1254",
    "cp874": "iso-8859-11 iso8859-11 tis-620 dos-874 windows-874",
    "gb18030": "gb2312 gbk x-gbk gb_2312-80 csgb2312 chinese iso-ir-58",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "x-euc-jp cseucpkdfmtjapanese",
    "iso2022_jp_ext": "iso-2022-jp csiso2022jp",
    "iso8859_8": "iso-8859-8-i logical",
    "koi8_u": "koi8-ru",
    "mac_roman": "macintosh mac x-mac-roman",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    # A page whose declaration can be read as ASCII is not in UTF-16.
    "utf-8": "utf8 unicode-1-1-utf-8 utf-16 utf-16le utf-16be unicode csunicode ucs-2",
}
_CODECS = {label: codec for codec, labels in _LABELS.items() for label in labels.split()}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DECLARED = re.compile(
    r"""<\?xml\s[^>]*?\bencoding\s*=\s*["']?\s*(?P<xml>[\w.:-]+)"""
    r"""|<meta\s[^>]*?\bcharset\s*=\s*["']?\s*(?P<meta>[\w.:-]+)""",
    re.IGNORECASE,
)
_LOOKED_AT = 8192  # browsers look at 1024 bytes; some programs write long comments first
_UTF16 = (
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)


def decode(content: bytes) -> tuple[str, str]:
    """Return the text of a page and the Python codec that it is written in.

    A byte-order mark counts more than the declaration. A page without either is UTF-8 if it can be,
    otherwise windows-1252. Bytes that are no characters become surrogates.

    Raises:
        UnicodeDecodeError: the page starts as UTF-16 but is not.
    """
    for start, codec in _UTF16:
        if content.startswith(start):
            return content.decode(codec, "surrogatepass"), codec
    codec = "utf-8"
    if not content.startswith(codecs.BOM_UTF8):
        codec = _declared(content) or ("utf-8" if _is_utf8(content) else "cp1252")
    return content.decode(codec, "surrogateescape"), codec


def _declared(content: bytes) -> str | None:
    """Return the codec that a page declares; None if it declares none that is known."""
    start = _COMMENT.sub("", content[:_LOOKED_AT].decode("latin-1"))
    if (found := _DECLARED.search(start)) is None:
        return None
    label = (found["xml"] or found["meta"]).lower()
    try:
        codec = codecs.lookup(_CODECS.get(label, label)).name
        # The texts that are added are ASCII. So are the tags, except in EBCDIC or UTF-7.
        return codec if "<img>".encode(codec) == b"<img>" else None
    except (LookupError, UnicodeError):  # an unknown name, or a codec that is not for text
        return None


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def byte_places(content: bytes, text: str, codec: str, places: Sequence[int]) -> list[int]:
    """Return the offset in the bytes of each offset in the text.

    Args:
        content: the bytes of the page.
        text: its text, and
        codec: its codec, as returned by `decode`.
        places: ascending offsets in the text, each just after an ASCII character.
    """
    errors = "surrogatepass" if codec.startswith("utf-16") else "surrogateescape"
    ends = [0, *places, len(text)]
    with suppress(UnicodeEncodeError):
        parts = [text[a:b].encode(codec, errors) for a, b in pairwise(ends)]
        if b"".join(parts) == content:
            return list(accumulate(map(len, parts)))[:-1]
    # Several byte sequences mean the same character, or escapes switch between alphabets.
    decoder = codecs.getincrementaldecoder(codec)(errors)
    found: list[int] = []
    characters = 0
    for number in range(len(content)):
        if len(found) == len(places):
            break
        characters += len(decoder.decode(content[number : number + 1]))
        if characters >= places[len(found)]:
            found.append(number + 1)
    return found
