"""The time of a whole training on data of COCO's size and shape, from a measured share of it.

    .venv/bin/python -m tests.benchmarks.coco_size [--share 0.01] [--device cuda] [--precision tf32]

The store and the captions are made of random numbers: 113,287 training and 5,000 validation images,
49 x 2048 features of which three quarters are zero, and five captions an image, about as long as
COCO's (a mean of 10.5 words). The store takes 9 GB. The decoder is the Up-Down of the preset coco,
in batches of 50 images. An untrained decoder rarely ends a caption, so the times of REINFORCE and
validation are upper bounds. With --images 60 and small sizes it runs on a CPU in a few seconds.
"""

import json
import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import tyro

from decoder.data.readers import on_device
from decoder.model.options import ModelOptions
from decoder.train import new_trainer
from decoder.training.options import CrossEntropyOptions, ReinforceOptions, TrainOptions
from decoder.training.phases import Phase
from decoder.training.trainer import Trainer
from features.estimate import duration, peak_memory
from features.row_format import Packed, Record, RowFormat, checksum, to_float16
from features.store import as_size
from features.store_writing import write_store
from pipeline import captions, vocabulary
from pipeline.captions import Caption, CaptionTable, Image
from pipeline.vocabulary import SPECIAL, Vocabulary
from pipeline.work import WorkFolder

CAPTIONS, LONGEST = 5, 16
XE_EPOCHS, RL_EPOCHS = 30, 20
DISTINCT = 256  # feature maps; the images have copies of them
WARM_UP = 4  # steps of a phase before the measured ones: they compile, capture and allocate


