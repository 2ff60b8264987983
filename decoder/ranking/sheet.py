"""The results of an album's search as one HTML file, with small pictures inside it."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from urllib.parse import quote

from decoder.ranking.albums import Album, AlbumResult, AlbumResults, Unreadable
from evaluation.gallery import picture
from features.devices import cores
from features.errors import UserError, require
from features.files import reading

_WIDTH = 480  # of the pictures inside, in pixels
_MARK = '<meta name="generator" content="caption-pipeline search">'
_GRADE = '<span class="grade {0}">{0}</span>'
_CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --page: #f5f6f7; --card: #fff;
  --line: #d9dde1; --good: #146c43; --fair: #7a5200; --weak: #5b6570 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3adb8; --page: #15181b;
  --card: #1f2428; --line: #343b42; --good: #7ad3a4; --fair: #e7b75f; --weak: #a3adb8 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 84rem; padding: 2rem clamp(1rem, 4vw, 3rem); color: var(--ink);
  background: var(--page); font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere }
.soft { color: var(--soft) }
ol { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  margin: 1.75rem 0 0; padding: 0; list-style: none }
@media (max-width: 34rem) { ol { grid-template-columns: 1fr } }
figure { margin: 0; height: 100%; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; overflow: hidden }
figure img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
  background: color-mix(in srgb, var(--line) 45%, var(--card)) }
figcaption { padding: .7rem .9rem .8rem; overflow-wrap: anywhere }
figcaption .grade { float: right; margin-left: .75rem; font-weight: 600 }
.good { color: var(--good) } .fair { color: var(--fair) } .weak { color: var(--weak) }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .15em }
a:focus-visible { outline: 3px solid Highlight; outline-offset: 2px }
ul { padding-left: 1.2rem; overflow-wrap: anywhere }
"""


def check_place(at: Path, force: bool) -> None:
    """Raise UserError if a page cannot go there, or would replace what `sheet` did not make.

    Args:
        at: where the page will be.
        force: replace a file whoever made it.
    """
    require(not at.is_dir(), f"--html {at}: expected a file to write, found a folder")
    if at.exists() and not force:
        with reading(at), at.open("rb") as file:
            require(
                _MARK.encode() in file.read(1000),
                f"--html {at} exists and was not written by this command; choose another file, or "
                "replace it with --force",
            )


def sheet(
    query: str, folder: Path, album: Album, found: AlbumResults, alts: Mapping[Path, str], at: Path
) -> str:
    """Return the page: the query, its results as pictures with links, and what was not searched.

    Args:
        query: as it was typed.
        folder: the album's, as it was typed.
        album: that was searched.
        found: its answer.
        alts: descriptions of the pictures, where there are any.
        at: where the page will be; links to pictures are relative to its folder.
    """
    count = f"{len(found.results):,} of {len(album):,} pictures in {escape(str(folder))}"
    notes = [f'<p class="soft">{count}</p>']
    if found.unknown:
        notes.append(f"<p>Unknown words were ignored: {escape(', '.join(found.unknown))}.</p>")
    if album.grades is not None and found.results:
        notes.append(f'<p class="soft">{escape(album.grades.explained(len(album)))}</p>')
    with ThreadPoolExecutor(min(32, cores() + 4)) as pool:
        items = pool.map(lambda one: _item(one, folder, alts.get(one.path), at), found.results)
        listed = "".join(items)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'{_MARK}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(query)}</title><style>{_CSS}</style></head><body><main>"
        f"<h1>{escape(query)}</h1>{''.join(notes)}<ol>{listed}</ol>"
        f"{_unreadable(album.unreadable, folder)}</main></body></html>\n"
    )


def _item(result: AlbumResult, folder: Path, alt: str | None, at: Path) -> str:
    name = escape(_shown(result.path, folder))
    address = escape(quote(os.fsencode(os.path.relpath(result.path, at.parent))))
    grade = "" if result.grade is None else _GRADE.format(result.grade)
    try:
        source = picture(result.path, _WIDTH)
    except UserError:  # deleted or changed since the search
        return f'<li><figure><figcaption class="soft">{name} is gone</figcaption></figure></li>'
    shown = f'<img src="{source}" alt="{escape(alt) if alt else name}">'
    caption = f'{grade}<a href="{address}">{name}</a>'
    return f"<li><figure>{shown}<figcaption>{caption}</figcaption></figure></li>"


def _unreadable(pictures: Sequence[Unreadable], folder: Path) -> str:
    if not pictures:
        return ""
    items = "".join(
        f"<li>{escape(_shown(one.path, folder))}: {escape(one.reason)}</li>" for one in pictures
    )
    return (
        f'<section class="soft"><h2>Not searched: {len(pictures):,}</h2><ul>{items}</ul></section>'
    )


def _shown(path: Path, folder: Path) -> str:
    """Return a path inside the album as text, even if its name is not UTF-8."""
    inside = path.relative_to(folder) if path.is_relative_to(folder) else path
    return os.fsencode(inside).decode(errors="replace")
