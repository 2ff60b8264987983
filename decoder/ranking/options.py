"""Options of decoder.search; the docstrings of the fields are their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from features.errors import require


@dataclass(frozen=True)
class SearchOptions:
    """Find pictures by a sentence, or captions by a picture."""

    sentence: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to look for, such as "a dog in the snow"; the pictures that fit it best are printed:
    path, tab, score."""
    run: Path | None = None
    """A run's folder, WORK/runs/NAME, or what decoder.export made of one; without it the captioner
    that comes with this package."""
    work: Path | None = None
    """The work directory to be searched; by default that of the run."""
    image: Path | None = None
    """Print the captions of the work directory that fit this picture best instead."""
    split: str | None = None
    """Search this split only. Without a sentence or --image, rank all of it, the images for each
    caption and the captions for each image, into RUN/ranking_SPLIT.npz, for evaluation.retrieve."""
    top: int = 10
    """How many are printed."""
    weights: Literal["best", "best_xe"] | None = None
    """By default best_xe, where the run has it: REINFORCE teaches to write well, and costs some of
    the sense for what others write."""
    out: Path | None = None
    """Write the ranking of a split here instead."""
    json: bool = False
    """Print a JSON object a line."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    force: bool = False
    """Rank the split again although nothing changed."""

    def __post_init__(self) -> None:
        require(
            bool(self.sentence) + (self.image is not None) < 2,
            "a sentence finds pictures, --image finds captions; choose one",
        )
        require(
            bool(self.sentence) or self.image is not None or self.split is not None,
            'expected a sentence to search for ("a dog in the snow"), or --image, or --split',
        )
        ranks = not self.sentence and self.image is None
        require(ranks or self.out is None, "--out is for the ranking of a --split")
        require(self.top > 0, f"--top must be positive, found {self.top}")
