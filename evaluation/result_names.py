"""Which image of a captions file each file name of the results means."""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import islice
from pathlib import PurePosixPath

from evaluation.results import Results
from features.errors import UserError, first_few
from pipeline.readers.names import NameIndex, fold, plain_spellings

_COMPARED = 20_000  # names among which a near miss is sought; more would take seconds

Images = Callable[[], Iterable[tuple[int, str]]]
"""Yields the id and file name of every image of a captions file."""


def captions_by_id(results: Results, images: Images, where: str) -> dict[int, str]:
    """Return the captions of results by image id instead of file name.

    A name means the image of this name. Otherwise it means the only one with its base name, where
    the folders that both paths have agree: `../photos/b/1.jpg` is `b/1.jpg`. If that is true of no
    name, the pictures lie in other folders than those of the captions file, and the base name alone
    decides. Letter case, blanks and backslashes may differ, and the suffix may be missing, as in
    tables that pipeline.prepare reads.

    Args:
        results: captions by file name.
        images: the images of the captions file.
        where: the captions file, for messages.

    Raises:
        UserError: a name means no image or several, or two names mean the same image.
    """
    by_name = results.by_name
    bases = {_base(spelling) for name in by_name for spelling in plain_spellings(name)}
    ids: dict[str, list[int]] = defaultdict(list)
    for image, file_name in images():
        if _base(file_name) in bases:  # of millions of images few are needed
            ids[file_name].append(image)
    index = NameIndex(ids)
    files = {name: _fitting(name, ids, index.agreeing) for name in by_name}
    if not any(files.values()):
        files = {name: _fitting(name, ids, index.with_base_name) for name in by_name}
        if all(files.values()):
            name, file = next((name, fits[0]) for name, fits in files.items())
            print(
                f"score: the folders in {results.path} are not those in {where}; base names are "
                f"compared: {name} is {file}"
            )
    _check_known(files, images, results, where)
    meant = {name: [(file, i) for file in fits for i in ids[file]] for name, fits in files.items()}
    unclear = [
        f"{name} ({first_few(f'{file}, id {image}' for file, image in found)})"
        for name, found in meant.items()
        if len(found) > 1
    ]
    if unclear:
        raise UserError(
            f"{results.path}: {len(unclear)} file names may mean several images of {where}: "
            f"{first_few(unclear)}; write them as they are there"
        )
    names: dict[int, list[str]] = defaultdict(list)
    for name, ((_, image),) in meant.items():
        names[image].append(name)
    if twice := [" and ".join(same) for same in names.values() if len(same) > 1]:
        raise UserError(
            f"{results.path}: {len(twice)} pictures have more than one caption, expected one: "
            f"{first_few(twice)}"
        )
    return {image: by_name[name] for image, (name,) in names.items()}


def _base(name: str) -> str:
    """Return what the spellings of a name have in common: its base name up to the first point."""
    return fold(PurePosixPath(name).name).partition(".")[0]


def _fitting(name: str, known: Container[str], find: Callable[[str], list[str]]) -> list[str]:
    """Return the files that a name fits, in the first of its spellings that fits any."""
    if name in known:
        return [name]
    return next(filter(None, map(find, plain_spellings(name))), [])


def _check_known(
    files: Mapping[str, list[str]], images: Images, results: Results, where: str
) -> None:
    """Raise UserError if a name fits no image; it suggests the most similar names."""
    unknown = [name for name, fits in files.items() if not fits]
    if not unknown:
        return
    index = NameIndex(name for _, name in islice(images(), _COMPARED + 1))
    near = ((name, index.nearest(name)) for name in unknown[:5])
    hints = [f"{file!r} for {name!r}" for name, file in near if file]
    raise UserError(
        f"{results.path}: {len(unknown)} of {len(files)} pictures are not in {where}: "
        f"{first_few(unknown)}; "
        + (f"did you mean {', '.join(hints)}?" if hints else "are they of another data set?")
        + (" Without file_name, image_id counts" if results.by_id else "")
    )