def main(
    images: int = 113_287,
    validation: int = 5_000,
    share: float = 0.01,
    hidden: int = 1000,
    attention: int = 512,
    channels: int = 2048,
    words: int = 9_487,
    batch_size: int = 50,
    device: str = "auto",
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    work: Path | None = None,
) -> None:
    """Print the measured times, and that of a whole training, as JSON.

    Args:
        images: number of training images.
        validation: number of validation images.
        share: of each phase and of the captions of all validations, to measure.
        hidden: size of the recurrent state.
        attention: size of the attention.
        channels: of the features.
        words: of the vocabulary.
        batch_size: in images.
        device: where to train.
        precision: of matrix products.
        work: where to make the data, or a folder that has it from an earlier call with the same
            sizes; by default a temporary folder.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with TemporaryDirectory() as temporary:
        folder = WorkFolder(work or Path(temporary))
        started = time.perf_counter()
        if not folder.features.exists():
            make_data(folder, images, validation, channels, words)
        made = time.perf_counter() - started
        options = TrainOptions(
            work=folder.path,
            run="coco",
            decoder=ModelOptions(model="updown", hidden=hidden, attention=attention, dropout=0.5),
            xe=CrossEntropyOptions(
                epochs=XE_EPOCHS, learning_rate=5e-4, scheduled_sampling=0.25, label_smoothing=0.0
            ),
            rl=ReinforceOptions(epochs=RL_EPOCHS, learning_rate=5e-5, temperature=1.0),
            batch_size=batch_size,
            initial="random",
            device=device,
            precision=precision,
        )
        print(json.dumps({"making_the_data": made, **measure(options, share)}, indent=1))


def make_data(folder: WorkFolder, images: int, validation: int, channels: int, words: int) -> None:
    """Write features, captions and vocabulary to a work directory."""
    folder.path.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    names = [f"w{i}" for i in range(words - len(SPECIAL))]
    probability = 1 / np.arange(1, len(names) + 1)
    count = images + validation
    # Short captions are rare and long ones have a tail; beyond LONGEST words they are cut.
    length_Z = (6.5 + random.gamma(3.2, 1.25, count * CAPTIONS)).astype(int).clip(max=49)
    word_W = random.choice(len(names), int(length_Z.sum()), p=probability / probability.sum())
    drawn = iter(word_W.tolist())

    def caption(length: int) -> Caption:
        tokens = tuple(names[word] for word in islice(drawn, length))
        return Caption(" ".join(tokens), tokens)

    lengths = length_Z.reshape(count, CAPTIONS).tolist()
    table = [
        Image(
            number,
            f"{number}.jpg",
            "train" if number < images else "val",
            tuple(caption(length) for length in of_image),
        )
        for number, of_image in enumerate(lengths)
    ]
    captions.save(CaptionTable("random", folder.path, tuple(table)), folder.captions)
    counts = (0,) * len(SPECIAL) + (5,) * len(names)
    vocabulary.save(Vocabulary((*SPECIAL, *names), counts, 5, LONGEST), folder.vocabulary)

    description = {"backbone": "random", "grid": [7, 7], "channels": channels, "dtype": "float16"}
    kind = RowFormat(description)
    distinct = [_packed(kind, random) for _ in range(min(count, DISTINCT))]

    def records() -> Iterator[Record]:
        for number in range(count):
            yield Record(number, distinct[number % len(distinct)])

    write_store(folder.features, kind, range(count), records(), {})


def _packed(kind: RowFormat, random: np.random.Generator) -> Packed:
    grid = np.maximum(random.standard_normal((kind.regions, kind.channels)) - 0.67, 0)
    stored, pooled = to_float16(grid), to_float16(grid.mean(0))[None]
    sums = np.array([[checksum(pooled[0]), checksum(stored)]], "<u4")
    return Packed(pooled, [kind.pack(stored)], sums)


def measure(options: TrainOptions, share: float) -> dict[str, Any]:
    """Measure a share of a training; return seconds, and those of the whole training."""
    started = time.perf_counter()
    trainer = new_trainer(options)
    trainer.initialise()
    start = time.perf_counter() - started
    steps = trainer.training.batches_per_epoch
    each = {phase.name: _step_seconds(trainer, phase, share) for phase in trainer.phases}
    writing, scoring = _validation_seconds(trainer, share)
    learning = sum(phase.steps * each[phase.name][1] for phase in trainer.phases)
    epochs = sum(phase.epochs for phase in trainer.phases)
    warm_up = sum(warm for warm, _ in each.values())
    beside = start + warm_up + learning + epochs * writing
    return {
        "device": torch.cuda.get_device_name() if trainer.device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "steps_per_epoch": steps,
        "seconds": {
            "start": start,
            "warm_up": warm_up,
            **{f"{name}_step": seconds for name, (_, seconds) in each.items()},
            "writing_validation_captions": writing,
            "scoring_them": scoring,
            "training_with_scoring_beside": beside,
            "training": beside + epochs * scoring,
        },
        "training": duration(beside + epochs * scoring),
        "training_with_scoring_beside": duration(beside),
        "captions_per_second": CAPTIONS * options.batch_size / each["xe"][1],
        "images_per_second_in_reinforce": options.batch_size / each["rl"][1],
        "peak_memory": as_size(peak_memory()),
    }


def _step_seconds(trainer: Trainer, phase: Phase, share: float) -> tuple[float, float]:
    """Return the seconds of the first steps of a phase, and those of a step after them."""
    count = max(2, round(share * phase.steps))
    batches = (
        batch
        for epoch in range(phase.epochs)
        for batch in on_device(trainer.training.epoch(phase.name, epoch), trainer.device)
    )

    def take(number: int) -> float:
        started = time.perf_counter()
        for batch in islice(batches, number):
            trainer.step(phase, batch)
        trainer.read_figures()
        return time.perf_counter() - started

    return take(WARM_UP), take(count) / count


def _validation_seconds(trainer: Trainer, share: float) -> tuple[float, float]:
    """Return the seconds of writing the captions of a validation, and of scoring them."""
    validation = trainer.validation
    averaged, images = validation.averaged_model(), validation.images
    batches = images.batches(validation.batch_size)
    epochs = sum(phase.epochs for phase in trainer.phases)
    count = max(1, round(share * epochs * len(images) / validation.batch_size))

    def write(number: int) -> tuple[int, float]:
        written, started = 0, time.perf_counter()
        for some, features in islice(batches, number):
            written += len(validation.write_captions(averaged, some, features))
        return written, time.perf_counter() - started

    first, warm_up = write(1)
    written, seconds = write(count)
    writing = (seconds / written if written else warm_up / first) * len(images)
    # References stand in for captions of realistic length.
    texts = {image.id: image.captions[0].text for image in images.images}
    assert validation.validator is not None
    validation.validator.score(texts)  # starts Java, and counts the references
    started = time.perf_counter()
    validation.validator.score(texts, greedy=texts)
    scoring = time.perf_counter() - started
    validation.close()
    return writing, scoring


if __name__ == "__main__":
    tyro.cli(main)
