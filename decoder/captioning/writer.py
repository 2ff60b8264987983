"""From picture files to captions for people: a sentence and how confident the captioner is."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from decoder.captioning.captioner import Candidate, Captioner, Runs, input_files
from decoder.captioning.confidence import Confidence, confidence_of, mean_log_probability
from decoder.data.batches import Features
from decoder.data.pictures import as_stored
from decoder.generation.options import GenerateOptions
from features.content import EmptyPicture, check_content
from features.errors import UserError
from features.images import PictureError, read_picture
from features.views import VIEWS
from pipeline.text import as_sentence

_KEYS = ("caption", "unsure", "confidence", "log_probability")  # of a caption as JSON


class Caption(NamedTuple):
    """A caption as people read it."""

    sentence: str
    """With a capital letter and a full stop; empty if the decoder generated no word."""
    log_probability: float
    confidence: float | None
    """The probability that the caption is good (see `decoder.captioning.confidence`); None if the
    captioner has no confidence estimate.
    """
    unsure: bool
    """Whether the confidence is below the threshold."""

    @property
    def hedged(self) -> str:
        """The sentence, with "Perhaps" if it is unsure: for places that have no other mark."""
        return hedge(self.sentence) if self.unsure else self.sentence

    def as_json(self) -> dict[str, Any]:
        """Return the caption as a JSON object."""
        rounded = None if self.confidence is None else round(self.confidence, 3)
        values = (self.sentence, self.unsure, rounded, self.log_probability)
        return dict(zip(_KEYS, values, strict=True))


def hedge(sentence: str) -> str:
    """Return a sentence with "Perhaps" before it."""
    return f"Perhaps: {sentence[0].lower()}{sentence[1:]}" if sentence else ""


def describe(candidate: Candidate, calibration: Confidence | None, threshold: float) -> Caption:
    """Format a caption for people; it is unsure if its confidence is below `threshold`."""
    probability = None
    if calibration is not None:
        probability = calibration.of(mean_log_probability(candidate))
    unsure = probability is not None and probability < threshold
    return Caption(as_sentence(candidate.text), candidate.log_probability, probability, unsure)


class CaptionWriter:
    """Captions picture files; the models are loaded when the first picture needs them.

    Args:
        runs: the runs and their weights.
        options: how captions are generated and chosen.
        threshold: captions whose confidence is below this are unsure.
        batch_size: number of pictures captioned at once.
        seed: fixes the samples drawn.
        device: where to compute.

    Attributes:
        written: number of pictures captioned so far.
        captions_each: most captions of a picture.
        unreadable: the pictures that could not be read or show nothing, and why.
    """

    def __init__(
        self,
        runs: Runs,
        options: GenerateOptions,
        *,
        threshold: float,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.written = 0
        self.captions_each = options.captions
        self.unreadable: list[tuple[Path, PictureError]] = []
        self._runs = runs
        self._options = options
        self._threshold = threshold
        self._batch_size = batch_size
        self._seed = seed
        self._device = device

    def captions(
        self, paths: Sequence[Path], done: int = 0, quiet: bool = False
    ) -> Iterator[tuple[Path, list[Caption]]]:
        """Yield the captions of each picture that can be read; otherwise as `results`."""
        for path, result in self.results(paths, done, quiet):
            if not isinstance(result, PictureError):
                yield path, result

    def results(
        self, paths: Sequence[Path], done: int = 0, quiet: bool = False
    ) -> Iterator[tuple[Path, list[Caption] | PictureError]]:
        """Yield each picture's captions, the best first, or why it cannot be read.

        A progress bar is shown on standard error if that is a terminal.

        Args:
            paths: the pictures; if there are none, nothing is loaded.
            done: number of pictures captioned by earlier runs, for the bar.
            quiet: show no bar.

        Raises:
            UserError: see `Captioner`.
        """
        if not paths:
            return
        torch.manual_seed(self._seed)
        captioner = Captioner(self._runs, self._options, self._device)
        calibration = confidence_of(captioner)
        total = done + len(paths)
        with tqdm(
            total=total, initial=done, desc="caption", unit="image", disable=quiet or None
        ) as bar:
            for path, result in caption_pictures(captioner, paths, self._batch_size):
                bar.update()
                if isinstance(result, PictureError):
                    self.unreadable.append((path, result))
                    yield path, result
                    continue
                yield path, [describe(one, calibration, self._threshold) for one in result]
                self.written += 1

    def as_json(self, result: Sequence[Caption] | PictureError) -> dict[str, Any]:
        """Return a picture's captions as a JSON object: the best, and the others as alternatives.

        Without `--captions` there is no list of alternatives. A picture that cannot be read has
        the same keys, without values, and the reason as `error`.
        """
        if isinstance(result, PictureError):
            best: dict[str, Any] = dict.fromkeys(_KEYS)
            others: Sequence[Caption] = ()
            error = " ".join(str(result).split())
        else:
            best, others, error = result[0].as_json(), result[1:], None
        if self._options.captions > 1:
            best["alternatives"] = [other.as_json() for other in others]
        return {**best, "error": error}

    def identity(self) -> str:
        """Hash of the weights and options that determine the captions.

        Raises:
            UserError: the weights cannot be read.
        """
        seed = self._seed if self._options.sample else None
        values = [asdict(self._options), self._threshold, seed]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for file in input_files(self._runs, self._options):
            try:
                digest.update(hashlib.sha256(file.read_bytes()).digest())
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from error
        return digest.hexdigest()[:12]

    def report_unreadable(self) -> int:
        """Print the pictures without caption, and return the exit status: 1 if any is unreadable.

        A picture that shows nothing needs no caption, so it is not an error.
        """
        status = 0
        for path, error in self.unreadable:
            if isinstance(error, EmptyPicture):
                print(f"no caption for {path}: {error}", file=sys.stderr)
            else:
                print(f"error: cannot read {path}: {error}", file=sys.stderr)
                status = 1
        return status


def caption_pictures(
    captioner: Captioner, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, list[Candidate] | PictureError]]:
    """Yield each picture's captions, or why it cannot be read, in the order of `paths`.

    Threads decode a batch of pictures at a time. A picture that cannot be read, or shows nothing,
    does not stop the others.
    """
    backbone = captioner.backbone(len(paths) * captioner.options.views)
    views = VIEWS[: captioner.options.views]

    def read(path: Path) -> torch.Tensor | Features | PictureError:
        try:
            picture = read_picture(path)
            check_content(picture)
            pixels = backbone.views(picture, views)
        except PictureError as error:
            return error
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return as_stored(backbone, [images]) if backbone.one_by_one else images

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            results = list(pool.map(read, batch))
            parts = [result for result in results if isinstance(result, Features)]
            if images := [result for result in results if isinstance(result, torch.Tensor)]:
                parts = [as_stored(backbone, images)]
            captions: Iterator[list[Candidate]] = iter(())
            if parts:
                features = Features(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
                captions = iter(captioner.captions(features))
            for path, result in zip(batch, results, strict=True):
                yield path, result if isinstance(result, PictureError) else next(captions)
