"""The command decoder.search: find pictures for a sentence, or captions for a picture."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from decoder.captioning.captioner import default_generation
from decoder.captioning.files import as_json_line
from decoder.captioning.options import PICTURES, CaptionOptions
from decoder.captioning.writer import CaptionWriter
from decoder.ranking.albums import Album, open_album
from decoder.ranking.options import SearchOptions
from decoder.ranking.searcher import CANDIDATES, Searcher
from decoder.ranking.sheet import check_place, sheet
from decoder.runs.packaged import captioner_folder
from features.commands import RETRIEVE
from features.devices import choose_device
from features.errors import UserError, first_few
from features.files import write_atomically
from features.folders import passed_over_note
from features.images import PictureError
from features.progress import Progress
from pipeline.text import CONTROL
from pipeline.up_to_date import Stamp
from pipeline.work import RunFolder, WorkFolder


def search(options: SearchOptions) -> None:
    """Find pictures by a sentence, in a folder or a work directory, or captions by a picture.

    The first search of a folder or a work directory takes minutes for thousands of pictures.
    """
    run = captioner_folder(options.run)
    if options.folder is not None:
        _find_in_folder(options, options.folder, run)
        return
    if options.work is None and not run.work.captions.exists():
        raise UserError(
            "expected a folder of pictures to search (--folder) or a work directory (--work), "
            f"found neither{f', and {run.path} is not in a work directory' if options.run else ''}"
        )
    work = run.work if options.work is None else WorkFolder(options.work)
    if options.weights is None:
        weights = run.best_xe if run.best_xe.exists() else run.best
    else:
        weights = getattr(run, options.weights)

    def searcher() -> Searcher:
        return Searcher(run, weights, work, choose_device(options.device), options.split)

    if options.sentence:
        _find_pictures(searcher(), " ".join(options.sentence), options.top, options.json)
    elif options.image is not None:
        _find_captions(searcher(), options.image, options.top, options.json)
    elif options.split is not None:
        out = options.out or run.ranking(options.split)
        inputs = [weights, run.config, work.captions, work.features]
        stamp = Stamp(out.parent, f"search-{out.stem}", options, inputs)
        if stamp.holds() and not options.force:
            print(f"search: {out} unchanged, skipped")
            return
        _rank_split(searcher(), options.split, out)
        stamp.write([out])


def _find_in_folder(options: SearchOptions, folder: Path, run: RunFolder) -> None:
    device = choose_device(options.device)
    if options.html is not None:
        check_place(options.html, options.force)
    album = indexed(folder, run, device, "search")
    query = " ".join(options.sentence)
    found = album.search(query, options.top)
    if not found.results:
        raise UserError(album.why_nothing(query))
    if found.unknown:
        print(f"search: ignored unknown words: {first_few(found.unknown)}", file=sys.stderr)
    for result in found.results:
        grade = f"\t{result.grade}" if result.grade else ""
        name = str(result.path)
        values = {"path": name, "grade": result.grade, "score": round(result.score, 4)}
        text = f"{_one_line(name)}{grade}"
        print(as_json_line(values) if options.json else text)
    if options.html is not None:
        alts = _descriptions([result.path for result in found.results], run, device)
        page = sheet(query, folder, album, found, alts, options.html)
        write_atomically(options.html, page)
        print(f"search: wrote {options.html}", file=sys.stderr)


def indexed(folder: Path, run: RunFolder, device: torch.device, command: str) -> Album:
    """Return the album in a folder; show the progress, and what it leaves out, on standard error.

    Raises:
        UserError: see `open_album`.
    """
    with Progress("index", None, "picture") as bar:
        finished = 0

        def progress(done: int, total: int) -> None:
            nonlocal finished
            bar.total = total
            bar.update(done - finished)
            finished = done

        album = open_album(folder, run, device=device, progress=progress)
    for path, reason in album.unreadable:
        print(f"{command}: cannot search {path}: {reason}", file=sys.stderr)
    if note := passed_over_note(album.passed_over):
        print(f"{command}: passed over in the folders: {note}", file=sys.stderr)
    return album


def _descriptions(paths: Sequence[Path], run: RunFolder, device: torch.device) -> dict[Path, str]:
    """Return captions of pictures, which are the alternative texts of a page."""
    writer = CaptionWriter(
        [(run, run.best)],
        default_generation(run),
        threshold=CaptionOptions.unsure,
        batch_size=PICTURES,
        seed=1,
        device=device,
    )
    return {path: captions[0].hedged for path, captions in writer.captions(paths)}


def _find_pictures(searcher: Searcher, sentence: str, top: int, as_json: bool) -> None:
    pictures = searcher.find(sentence, top)
    if unknown := searcher.unknown(sentence):
        print(f"search: ignored unknown words: {first_few(unknown)}", file=sys.stderr)
    for picture in pictures:
        path = str(picture.file)
        values = {"path": path, "image_id": picture.image_id}
        _print_result(_one_line(path), picture.score, values if as_json else None)


def _find_captions(searcher: Searcher, image: Path, top: int, as_json: bool) -> None:
    try:
        captions = searcher.find_captions(image, top)
    except PictureError as error:
        raise UserError(f"cannot read {image}: {error}") from error
    for caption in captions:
        values = {"caption": caption.text, "image_id": caption.image_id}
        _print_result(caption.text, caption.score, values if as_json else None)


def _one_line(path: str) -> str:
    r"""Return a path in one line: its control characters are written as \n, \t and so on."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], path)


def _print_result(text: str, score: float, values: dict[str, object] | None) -> None:
    """Print `values` with the score as JSON, or the text and the score if there are none."""
    if values is None:
        print(f"{text}\t{score:.2f}")
    else:
        print(as_json_line({**values, "score": round(float(score), 4)}))


def _rank_split(searcher: Searcher, split: str, out: Path) -> None:
    """Rank the images of a split for each caption, and the reverse, and write both to `out`."""
    captions = searcher.captions
    if not captions:
        raise UserError(
            f"expected captions in the split {split} to rank its images for, found none; rank a "
            "split that has captions"
        )
    total = len(captions) + len(searcher.images)
    with Progress("search", total, "query") as bar:
        for_captions, for_images = searcher.rank_all(bar.update)
    image_ids = np.array([image.id for image in searcher.images])
    file = io.BytesIO()
    np.savez_compressed(
        file,
        image_id=image_ids,
        caption_image_id=image_ids[[index for _, index in captions]],
        images_first=for_captions.first.astype(np.int32),
        images_second=for_captions.second.astype(np.int32),
        captions_first=for_images.first.astype(np.int32),
        captions_second=for_images.second.astype(np.int32),
    )
    write_atomically(out, file.getvalue())
    print(
        f"search: wrote the best {min(CANDIDATES, len(image_ids))} images for {len(captions)} "
        f"captions, and captions for {len(image_ids)} images, to {out}; measure recall with "
        f"{RETRIEVE} --ranking {out}"
    )
