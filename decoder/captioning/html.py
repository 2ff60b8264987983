"""The pictures of an HTML page and alternative texts for them; every other byte stays the same.

JustHTML parses the page as browsers do (the HTML standard's algorithm) and gives the place of each
tag. A text search counts the pictures again, so that none is passed over silently.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from decoder.captioning.charsets import byte_places, decode
from decoder.captioning.sources import joined, names_pictures, noscript_copy, sources_of

MARK = "data-alt-generated"
# Stands for each character of a template's code, so that places stay the same.
_CODE = "\ue000"
_TEMPLATE = re.compile(
    r"<\?(?:php|=|xml|\s).*?(?:\?>|\Z)"  # PHP, and processing instructions of XML
    r"|<%(?:(?!<%).)*?%>"  # ASP, JSP, ERB, EJS
    r"|\{\{!?--(?:(?!\{\{!?--).)*?--\}\}"  # comments of Handlebars and Blade,
    r"|\{/\*(?:(?!\{/\*).)*?\*/\}"  # of JSX,
    r"|\{#(?:(?!\{[{%#/]).)*?#\}"  # of Jinja and Twig,
    r"|\{%-?\s*comment\b(?:(?!\{%-?\s*comment\b).)*?\bendcomment\s*-?%\}"  # of Django, Liquid
    r"|\{([{%#])(?:(?!</?[a-z!]|\{[{%#]).){,500}?[}%#]\}"  # Jinja, Twig, Liquid, Handlebars, Vue
    r"|(?<==)\{(?:[^{}]|\{[^{}]*\})*\}",  # JSX, Svelte, Astro
    re.DOTALL | re.IGNORECASE,
)
# Attributes by which code sets a text (:alt, [attr.alt], alt.bind, data-th-alt) or any attribute.
_BOUND_TEXT = re.compile(
    r"(?!(?:alt|aria-label|aria-labelledby)\Z)(?:.*[^\w-]|(?:data-)?(?:th|ng-attr|bind)-)?"
    r"(?:alt|aria-label(?:ledby)?)(?:-title)?(?:[^\w-].*)?"
    r"|(?:v-bind|x-bind|data-bind|(?:data-)?th[:-]attr|(?:data-)?tal[:-]attributes|py:attrs)"
    r"|\.\.\..*|.*:\[.*|.*[{\ue000].*"
)
_BOUND_SOURCE = re.compile(
    r"(?:.*[^\w-]|(?:data-)?(?:th|ng|ng-attr|bind)-)(?:ng)?src(?:set)?(?:[^\w-].*)?"
    r"|(?:ng)?src(?:set)?[^\w-].*"
)
_IS_CODE = re.compile(r"\s*(?:[{@]|\[\[|\$\{)|.*[\ue000]|%[A-Z_]+%", re.DOTALL)
_IS_XML = re.compile(
    r"\s*<\?xml\s|.{,2000}?(?:http://www\.w3\.org/1999/xhtml|DTD XHTML)", re.DOTALL
)
_CDATA = re.compile(r"<!\[CDATA\[(?:(?!<!\[CDATA).)*?\]\]>", re.DOTALL)
# XML ends these elements here, HTML does not.
_SELF_CLOSED = re.compile(
    r"<(?!(?:img|image|input|amp-img|source|base|meta|br)\b|\w+:)[a-z][\w-]*"
    r"""(?:[^<>"'/]|/(?!>)|"[^"]*"|'[^']*')*+/>""",
    re.IGNORECASE,
)
_TAG = re.compile(r"<[\w:-]+")
_SIDES = ("width", "height")
_TINY = r"\s*[01]\s*(?:px\s*)?"
# The second count.
_OPENS = re.compile(
    r"<!--|<(script|style|textarea|title|iframe|noembed|noframes|xmp)\b[^<>]*(?<!/)>", re.IGNORECASE
)
_PICTURE_TAG = re.compile(
    r"<(?:(?:\w+:)?(?:img|image)|amp-img"
    r"""|input(?=\s[^<>]*\btype\s*=\s*["']?image\b))(?=[\s/>])""",
    re.IGNORECASE,
)


class Bare(NamedTuple):
    """A picture that needs an alternative text."""

    place: int
    """The offset in the text at which its attributes begin."""
    line: int
    """The line of its tag, from 1."""
    sources: tuple[str, ...]
    """The addresses of what it shows, joined to the page's <base>: the likeliest first, and last
    the src, which may be a placeholder for the others."""
    attribute: str
    """What holds the alternative text: alt, or aria-label inside <svg>."""
    foreign: bool
    """Whether it is in a language that is not English, so that the text needs lang="en"."""
    later: bool
    """Whether a script may replace its src later, so that an empty src is a placeholder."""
    tiny: bool
    """Whether its width and height are given as 0 or 1, as those of tracking pixels are."""


class Alternative(NamedTuple):
    """An alternative text to write into a page."""

    text: str
    unsure: bool = False
    lang: str = ""
    """The language of the text, if it is not that of the page."""
    reviewed: bool = False
    """Whether a person wrote it."""


class HtmlPage:
    """An HTML page and its pictures without alternative text.

    Pictures are <img>, <input type="image">, <amp-img>, and <image> inside <svg>. Those with
    alt="", role="presentation", aria-hidden or aria-label need no text and are left alone. A page
    that is XHTML is read as XML where the two languages differ.

    Args:
        content: the bytes of the page.

    Attributes:
        bare: the pictures that need an alternative text, in the order of the page.
        others: number of pictures that need none.
        templates: number of pictures that are left alone because code provides their text or
            source: Vue, Angular, PHP, Jinja and similar.
        unseen: lines of pictures that only a text search finds, because the page is broken before
            them and browsers do not show them.
        codec: the Python codec of the page.

    Raises:
        UnicodeDecodeError: the page starts as UTF-16 but is not.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._text, self.codec = decode(content)
        view = _TEMPLATE.sub(lambda code: _CODE * len(code[0]), self._text)
        self.templates = max(0, len(_searched(self._text)) - len(_searched(view)))
        if _IS_XML.match(self._text.lstrip("\ufeff")):
            view = _CDATA.sub(lambda data: " " * len(data[0]), view)
            view = _SELF_CLOSED.sub(lambda tag: " " * len(tag[0]), view)
        self.bare: list[Bare] = []
        self.others = 0
        self._seen: set[int] = set()
        self._line_starts = [match.end() for match in re.finditer(r"\r\n?|\n", self._text)]
        self._read(view.replace("\ufeff", " ", 1) if view.startswith("\ufeff") else view)
        self.bare.sort()
        missed = [place for place in _searched(view) if place not in self._seen]
        self.unseen = [self._line(place) for place in missed]

    def _line(self, place: int) -> int:
        return bisect_right(self._line_starts, place) + 1

    def _read(self, view: str) -> None:
        from justhtml import JustHTML  # takes a quarter of a second

        document = JustHTML(
            view, track_node_locations=True, sanitize=False, scripting_enabled=False
        )
        nodes = [node for node in _nodes(document.root) if getattr(node, "attrs", None) is not None]
        bases = (
            node.attrs["href"] for node in nodes if node.name == "base" and "href" in node.attrs
        )
        base = next(bases, "").strip(" \t\r\n\f")
        languages = (
            node.attrs.get("content", "")
            for node in nodes
            if node.name == "meta"
            and node.attrs.get("http-equiv", "").lower() == "content-language"
        )
        language = next(languages, "")
        for node in nodes:
            self._picture(node, base, language)

    def _picture(self, node: Any, base: str, language: str) -> None:
        name = node.name.rpartition(":")[2]
        attributes = {key: value or "" for key, value in node.attrs.items()}
        button = name == "input" and attributes.get("type", "").strip().lower() == "image"
        drawn = name == "image"  # outside <svg> the parser has renamed it to img
        place = node.origin_offset
        if not (name in ("img", "amp-img") or button or drawn) or place is None:
            return
        if place in self._seen or not (tag := _TAG.match(self._text, place)):
            return  # the parser can copy an element
        self._seen.add(place)
        ancestors = list(_ancestors(node))
        if (
            ("alt" in attributes and not drawn and not _IS_CODE.match(attributes["alt"]))
            or _named(attributes)
            or (drawn and any(_names_drawing(one) for one in (node, *ancestors)))
            or any(
                (one.attrs.get("aria-hidden") or "").strip().lower() == "true" for one in ancestors
            )
        ):
            self.others += 1
            return
        sources = [joined(base, source) for source in sources_of(node, attributes)]
        if name == "img" and (copy := noscript_copy(node)) is not None:
            sources[-1:-1] = [joined(base, source) for source in copy]
        known = tuple(
            dict.fromkeys(one for one in sources if one is not None and not _IS_CODE.match(one))
        )
        dynamic = any(_IS_CODE.match(one) for one in sources if one) or any(
            map(_BOUND_SOURCE.fullmatch, attributes)
        )
        if (
            ("alt" in attributes and not drawn)
            or any(map(_BOUND_TEXT.fullmatch, attributes))
            or (dynamic and not known)
        ):
            self.templates += 1
            return
        own = "lang" in attributes or "xml:lang" in attributes
        spoken = _language(node, ancestors) or language
        self.bare.append(
            Bare(
                tag.end(),
                self._line(place),
                known,
                "aria-label" if drawn else "alt",
                foreign=not own and _is_foreign(spoken),
                later=dynamic
                or len(known) > 1
                or "lazy" in attributes.get("class", "").lower()
                or names_pictures(attributes),
                tiny=all(_is_tiny(attributes, side) for side in _SIDES),
            )
        )

    def with_texts(self, texts: Mapping[int, Alternative | tuple[str, bool]]) -> bytes:
        """Return the page with alternative texts.

        Args:
            texts: the alternative text, or its words and whether it is unsure, by the index of an
                element in `bare`.
        """
        numbers = sorted(texts)
        places = byte_places(
            self._content, self._text, self.codec, [self.bare[one].place for one in numbers]
        )
        codec = self.codec if self.codec.startswith("utf-16") else "ascii"
        parts, last = [], 0
        for number, place in zip(numbers, places, strict=True):
            text, unsure, lang, reviewed = Alternative(*texts[number])
            value = escape(text).encode("ascii", "xmlcharrefreplace").decode()
            mark = "reviewed" if reviewed else "unsure" if unsure else "true"
            added = f' {self.bare[number].attribute}="{value}" {MARK}="{mark}"'
            if lang:
                added += f' lang="{escape(lang)}"'
            parts += [self._content[last:place], added.encode(codec)]
            last = place
        return b"".join([*parts, self._content[last:]])


def _nodes(node: Any) -> Iterator[Any]:
    """Yield a node and all nodes below it, in the order of the page, <template> included."""
    pending = [node]
    while pending:
        one = pending.pop()
        yield one
        pending.extend(reversed(getattr(one, "children", None) or ()))
        if (content := getattr(one, "template_content", None)) is not None:
            pending.append(content)


def _ancestors(node: Any) -> Iterator[Any]:
    while (node := node.parent) is not None:
        if getattr(node, "attrs", None) is not None:
            yield node


def _named(attributes: Mapping[str, str]) -> bool:
    """Whether attributes name a picture or mark it as decoration."""
    return (
        any(attributes.get(name, "").strip() for name in ("aria-label", "aria-labelledby"))
        or attributes.get("aria-hidden", "").strip().lower() == "true"
        or attributes.get("role", "").lower().split()[:1] in (["presentation"], ["none"])
    )


def _names_drawing(node: Any) -> bool:
    """Whether an element of an SVG names itself: by an attribute or a <title> or <desc>."""
    if getattr(node, "namespace", None) != "svg" and ":" not in node.name:
        return False
    children = [str(child.name).rpartition(":")[2] for child in node.children or ()]
    return _named(node.attrs) or "title" in children or "desc" in children


def _is_tiny(attributes: Mapping[str, str], side: str) -> bool:
    """Whether a picture is given at most one pixel in width or height."""
    return bool(
        re.fullmatch(_TINY, attributes.get(side, ""))
        or re.search(rf"(?:^|[;\s]){side}\s*:{_TINY}(?:[;!]|$)", attributes.get("style", ""))
    )


def _language(node: Any, ancestors: list[Any]) -> str:
    for one in (node, *ancestors):
        for name in ("lang", "xml:lang"):
            if (value := one.attrs.get(name)) is not None:
                return str(value)
    return ""


def _is_foreign(language: str) -> bool:
    primary = re.split(r"[-_,\s]", language.strip().lower())[0]
    return primary.isalpha() and primary not in ("en", "eng")


def _searched(text: str) -> list[int]:
    """Return the offsets of the pictures that a text search finds outside comments and scripts."""
    parts, last = [], 0
    unclosed: set[str] = set()
    while (opening := _OPENS.search(text, last)) is not None:
        name = (opening[1] or "").lower()
        parts.append(text[last : opening.end()])
        last = opening.end()
        if name in unclosed:
            continue
        closing = re.compile(rf"</{name}\s*>" if name else "-->", re.IGNORECASE).search(text, last)
        if closing is None:
            unclosed.add(name)
        else:
            parts.append(" " * (closing.start() - last))
            last = closing.start()
    shown = "".join([*parts, text[last:]])
    end = shown.rfind(">")  # a tag that never ends is none
    return [match.start() for match in _PICTURE_TAG.finditer(shown) if match.start() < end]
