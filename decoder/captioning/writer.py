"""Captions of pictures as people are told them: a sentence, and how sure it is."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from decoder.captioning.captioner import Captioned, Captioner, caption_pictures
from decoder.captioning.confidence import Confidence, comparable, load, mean_log_probability
from decoder.captioning.options import CaptionOptions
from decoder.generation.options import GenerateOptions
from features.devices import choose_device
from features.errors import UserError
from features.images import PictureError
from pipeline.text import as_sentence
from pipeline.work import RunFolder

Runs = list[tuple[RunFolder, Path]]
"""Runs, or captioners that were made of them, and the weights to take of each."""


class Told(NamedTuple):
    """One caption."""

    sentence: str
    log_probability: float
    confidence: float | None
    """The probability that it is good (see `decoder.captioning.confidence`), None if that is not
    known.
    """
    unsure: bool
    """Whether the confidence is below what was asked for."""

    @property
    def standing_alone(self) -> str:
        """The sentence where no mark can stand beside it: in an unsure one, a word says so."""
        if not self.unsure or not self.sentence:
            return self.sentence
        return f"Perhaps: {self.sentence[0].lower()}{self.sentence[1:]}"

    def as_json(self) -> dict[str, Any]:
        """Return what lines of JSON and CSV say."""
        rounded = None if self.confidence is None else round(self.confidence, 3)
        return {
            "caption": self.sentence,
            "unsure": self.unsure,
            "confidence": rounded,
            "log_probability": self.log_probability,
        }


class PictureWriter:
    """Writes captions for pictures.

    Attributes:
        written: how many pictures have got theirs.
        unreadable: the pictures that could not be read, and why.
    """

    def __init__(self, runs: Runs, options: CaptionOptions) -> None:
        self.written = 0
        self.unreadable: list[tuple[Path, PictureError]] = []
        self._runs = runs
        self._options = options

    def each(
        self, paths: Sequence[Path], before: int = 0, quiet: bool = False
    ) -> Iterator[tuple[Path, list[Told]]]:
        """Yield the captions of each picture, the best first, but not of those unreadable.

        A bar on the standard error, if that is a terminal, shows the progress.

        Args:
            paths: of the pictures; with none, nothing is loaded.
            before: pictures that were done before, for the bar.
            quiet: show no bar.

        Raises:
            UserError: see `Captioner`.
        """
        if not paths:
            return
        options = self._options
        torch.manual_seed(options.seed)
        captioner = Captioner(self._runs, options.generate, choose_device(options.device))
        first = self._runs[0][0]
        confidence = load(first.path) if comparable(captioner, first) else None
        total = before + len(paths)
        with tqdm(
            total=total, initial=before, desc="caption", unit="image", disable=quiet or None
        ) as bar:
            for path, found in caption_pictures(captioner, paths, options.batch_size):
                bar.update()
                if isinstance(found, PictureError):
                    self.unreadable.append((path, found))
                    continue
                yield path, [tell(one, confidence, options.unsure) for one in found]
                self.written += 1


def tell(caption: Captioned, confidence: Confidence | None, least: float) -> Told:
    """Return a caption as it is told; unsure is one whose confidence is below `least`."""
    sure = None if confidence is None else confidence.of(mean_log_probability(caption))
    unsure = sure is not None and sure < least
    return Told(as_sentence(caption.text), caption.log_probability, sure, unsure)


def identity(runs: Runs, options: CaptionOptions) -> str:
    """Return what tells apart the captions that other weights or options would write.

    Raises:
        UserError: the weights cannot be read.
    """
    seed = options.seed if options.generate.sample else None
    said = json.dumps([asdict(options.generate), options.unsure, seed], sort_keys=True)
    digest = hashlib.sha256(said.encode())
    for file in read_by(runs, options.generate):
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()[:12]


def read_by(runs: Runs, options: GenerateOptions) -> list[Path]:
    """Return the files by which runs write: others write other captions.

    Not among them are the features of a work directory, which with `--rerank` decide, too.
    """
    files = [file for run, weights in runs for file in (weights, run.config, run.vocabulary)]
    if options.consensus or options.rerank:
        first = runs[0][0]
        own = [first.frequencies, first.expectation, first.embedding]
        files += [file for file in own if file.exists()] or [first.work.captions]
    return files
