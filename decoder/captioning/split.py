"""Captions of a split of a work directory, with the attention at each word."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from decoder.captioning.captioner import Candidate, Captioner
from decoder.captioning.confidence import is_comparable, signals_of
from decoder.data.readers import SplitReader
from decoder.runs.packaged import named
from evaluation.outputs import attention_path
from features.commands import EXTRACT
from features.errors import UserError
from features.files import write_atomically, write_json
from features.progress import Progress
from features.row_format import RowFormat
from features.store import fingerprint
from pipeline.caption_database import load, open_features
from pipeline.work import WorkFolder


def caption_split(
    captioner: Captioner, work: WorkFolder, split: str, out: Path, batch_size: int, attended: int
) -> list[Path]:
    """Caption a split of a work directory, and return the files written.

    Args:
        captioner: the captioner.
        work: the work directory, of the captioner's run or another with features of the same kind.
        split: name of the split.
        out: where to write the captions, in the COCO results format. The attention is written
            beside it; `evaluation.outputs.attention_path` names the file.
        batch_size: number of images captioned at once.
        attended: number of images, from the first on, whose attention is saved.

    Raises:
        UserError: the captions or features are missing or broken, do not fit the run, or lack the
            split or the views.
    """
    views = captioner.options.views
    reader = _reader(captioner, work, split, views)
    comparable = is_comparable(captioner)  # decoder.export calibrates confidence on these captions
    # Boxes from files lie anywhere in the picture, so their weights cannot be shown on it.
    shows = captioner.attends and RowFormat(captioner.config["features"]).has_map
    results: list[dict[str, Any]] = []
    words: list[list[str]] = []
    attention: list[np.ndarray] = []
    with Progress("caption", len(reader), "image") as bar:
        for images, features in reader.batches(batch_size, views):
            batch = captioner.captions(features)
            for image, (best, *others) in zip(images, batch, strict=True):
                result: dict[str, Any] = {"image_id": image.id, "caption": best.text}
                if comparable:
                    signals = signals_of(best)
                    result["mean_log_probability"] = signals.pop("log_probability")
                    result["signals"] = {name: round(x, 6) for name, x in signals.items()}
                if captioner.options.captions > 1:
                    result["alternatives"] = [other.text for other in others]
                results.append(result)
            if shows and len(words) < attended:
                best_of_each: list[Candidate] = [candidates[0] for candidates in batch]
                attention.extend(captioner.attention(features, best_of_each))
                words += [captioner.vocabulary.words_of(best.ids) for best in best_of_each]
            bar.update(len(images))
    write_json(out, results)
    outputs = [out]
    attention_file = attention_path(out, split)
    if words:
        ids = [result["image_id"] for result in results[:attended]]
        grid = captioner.config["features"]["grid"]
        _save_attention(attention_file, ids, words[:attended], attention, grid)
        outputs.append(attention_file)
    else:
        attention_file.unlink(missing_ok=True)
    print(f"caption: {len(results)} captions in {out}")
    return outputs


def _reader(captioner: Captioner, work: WorkFolder, split: str, views: int) -> SplitReader:
    """Open the features of a split, of the kind that the captioner was trained on."""
    description = captioner.config["features"]
    store = open_features(work)
    store.expect(fingerprint(description), named(captioner.run.path), description)
    stored = len(store.row_format.views)
    if views > stored:
        raise UserError(
            f"{work.features} holds {stored} views of each image, but --views is {views}; "
            f"extract again with {EXTRACT} --views {views} --force and the other options of the "
            "first extraction"
        )
    reader = SplitReader(store, load(work.captions), split)
    if reader.left_out:
        print(f"caption: {reader.left_out} images left out: their features could not be extracted")
    return reader


def _save_attention(
    path: Path,
    image_ids: list[int],
    words: list[list[str]],
    attention: list[np.ndarray],
    grid: list[int],
) -> None:
    """Write the words of captions and the attention at each word as padded arrays.

    Args:
        path: the file.
        image_ids: the image of each caption.
        words: the words of each caption.
        attention: float32 [T, regions] for each caption; T may exceed the number of words.
        grid: height and width of the regions.
    """
    longest = max(map(len, words))
    weights = np.zeros((len(words), longest, *grid), dtype=np.float32)
    for into, caption, weights_TR in zip(weights, words, attention, strict=False):
        into[: len(caption)] = weights_TR[: len(caption)].reshape(len(caption), *grid)
    padded = np.array([[*c, *[""] * (longest - len(c))] for c in words], dtype=str)
    file = io.BytesIO()
    np.savez_compressed(file, image_id=np.array(image_ids), words=padded, weights=weights)
    write_atomically(path, file.getvalue())
