"""Captions of a split of a work directory, with where each word looked."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from decoder.captioning.captioner import Captioned, Captioner
from decoder.captioning.confidence import comparable, mean_log_probability
from decoder.captioning.options import CaptionOptions
from decoder.captioning.writer import Runs, read_by
from decoder.data.readers import SplitReader
from features.devices import choose_device
from features.errors import UserError
from features.files import write_atomically, write_json
from features.store import FeatureStore, fingerprint
from pipeline import captions
from pipeline.up_to_date import Stamp


def caption_split(options: CaptionOptions, runs: Runs, split: str) -> int:
    """Caption a split of the first run's work directory and return the exit status."""
    run, _ = runs[0]
    table_path, store_path = run.work.captions, run.work.features
    suffix = {"best": "", "best_xe": "_xe", "both": "_both"}[options.weights]
    out = options.out or run.captions(split, suffix)
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
