"""What the page of `decoder.demo` shows: captions with their attention, and search results."""

import hashlib
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from decoder.captioning.captioner import Candidate, Captioner, default_generation
from decoder.captioning.confidence import confidence_of, in_words
from decoder.captioning.writer import CaptionWriter, describe
from decoder.data.batches import Features
from decoder.data.pictures import as_stored
from decoder.generation.options import GenerateOptions
from decoder.ranking.albums import Album
from decoder.ranking.searcher import Searcher
from features.content import check_content
from features.errors import UserError
from features.images import read_picture
from features.views import VIEWS
from pipeline.text import as_sentence, detokenize
from pipeline.work import RunFolder

ALTERNATIVES = 3
RESULTS = 12
# Alternatives should differ from the caption; those of a plain beam search hardly do.
_DIVERSE = GenerateOptions(beam=8, groups=4, captions=4)


class PageCaptioner:
    """Captions one picture at a time for the page; the CNN and the decoder are loaded once.

    Args:
        run: the run or captioner.
        threshold: captions whose confidence is below this are marked as unsure.
        device: where to compute.

    Attributes:
        identity: hash of the weights and options, as listings hold it.
    """

    def __init__(self, run: RunFolder, threshold: float, device: torch.device) -> None:
        runs, options = [(run, run.best)], default_generation(run)
        self._captioner = Captioner(runs, options, device)
        self._diverse = Captioner(runs, _DIVERSE, device)
        self._confidence = confidence_of(self._captioner)
        self._threshold = threshold
        self._backbone = self._captioner.backbone()
        writer = CaptionWriter(
            runs, options, threshold=threshold, batch_size=1, seed=1, device=device
        )
        self.identity = writer.identity()

    def describe(self, path: Path) -> dict[str, Any]:
        """Return the caption of a picture and what the page shows with it, as a JSON object.

        Returns:
            The keys of `decoder.caption --json`; the confidence in words as `sure`, other captions
            as `alternatives`, and the attention at each word (see `_attention`).

        Raises:
            PictureError: the picture cannot be read, or shows nothing.
        """
        picture = read_picture(path)
        check_content(picture)
        pixels = self._backbone.views(picture, VIEWS[:1])
        features = as_stored(self._backbone, [torch.from_numpy(pixels).permute(0, 3, 1, 2)])
        best = self._captioner.caption(features)[0]
        others = [one for one in self._diverse.captions(features)[0] if one.text != best.text]
        caption = describe(best, self._confidence, self._threshold)
        if caption.unsure:
            labels = tuple(label.name for label in self._captioner.labels(features)[0])
            caption = replace(caption, labels=labels)
        sure = "This captioner has no confidence estimate."
        if caption.confidence is not None:
            sure = in_words(caption.confidence, bool(caption.unsure))
        if caption.unfamiliar:
            sure = "Unsure: this does not look like a photograph."
        if caption.labels:
            sure += f" It may show: {', '.join(caption.labels)}."
        return {
            **caption.as_json(),
            "sure": sure,
            "alternatives": [as_sentence(other.text) for other in others[:ALTERNATIVES]],
            "attention": self._attention(features, best),
            "error": None,
        }

    def _attention(self, features: Features, best: Candidate) -> dict[str, Any] | None:
        """Return the attention at each word of a caption, None if no model attends.

        Returns:
            `columns`, the width of the grid, and `words`, each with its `text` as the sentence has
            it and its `weights` over the grid, from 0 to 255 for the largest, row by row.
        """
        if not self._captioner.attends:
            return None
        (attention_TR,) = self._captioner.attention(features, [best])
        words: list[dict[str, Any]] = []
        tokens = self._captioner.vocabulary.words_of(best.ids)
        for token, weights_R in zip(tokens, attention_TR, strict=False):
            share_R = weights_R / max(float(weights_R.max()), 1e-12)
            if words and not detokenize(["", "a", token]).endswith(f" {token}"):
                words[-1]["text"] += token  # an ending, such as the "'s" of "dog's"
            else:
                words.append(
                    {"text": token, "weights": np.rint(255 * share_R).astype(int).tolist()}
                )
        if words:
            words[0]["text"] = words[0]["text"][0].upper() + words[0]["text"][1:]
            words[-1]["text"] += "."
        return {"columns": self._captioner.config["features"]["grid"][1], "words": words}


class Match(NamedTuple):
    """A picture that a search found."""

    path: Path
    match: str
    """How well it matches, in words."""


class Search(Protocol):
    """Finds pictures for a sentence."""

    folder: Path
    """What is searched."""
    count: int
    """Number of pictures that are searched."""

    def find(self, sentence: str) -> tuple[list[Match], list[str]]:
        """Return the pictures that match best, the best first, and the unknown words.

        Raises:
            UserError: the sentence has no word to search for.
        """


class WorkSearch:
    """Searches the pictures of a work directory."""

    def __init__(self, searcher: Searcher, folder: Path) -> None:
        self._searcher = searcher
        self.folder = folder
        self.count = len(searcher.images)

    def find(self, sentence: str) -> tuple[list[Match], list[str]]:
        """See `Search.find`."""
        found = self._searcher.find(sentence, RESULTS)
        matches = [Match(one.file, f"score {one.score:.1f}") for one in found]
        return matches, self._searcher.unknown(sentence)


class AlbumSearch:
    """Searches the pictures of a folder."""

    def __init__(self, album: Album, folder: Path) -> None:
        self._album = album
        self.folder = folder
        self.count = len(album)

    def find(self, sentence: str) -> tuple[list[Match], list[str]]:
        """See `Search.find`."""
        found = self._album.search(sentence, RESULTS)
        if not found.results:
            raise UserError(self._album.why_nothing(sentence))
        matches = [
            Match(one.path, f"{one.grade} match" if one.grade else f"score {one.score:.2f}")
            for one in found.results
        ]
        return matches, found.unknown


class Shown:
    """The pictures on this machine that the page may show, by a key that cannot be guessed."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)
        self._paths: dict[str, Path] = {}

    def key(self, path: Path) -> str:
        """Return the key of a picture, under which it may be shown from now on."""
        digest = hashlib.sha256(self._salt + bytes(path)).hexdigest()[:32]
        self._paths[digest] = path
        return digest

    def path(self, key: str) -> Path | None:
        """Return the picture with a key, None if there is none."""
        return self._paths.get(key)
