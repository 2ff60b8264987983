"""Stage `search`: pictures for a sentence, captions for a picture, or a whole split ranked."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from decoder.ranking.options import SearchOptions
from decoder.ranking.searcher import CANDIDATES, Searcher
from decoder.runs.packaged import packaged
from features.devices import choose_device
from features.errors import UserError, first_few
from features.files import write_atomically
from features.images import PictureError
from pipeline.command import run as run_command
from pipeline.stamps import Stamp
from pipeline.work import RunFolder, WorkFolder


def search(options: SearchOptions) -> None:
    """Find pictures of a work directory by a sentence, or captions by a picture.

    The first search takes a minute or two for 6,000 pictures, to learn from the training captions.
    """
    run = RunFolder(options.run or packaged())
    if options.work is None and not run.work.captions.exists():
        raise UserError(f"{run.path} lies in no work directory; name one to search with --work")
    work = run.work if options.work is None else WorkFolder(options.work)
    if options.weights is None:
        weights = run.best_xe if run.best_xe.exists() else run.best
    else:
        weights = getattr(run, options.weights)
    if options.sentence:
        _find_pictures(options, _searcher(options, run, weights, work))
    elif options.image is not None:
        _find_captions(_searcher(options, run, weights, work), options.image, options)
    elif options.split is not None:
        _rank_split(options, run, weights, work, options.split)


def _searcher(options: SearchOptions, run: RunFolder, weights: Path, work: WorkFolder) -> Searcher:
    return Searcher(run, weights, work, choose_device(options.device), options.split)


def _find_pictures(options: SearchOptions, searcher: Searcher) -> None:
    sentence = " ".join(options.sentence)
    found = searcher.find(sentence, options.top)
    if unknown := searcher.unknown(sentence):
        print(f"search: left out unknown words: {first_few(unknown)}", file=sys.stderr)
    for one in found:
        _tell(options, str(one.file), {"path": str(one.file), "image_id": one.image_id}, one.score)


def _find_captions(searcher: Searcher, image: Path, options: SearchOptions) -> None:
    try:
        found = searcher.find_captions(image, options.top)
    except PictureError as error:
        raise UserError(f"cannot read {image}: {error}") from error
    for one in found:
        _tell(options, one.text, {"caption": one.text, "image_id": one.image_id}, one.score)


def _tell(options: SearchOptions, text: str, values: dict[str, object], score: float) -> None:
    if options.json:
        print(json.dumps({**values, "score": round(float(score), 4)}, ensure_ascii=False))
    else:
        print(f"{text}\t{score:.2f}")


def _rank_split(
    options: SearchOptions, run: RunFolder, weights: Path, work: WorkFolder, split: str
) -> None:
    out = options.out or run.ranking(split)
    inputs = [weights, run.config, work.captions, work.features]
    stamp = Stamp(out.parent, f"search-{out.stem}", options, inputs)
    if stamp.holds() and not options.force:
        print(f"search: {out} unchanged, skipped")
        return
    searcher = _searcher(options, run, weights, work)
    captions = searcher.captions
    if not captions:
        raise UserError(f"the images of the split {options.split} have no captions to search by")
    total = len(captions) + len(searcher.images)
    with tqdm(total=total, desc="search", unit="query", disable=None) as bar:
        of_captions, of_images = searcher.rank_all(bar.update)
    image_ids = np.array([image.id for image in searcher.images])
    file = io.BytesIO()
    np.savez_compressed(
        file,
        image_id=image_ids,
        caption_image_id=image_ids[[place for _, place in captions]],
        images_first=of_captions.first.astype(np.int32),
        images_second=of_captions.second.astype(np.int32),
        captions_first=of_images.first.astype(np.int32),
        captions_second=of_images.second.astype(np.int32),
    )
    write_atomically(out, file.getvalue())
    stamp.write([out])
    print(
        f"search: the best {CANDIDATES} images for {len(captions)} captions, and captions for "
        f"{len(searcher.images)} images, in {out}; python -m evaluation.retrieve --ranking {out}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(search, SearchOptions, "decoder.search", argv)


if __name__ == "__main__":
    sys.exit(main())
