"""From pictures to captions for people: a sentence and how confident the captioner is."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from io import IOBase
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import torch
from PIL import Image

from decoder.captioning.captioner import Candidate, Captioner, Runs, input_files
from decoder.captioning.confidence import Confidence, confidence_of, signals_of
from decoder.captioning.neutral import neutral
from decoder.data.batches import Features
from decoder.data.pictures import as_stored
from decoder.generation.options import GenerateOptions
from decoder.ranking.albums import AlbumResults, open_album
from features.content import EmptyPicture, check_content
from features.devices import cores
from features.errors import UserError
from features.images import PictureError, read_picture
from features.progress import Progress
from features.views import VIEWS
from pipeline.text import as_sentence

Picture = str | Path | bytes | Image.Image
"""A picture: the path of a file, the content of one, or an image of Pillow."""

HEDGE = "Perhaps: "
"""How an unsure caption begins in places that have no other mark."""

_UNREAD = IOBase | bytearray | memoryview
T = TypeVar("T")


@dataclass(frozen=True)
class Caption:
    """The caption of a picture as people read it, or the reason why it has none.

    The fields, except `unfamiliar`, have the names of the keys of `decoder.caption --json`. A CSV
    table has no log-probability, and further captions as caption_2, caption_3 and so on.
    """

    caption: str | None
    """A sentence with a capital letter and a full stop; empty if the decoder generated no word,
    None if there is an `error`.
    """
    unsure: bool | None
    """Whether the confidence is below the threshold; None if there is an `error`."""
    confidence: float | None
    """Probability from 0 to 1 that the caption is good (see `decoder.captioning.confidence`),
    rounded to 3 digits; None if the captioner has no confidence estimate.
    """
    log_probability: float | None
    """Natural logarithm of the probability of its words; None if there is an `error`."""
    error: str | None = None
    """Why the picture has no caption: it cannot be read, or shows nothing; None if it has one."""
    labels: tuple[str, ...] = ()
    """If the caption is unsure: what else the picture may show, the most probable first. These are
    ImageNet classes that the CNN itself gives a probability of 0.05 or more."""
    unfamiliar: bool = False
    """Whether the picture is unlike the photographs that the captioner was trained on, such as a
    page of text, a diagram or a drawing; its caption is unsure."""
    alternatives: tuple["Caption", ...] = ()
    """Further captions, the most probable first, if more than one was asked for."""

    @property
    def hedged(self) -> str:
        """The sentence, with "Perhaps" if it is unsure: for places that have no other mark."""
        return hedge(self.caption or "") if self.unsure else self.caption or ""

    def as_json(self) -> dict[str, Any]:
        """Return what a JSON object or a row of a table says about the caption itself."""
        return {
            "caption": self.caption,
            "unsure": self.unsure,
            "confidence": self.confidence,
            "log_probability": self.log_probability,
            "labels": list(self.labels),
        }

    @property
    def doubt(self) -> str:
        """Why not to trust the caption and what else the picture may show; empty if it is sure."""
        if not self.unsure:
            return ""
        reason = "unsure, not like a photograph" if self.unfamiliar else "unsure"
        return f"{reason}; it may show: {', '.join(self.labels)}" if self.labels else reason


def hedge(sentence: str) -> str:
    """Return a sentence with "Perhaps" before it."""
    return f"{HEDGE}{sentence[0].lower()}{sentence[1:]}" if sentence else ""


def describe(
    candidate: Candidate,
    calibration: Confidence | None,
    threshold: float,
    neutral_words: bool = False,
) -> Caption:
    """Format a caption for people.

    It is unsure if its confidence is below `threshold`, or its picture unfamiliar; at a threshold
    of 0 none is.
    """
    probability, unfamiliar = None, False
    signals = signals_of(candidate)
    if calibration is not None and calibration.applies(signals):
        probability = calibration.of(signals)
        unfamiliar = threshold > 0 and calibration.unfamiliar(signals)
    unsure = unfamiliar or (probability is not None and probability < threshold)
    return Caption(
        as_sentence(neutral(candidate.text) if neutral_words else candidate.text),
        unsure,
        None if probability is None else round(probability, 3),
        candidate.log_probability,
        unfamiliar=unfamiliar,
    )


def _one(result: Sequence[Caption] | PictureError) -> Caption:
    """Return the best caption of a picture with the others as its alternatives, or its error."""
    if isinstance(result, PictureError):
        return Caption(None, None, None, None, " ".join(str(result).split()))
    best, *others = result
    return replace(best, alternatives=tuple(others))


class CaptionWriter:
    """Captions pictures; the models are loaded when the first picture needs them, and kept.

    Args:
        runs: the runs and their weights.
        options: how captions are generated and chosen.
        threshold: captions whose confidence is below this are unsure.
        neutral: whether captions name people neutrally; see `decoder.captioning.neutral`.
        batch_size: number of pictures captioned at once.
        seed: fixes the samples drawn.
        device: where to compute.

    Attributes:
        written: number of pictures that `results` captioned so far.
        captions_each: most captions of a picture.
        unreadable: the pictures of `results` that could not be read or show nothing, and why.
        names: how to name pictures that are not the user's files.
    """

    def __init__(
        self,
        runs: Runs,
        options: GenerateOptions,
        *,
        threshold: float,
        neutral: bool = False,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.written = 0
        self.captions_each = options.captions
        self.unreadable: list[tuple[Path, PictureError]] = []
        self.names: dict[Path, str] = {}
        self._runs = runs
        self._options = options
        self._threshold = threshold
        self._neutral = neutral
        self._batch_size = batch_size
        self._seed = seed
        self._device = device

    def search(self, folder: str | Path, query: str, count: int = 10) -> AlbumResults:
        """Return the pictures in a folder that match a query best, as decoder.search --folder does.

        The features of new and changed pictures are computed first, and kept in a cache.

        Args:
            folder: pictures are searched in it and below it.
            query: what to look for, such as "a dog in the snow".
            count: most results.

        Raises:
            UserError: see `open_album`.
        """
        run, _ = self._runs[0]
        return open_album(Path(folder), run, device=self._device).search(query, count)

    def load(self) -> None:
        """Load the decoder now, which reports a broken run before the first picture.

        Raises:
            UserError: see `Captioner`.
        """
        _ = self._captioner, self._calibration

    @cached_property
    def _captioner(self) -> Captioner:
        return Captioner(self._runs, self._options, self._device)

    @cached_property
    def _calibration(self) -> Confidence | None:
        return confidence_of(self._captioner)

    @overload
    def caption(self, pictures: Picture) -> Caption: ...  # type: ignore[overload-overlap]

    @overload
    def caption(self, pictures: Iterable[Picture]) -> list[Caption]: ...

    def caption(self, pictures: Picture | Iterable[Picture]) -> Caption | list[Caption]:
        """Return the caption of a picture, or of each picture of a list, as decoder.caption does.

        A picture that cannot be read, or shows nothing, has an `error` instead of a caption.

        Args:
            pictures: a path, the content of a file, or an image of Pillow; or several of them.

        Raises:
            TypeError: it is something else.
            UserError: see `Captioner`.
        """
        # An open file, whose items are lines, and a bytearray are meant as one picture too.
        chosen: list[Any] = [pictures]
        if isinstance(pictures, Iterable) and not isinstance(pictures, Picture | _UNREAD):
            chosen = list(pictures)
        for picture in chosen:
            if not isinstance(picture, Picture):
                raise TypeError(
                    "expected the path of a picture, its bytes or an image of Pillow, found "
                    f"{type(picture).__name__}"
                )
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the caller's random numbers are left alone
            results = self.captioned(chosen, read_picture) if chosen else ()
            captions = [_one(result) for _, result in results]
        return captions[0] if isinstance(pictures, Picture) else captions

    def captioned(
        self, pictures: Sequence[T], read: Callable[[T], Image.Image]
    ) -> Iterator[tuple[T, list[Caption] | PictureError]]:
        """Yield each picture's captions, the best first, or why it has none.

        Args:
            pictures: the pictures, or what they are read from.
            read: decodes one of them, or raises PictureError.
        """
        torch.manual_seed(self._seed)
        calibration = self._calibration
        for picture, result in caption_pictures(self._captioner, pictures, self._batch_size, read):
            if isinstance(result, PictureError):
                yield picture, result
                continue
            distinct: dict[str | None, Caption] = {}  # neutral words make some captions equal
            for one in result.candidates:
                caption = describe(one, calibration, self._threshold, self._neutral)
                distinct.setdefault(caption.caption, caption)
            captions = list(distinct.values())
            if captions[0].unsure:
                labels = tuple(label.name for label in self._captioner.labels(result.features)[0])
                captions[0] = replace(captions[0], labels=labels)
            yield picture, captions

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

        The progress is shown on standard error.

        Args:
            paths: the pictures; if there are none, nothing is loaded.
            done: number of pictures captioned by earlier runs, for the progress.
            quiet: show no progress.

        Raises:
            UserError: see `Captioner`.
        """
        if not paths:
            return
        total = done + len(paths)
        with Progress("caption", total, "picture", done=done, hidden=quiet) as bar:
            for path, result in self.captioned(paths, read_picture):
                bar.update()
                if isinstance(result, PictureError):
                    self.unreadable.append((path, result))
                yield path, result
                self.written += not isinstance(result, PictureError)

    def as_json(self, result: Sequence[Caption] | PictureError) -> dict[str, Any]:
        """Return a picture's captions as a JSON object: the best, and the others as alternatives.

        Without `--captions` there is no list of alternatives. A picture that cannot be read has
        the same keys, without values, and the reason as `error`.
        """
        caption = _one(result)
        values = caption.as_json()
        if self._options.captions > 1:
            values["alternatives"] = [other.as_json() for other in caption.alternatives]
        return {**values, "error": caption.error}

    def identity(self) -> str:
        """Hash of the weights and options that determine the captions.

        Raises:
            UserError: the weights cannot be read.
        """
        seed = self._seed if self._options.sample else None
        values = [asdict(self._options), self._threshold, seed]
        if self._neutral:
            values.append("neutral")
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
            name = self.names.get(path, path)
            if isinstance(error, EmptyPicture):
                print(f"no caption for {name}: {error}", file=sys.stderr)
            else:
                print(f"error: cannot read {name}: {error}", file=sys.stderr)
                status = 1
        return status


