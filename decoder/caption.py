"""Stage `caption`: captions of a split's images, of one's own pictures, of those of a page."""

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from decoder.captioning import sidecars
from decoder.captioning.captioner import Captioned, Captioner
from decoder.captioning.confidence import comparable, mean_log_probability
from decoder.captioning.html import MARK, Page
from decoder.captioning.listing import Listing, check_names, state_of
from decoder.captioning.options import CaptionOptions
from decoder.captioning.writer import PictureWriter, Runs, identity, read_by
from decoder.data.readers import SplitReader
from decoder.ranking.reranker import usual_writing
from decoder.runs.folder import RunFolder
from decoder.runs.packaged import packaged
from features.devices import choose_device
from features.errors import UserError, first_few
from features.files import write_atomically, write_json
from features.store import FeatureStore, fingerprint
from pipeline import captions
from pipeline.command import run as run_command
from pipeline.stamps import Stamp

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
PICTURE_SUFFIXES |= {".heic", ".heif"}  # which cannot be read, but must not be passed over


def caption(options: CaptionOptions) -> int:
    """Write captions for pictures and folders of pictures, for a page, or for a split."""
    folders = [RunFolder(path) for path in options.run or (packaged(),)]
    weights = ("best", "best_xe") if options.weights == "both" else (options.weights,)
    runs = [(run, getattr(run, name)) for run in folders for name in weights]
    for run in folders:
        if "best_xe" in weights and run.best.exists() and not run.best_xe.exists():
            raise UserError(
                f"{run.path} holds no weights from before REINFORCE; nor does any captioner that "
                "decoder.export makes: leave out --weights"
            )
    if len(folders) == 1:
        options = replace(options, generate=usual_writing(folders[0], options.generate))
    if options.split is not None:
        return _caption_split(options, runs, options.split)
    if options.alt is not None:
        return _caption_page(options, runs, options.alt)
    return _caption_files(options, runs)


def _caption_split(options: CaptionOptions, runs: Runs, split: str) -> int:
    run, _ = runs[0]
    table_path, store_path = run.work / "captions.json", run.work / "features.h5"
    suffix = {"best": "", "best_xe": "_xe", "both": "_both"}[options.weights]
    out = options.out or run.path / f"captions_{split}{suffix}.json"
    name = out.stem.removeprefix("captions_")
    attention_path = out.with_name(f"attention_{name}.npz")
    inputs = [table_path, store_path, *read_by(runs, options.generate)]
    stamp = Stamp(out.parent, f"caption-{name}", options, inputs)
    if stamp.holds() and not options.force:
        print(f"caption: {out} unchanged, skipped")
        return 0
    torch.manual_seed(options.seed)
    captioner = Captioner(runs, options.generate, choose_device(options.device))
    store = FeatureStore(store_path)
    store.expect(
        fingerprint(captioner.config["features"]),
        f"the run {run.path}",
        captioner.config["features"],
    )
    views = options.generate.views
    if views > len(store.row_format.views):
        raise UserError(
            f"{store_path} holds {len(store.row_format.views)} views of each image, --views asks "
            f"for {views}; python -m pipeline.extract --views {views} stores more"
        )
    reader = SplitReader(store, captions.load(table_path), split)
    if reader.left_out:
        print(f"caption: {reader.left_out} images left out, their features could not be extracted")

    tells_how_sure = comparable(captioner, run)  # decoder.export learns from these captions
    results: list[dict[str, Any]] = []
    written: list[Captioned] = []
    looked: list[np.ndarray] = []
    with tqdm(total=len(reader), desc="caption", unit="image", disable=None) as bar:
        for images, features in reader.batches(options.batch_size, views):
            captions_of_images = captioner.captions(features)
            found = [several[0] for several in captions_of_images]
            for image, (best, *others) in zip(images, captions_of_images, strict=True):
                result: dict[str, Any] = {"image_id": image.id, "caption": best.text}
                if tells_how_sure:
                    result["mean_log_probability"] = mean_log_probability(best)
                if options.generate.captions > 1:
                    result["alternatives"] = [other.text for other in others]
                results.append(result)
            if captioner.attends and len(written) < options.attention:
                looked.extend(captioner.attention(features, found))
                written.extend(found)
            bar.update(len(images))
    write_json(out, results)
    outputs = [out]
    if written:
        ids = [result["image_id"] for result in results[: options.attention]]
        words = [captioner.vocabulary.words_of(c.ids) for c in written[: options.attention]]
        _save_attention(attention_path, ids, words, looked, captioner.config["features"]["grid"])
        outputs.append(attention_path)
    else:
        attention_path.unlink(missing_ok=True)
    stamp.write(outputs)
    print(f"caption: {len(results)} captions in {out}")
    return 0


def _save_attention(
    path: Path,
    image_ids: list[int],
    words: list[list[str]],
    looked: list[np.ndarray],
    grid: list[int],
) -> None:
    """Write the words of captions, and where each looked as [T, regions], as padded arrays."""
    longest = max(map(len, words))
    weights = np.zeros((len(words), longest, *grid), dtype=np.float32)
    for into, caption, weights_TR in zip(weights, words, looked, strict=False):
        into[: len(caption)] = weights_TR[: len(caption)].reshape(len(caption), *grid)
    padded = np.array([[*c, *[""] * (longest - len(c))] for c in words], dtype=str)
    file = io.BytesIO()
    np.savez_compressed(file, image_id=np.array(image_ids), words=padded, weights=weights)
    write_atomically(path, file.getvalue())


