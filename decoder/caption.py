"""Stage `caption`: captions of a split's images, or of pictures of one's own."""

import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from decoder.batches import SplitReader
from decoder.captioner import Captioned, Captioner, caption_pictures
from decoder.options import CaptionOptions
from decoder.runs import RunFolder
from features.devices import choose_device
from features.errors import UserError
from features.images import PictureError
from features.store import FeatureStore
from pipeline import captions
from pipeline.command import run as run_command
from pipeline.command import write_atomically, write_json
from pipeline.stamps import Stamp
from pipeline.text import as_sentence

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}


def caption(options: CaptionOptions) -> int:
    """Write captions for a split of a work directory, or for pictures and folders of pictures."""
    run = RunFolder(options.run)
    weights = getattr(run, options.weights)
    if options.split is None:
        return _caption_files(options, run, weights)
    return _caption_split(options, run, weights, options.split)


def _caption_split(options: CaptionOptions, run: RunFolder, weights: Path, split: str) -> int:
    table_path, store_path = run.work / "captions.json", run.work / "features.h5"
    suffix = "_xe" if options.weights == "best_xe" else ""
    out = options.out or run.path / f"captions_{split}{suffix}.json"
    name = out.stem.removeprefix("captions_")
    attention_path = out.with_name(f"attention_{name}.npz")
    inputs = [weights, run.config, table_path, store_path]
    stamp = Stamp(out.parent, f"caption-{name}", options, inputs)
    if stamp.holds() and not options.force:
        print(f"caption: {out} unchanged, skipped")
        return 0
    torch.manual_seed(options.seed)
    captioner = Captioner(run, weights, options.generate, choose_device(options.device))
    store = FeatureStore(store_path)
    store.expect(
        captioner.config["fingerprint"], f"the run {run.path}", captioner.config["features"]
    )
    reader = SplitReader(store, captions.load(table_path), split)
    if reader.left_out:
        print(f"caption: {reader.left_out} images left out, their features could not be extracted")

    results: list[dict[str, Any]] = []
    written: list[Captioned] = []
    looked: list[np.ndarray] = []
    with tqdm(total=len(reader), desc="caption", unit="image", disable=None) as bar:
        for images, features in reader.batches(options.batch_size):
            found = captioner.caption(features)
            results += (
                {"image_id": image.id, "caption": caption.text}
                for image, caption in zip(images, found, strict=True)
            )
            if captioner.model.attends and len(written) < options.attention:
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


def _caption_files(options: CaptionOptions, run: RunFolder, weights: Path) -> int:
    paths = list(_pictures(options.pictures))
    if not paths:
        raise UserError(f"no pictures in {', '.join(map(str, options.pictures))}")
    torch.manual_seed(options.seed)
    captioner = Captioner(run, weights, options.generate, choose_device(options.device))
    unreadable = 0
    for path, found in caption_pictures(captioner, paths, options.batch_size):
        if isinstance(found, PictureError):
            unreadable += 1
            print(f"error: cannot read {path}: {found}", file=sys.stderr)
            continue
        sentence = as_sentence(found.text)
        if options.json:
            line = {
                "path": str(path),
                "caption": sentence,
                "log_probability": found.log_probability,
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            print(f"{path}\t{sentence}", flush=True)
    return 2 if unreadable else 0


def _pictures(given: Iterable[Path]) -> Iterable[Path]:
    """Yield the files given, and the pictures in the folders given and below them, sorted."""
    for path in given:
        if path.is_dir():
            inside = sorted(path.rglob("*"))
            yield from (p for p in inside if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
        else:
            yield path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(caption, CaptionOptions, "decoder.caption", argv)


if __name__ == "__main__":
    sys.exit(main())