class Captioned(NamedTuple):
    """The captions of a picture and what they were written from."""

    candidates: list[Candidate]
    features: Features
    """Of one picture; see `Captioner.captions`."""


def caption_pictures(
    captioner: Captioner,
    pictures: Sequence[T],
    batch_size: int,
    read: Callable[[T], Image.Image],
) -> Iterator[tuple[T, Captioned | PictureError]]:
    """Yield each picture's captions, or why it cannot be read, in the order of `pictures`.

    Threads decode a batch of pictures at a time. A picture that cannot be read, or shows nothing,
    does not stop the others.
    """
    backbone = captioner.backbone(len(pictures) * captioner.options.views)
    views = VIEWS[: captioner.options.views]

    def prepare(source: T) -> torch.Tensor | Features | PictureError:
        try:
            picture = read(source)
            check_content(picture)
            pixels = backbone.views(picture, views)
        except PictureError as error:
            return error
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return as_stored(backbone, [images]) if backbone.one_by_one else images

    with ThreadPoolExecutor(min(32, cores() + 4)) as pool:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            results = list(pool.map(prepare, batch))
            parts = [result for result in results if isinstance(result, Features)]
            if images := [result for result in results if isinstance(result, torch.Tensor)]:
                parts = [as_stored(backbone, images)]
            captioned: Iterator[Captioned] = iter(())
            if parts:
                grids, pooled, _ = zip(*parts, strict=True)
                features = Features(torch.cat(grids), torch.cat(pooled))
                each = map(
                    Features,
                    features.grid_IRC.split(len(views)),
                    features.pooled_IC.split(len(views)),
                )
                captioned = map(Captioned, captioner.captions(features), each)
            for source, result in zip(batch, results, strict=True):
                yield source, result if isinstance(result, PictureError) else next(captioned)
