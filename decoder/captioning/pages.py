"""Alternative texts for one page or all pages of a site (see `decoder.captioning.page_writer`)."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from decoder.captioning.charsets import decode
from decoder.captioning.html import HtmlPage
from decoder.captioning.kinds import PAGE_SUFFIXES, TEMPLATE, not_html
from decoder.captioning.page_copies import Copies, Page
from decoder.captioning.page_writer import PageWriter
from decoder.captioning.review import Review
from decoder.captioning.writer import CaptionWriter
from features.errors import UserError, first_few
from features.folders import walk


def find_pages(given: Sequence[Path], out: Path | None) -> list[tuple[Path, Path]]:
    """Return the pages given, and those in the folders given and below them, each with its site.

    Linked folders are followed once. Hidden folders, `out` and our own copies are passed over;
    templates are too, and the user hears of them.

    Raises:
        UserError: there are none, or a folder cannot be opened.
    """
    pages: dict[Path, tuple[Path, Path]] = {}
    templates: list[Path] = []
    for path in given:
        inside = _pages_below(path, out, templates) if path.is_dir() else [path]
        root = path if path.is_dir() else path.parent
        for page in inside:
            pages.setdefault(page.resolve(), (page, root))
    if templates:
        print(
            f"caption: {len(templates)} templates are passed over, name a file to caption its "
            f"pictures: {first_few(templates)}"
        )
    if not pages:
        raise UserError(
            f"expected HTML pages ({', '.join(sorted(PAGE_SUFFIXES))}), found none in "
            f"{', '.join(map(str, given))}"
        )
    return list(pages.values())


def _pages_below(folder: Path, out: Path | None, templates: list[Path]) -> Iterator[Path]:
    """Yield the pages in a folder and below it; append what may be templates to `templates`."""
    seen = {out.resolve()} if out is not None else set()
    for name, folders, files in walk(folder, followlinks=True):
        here = Path(name)
        if (real := here.resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for file in sorted(files):
            path = here / file
            if TEMPLATE.fullmatch(file):
                templates.append(path)
            if path.suffix.lower() not in PAGE_SUFFIXES or file.startswith("._"):
                continue
            original = path.with_name(path.stem.removesuffix(".alt") + path.suffix)
            if original == path or not original.exists():
                yield path


def write_pages(
    writer: CaptionWriter,
    given: Sequence[Path],
    out: Path | None,
    site: Path | None,
    review: Path | None,
    force: bool,
) -> int:
    """Write copies of HTML pages with alternative texts, and return the exit status.

    A picture is captioned once, however often it occurs. A page is written as soon as its pictures
    have their texts.

    Args:
        writer: captions the pictures.
        given: pages, and folders that are searched for pages.
        out: the copy of a single page, or the folder for the copies of several; by default
            PAGE.alt.html beside each page.
        site: the root folder of the web site; by default the folder given, or that of the page.
        review: the table of the texts; corrections in it are applied.
        force: caption again, and replace copies that are not ours.

    Raises:
        UserError: a single page cannot be read or is not HTML; a copy must not be replaced or
            cannot be written; `review` is not such a table; or see `CaptionWriter.captions`.
    """
    found = find_pages(given, out)
    single = len(found) == 1 and not given[0].is_dir()
    copies = Copies(out if out is not None and (not single or out.is_dir()) else None)
    pages, refused = [], []
    for (file, root), copy in zip(found, _outs(found, out, single, given), strict=True):
        try:
            pages.append(_read(file, copy, site or root))
        except UserError as error:
            if single:
                raise
            refused.append(error)
    if not force:
        copies.check(pages)
    for page in pages:
        _check_itself(page)
    table = Review(review) if review is not None else None
    with TemporaryDirectory() as folder:
        PageWriter(writer, pages, copies, table, Path(folder), force).run()
    for one in refused:
        print(f"error: {one}", file=sys.stderr)
    return max(1 if refused else 0, writer.report_unreadable())


def _outs(
    found: Sequence[tuple[Path, Path]], out: Path | None, single: bool, given: Sequence[Path]
) -> list[Path]:
    """Return the path of the copy of each page."""
    if out is None:
        return [file.with_name(f"{file.stem}.alt{file.suffix}") for file, _ in found]
    if single and not out.is_dir():
        return [out]
    if out.exists() and not out.is_dir():
        raise UserError(f"--out must be a folder for several pages, found the file {out}")
    roots = {os.path.abspath(path if path.is_dir() else path.parent) for path in given}  # noqa: PTH100
    top = Path(os.path.commonpath(sorted(roots)))
    return [out / Path(os.path.abspath(file)).relative_to(top) for file, _ in found]  # noqa: PTH100


def _read(file: Path, out: Path, site: Path) -> Page:
    try:
        content = file.read_bytes()
        kind = not_html(file, content, decode(content)[0])
    except UnicodeDecodeError as error:
        raise UserError(f"{file} starts as UTF-16, but is not: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if kind is not None:
        raise UserError(f"--alt expects an HTML page, but {file} is {kind}")
    return Page(file, out, site, content, HtmlPage(content))


def _check_itself(page: Page) -> None:
    if page.out.exists() and page.out.samefile(page.file):
        raise UserError(f"{page.out} is the page itself; choose another --out for the copy")