def _caption_files(options: CaptionOptions, runs: Runs) -> int:
    paths = list(dict.fromkeys(_pictures(options.pictures)))
    if not paths:
        raise UserError(f"no pictures in {', '.join(map(str, options.pictures))}")
    if options.out is not None:
        return _list(options, runs, paths, options.out)
    if options.sidecar is not None:
        return _write_sidecars(options, runs, paths, options.sidecar)
    if not options.json:
        check_names(paths, "text that is printed")
    writer = PictureWriter(runs, options)
    # Lines that scroll by show the progress by themselves.
    for path, told in writer.each(paths, quiet=sys.stdout.isatty()):
        best, *others = told
        if options.json:
            line = {"path": str(path), **best.as_json()}
            if options.generate.captions > 1:
                line["alternatives"] = [other.as_json() for other in others]
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            for one in told:
                mark = "\tunsure" if one.unsure else ""
                print(f"{path}\t{one.sentence}{mark}", flush=True)
    return _name_unreadable(writer)


def _list(options: CaptionOptions, runs: Runs, paths: list[Path], out: Path) -> int:
    if out.suffix.lower() == ".csv":
        check_names(paths, "a CSV file")
    states = {path: state_of(path) for path in paths}
    with Listing(out, identity(runs, options), options.force) as listing:
        missing = [path for path in paths if not listing.has(path)]
        writer = PictureWriter(runs, options)
        for path, (best, *others) in writer.each(missing, len(paths) - len(missing)):
            values = best.as_json()
            if options.generate.captions > 1:
                values["alternatives"] = [other.as_json() for other in others]
            listing.add([(path, states[path], values)])
    print(f"caption: {writer.written} captions added to {out}, {len(paths) - len(missing)} there")
    return _name_unreadable(writer)


def _write_sidecars(options: CaptionOptions, runs: Runs, paths: list[Path], kind: str) -> int:
    missing = [path for path in paths if options.force or sidecars.may_write(path, kind)]
    there = [path for path in paths if path not in set(missing)]
    writer = PictureWriter(runs, options)
    empty: list[str] = []
    for path, (best, *_) in writer.each(missing, len(there)):
        if best.sentence:
            sidecars.write(path, kind, best.standing_alone)
        else:
            empty.append(str(path))
    print(
        f"caption: {writer.written - len(empty)} sidecars written, {len(there)} were there"
        + (f"; {len(empty)} captions are empty and have none: {first_few(empty)}" if empty else "")
    )
    if old := [str(path) for path in there if sidecars.is_older(path, kind)]:
        print(
            f"caption: {len(old)} of these are older than their pictures and perhaps not ours: "
            f"{first_few(old)}; --force replaces all sidecars",
            file=sys.stderr,
        )
    return _name_unreadable(writer)


def _caption_page(options: CaptionOptions, runs: Runs, file: Path) -> int:
    out = options.out or file.with_name(f"{file.stem}.alt{file.suffix}")
    if file.suffix.lower() in PICTURE_SUFFIXES:
        raise UserError(
            f"--alt takes an HTML page, found {file}; a picture is captioned by its name alone, "
            "without --alt"
        )
    try:
        content = file.read_bytes()
        page = Page(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} starts as UTF-16, but is not: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if out.exists() and (out.samefile(file) or not (options.force or _is_copy(out, content))):
        raise UserError(
            f"{out} is there already and is not a copy that this command made; choose another "
            "--out" + ("" if out.samefile(file) else ", or replace it with --force")
        )
    folder = file.parent
    places: dict[Path, list[int]] = {}
    elsewhere = 0
    for number, image in enumerate(page.bare):
        path = page.path_of(image.source, folder, options.site or folder)
        if path is None:
            elsewhere += 1
        else:
            places.setdefault(path, []).append(number)
    texts: dict[int, tuple[str, bool]] = {}
    writer = PictureWriter(runs, options)
    for path, (best, *_) in writer.each(list(places)):
        if best.sentence:  # an empty text would say that the picture is decoration
            texts |= dict.fromkeys(places[path], (best.standing_alone, best.unsure))
    write_atomically(out, page.with_texts(texts))
    print(
        f"caption: {len(texts)} alternative texts in {out}; {page.others} images needed none, "
        f"{elsewhere} are on the net or outside {options.site or folder} and have none yet"
    )
    return _name_unreadable(writer)


def _is_copy(file: Path, of_page: bytes) -> bool:
    """Whether a page holds alternative texts of ours, or is the same to the byte: we wrote it."""
    try:
        content = file.read_bytes()
    except OSError:
        return False
    if content == of_page:  # which needed none
        return True
    return any(MARK.encode(code) in content for code in ("ascii", "utf-16-le", "utf-16-be"))


def _name_unreadable(writer: PictureWriter) -> int:
    """Name the pictures that could not be read, and return the exit status."""
    for path, error in writer.unreadable:
        print(f"error: cannot read {path}: {error}", file=sys.stderr)
    return 2 if writer.unreadable else 0


def _pictures(given: Iterable[Path]) -> Iterable[Path]:
    """Yield the files given, and the pictures in the folders given and below them, sorted."""
    for path in given:
        if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises for a name that is too long
            for inside in sorted(path.rglob("*")):
                picture = inside.suffix.lower() in PICTURE_SUFFIXES and inside.is_file()
                if picture and not inside.name.startswith("._"):  # in which macOS keeps notes
                    yield inside
        else:
            yield path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(caption, CaptionOptions, "decoder.caption", argv)


if __name__ == "__main__":
    sys.exit(main())
