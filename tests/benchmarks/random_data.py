"""A work directory of random features, with captions as long as those of Flickr8k."""

from pathlib import Path

import numpy as np

from features.parts import PartWriter
from features.row_format import RowFormat
from features.store_writing import begin, merge
from pipeline import captions, vocabulary
from pipeline.vocabulary import SPECIAL, Vocabulary
from pipeline.work import WorkFolder

GRID, CHANNELS = [7, 7], 1280
LONGEST, WORDS = 20, 2600


def random_work_folder(path: Path, images: int) -> Path:
    """Fill the folder `path` with the features and captions of `images` images; return it.

    Each image has five captions. The first two images are for validation, the others for training.
    """
    work, random = WorkFolder(path), np.random.default_rng(0)
    words = [f"w{i}" for i in range(WORDS - len(SPECIAL))]
    frequency = 1 / np.arange(1, len(words) + 1)
    probability = frequency / frequency.sum()
    table = []
    for number in range(1, images + 1):
        lengths = random.normal(10.8, 3.2, 5).round().clip(2, LONGEST).astype(int)
        tokens = [tuple(random.choice(words, n, p=probability).tolist()) for n in lengths]
        texts = tuple(captions.Caption(" ".join(caption), caption) for caption in tokens)
        split = "val" if number <= 2 else "train"
        table.append(captions.Image(number, f"{number}.jpg", split, texts))
    captions.save(captions.CaptionTable("random", path, tuple(table)), work.captions)
    counts = (0,) * len(SPECIAL) + (5,) * len(words)
    vocabulary.save(Vocabulary((*SPECIAL, *words), counts, 5, LONGEST), work.vocabulary)

    description = {"backbone": "random", "grid": GRID, "channels": CHANNELS, "dtype": "float16"}
    row_format = RowFormat(description)
    writer = PartWriter(begin(work.features, row_format, None), row_format)
    for image in table:
        # Three quarters of the values are zero, as in real features.
        grid = np.maximum(random.standard_normal((1, row_format.regions, CHANNELS)) - 0.67, 0)
        grid = grid.astype(np.float32)
        writer.put([image.id], grid[None], grid.mean(1)[None])
    writer.close()
    merge(work.features, row_format, None, [image.id for image in table], {})
    return path
