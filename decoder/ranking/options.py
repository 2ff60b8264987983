"""Options of decoder.search; the docstrings of the fields are their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from features.errors import require


@dataclass(frozen=True)
class SearchOptions:
    """Find pictures by a sentence, or captions by a picture."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Find pictures in a folder": '--folder ~/Pictures "a dog in the snow"',
        "See them in the browser": '--folder ~/Pictures "a dog in the snow" --html found.html',
        "Find pictures by a sentence": '--run work/runs/first "a dog in the snow"',
        "Find captions for a picture": "--run work/runs/first --image photo.jpg",
        "Rank the test split for evaluation.retrieve": "--run work/runs/first --split test",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--folder", "--run", "--work", "--html", "--image", "--out")
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "sentence",
        "folder",
        "html",
        "work",
        "run",
        "image",
        "split",
        "top",
        "json",
        "device",
    )

    sentence: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to look for; prints the pictures that fit best, with a score or, of a --folder, a
    grade."""
    folder: Path | None = None
    """Search the pictures in this folder and below it, which need no captions; the first search
    indexes them into your cache folder, which takes minutes for thousands."""
    html: Path | None = None
    """With --folder: also write the results as a web page with small pictures to this file."""
    run: Path | None = None
    """The folder of a run, WORK/runs/NAME, or of an exported captioner; without it, the
    included captioner."""
    work: Path | None = None
    """The work directory to search; by default that of the run."""
    image: Path | None = None
    """Print the captions that fit this picture best."""
    split: str | None = None
    """Search this split only; without a sentence or --image, rank all its images and captions
    for evaluation.retrieve."""
    top: int = 10
    """Number of results."""
    # REINFORCE improves captions, but the weights before it rank captions written by people better.
    weights: Literal["best", "best_xe"] | None = None
    """The best weights of all, or those before REINFORCE. (default: best_xe if the run has it)"""
    out: Path | None = None
    """Write the ranking of a split to this file instead of RUN/ranking_SPLIT.npz."""
    json: bool = False
    """Print a JSON object for each result."""
    device: str = "auto"
    """cpu or cuda; auto uses a GPU if there is one."""
    force: bool = False
    """Rank the split again although nothing changed, or replace the file of --html whoever
    made it."""

    def __post_init__(self) -> None:
        if self.folder is not None:
            require(
                bool(self.sentence),
                'expected what to look for in the --folder, such as "a dog in the snow"',
            )
            names = ("work", "image", "split", "weights", "out")
            others = [name for name in names if getattr(self, name) is not None]
            require(
                not others,
                f"--folder searches pictures without a work directory; leave out "
                f"{', '.join(f'--{name}' for name in others)}",
            )
        require(self.html is None or self.folder is not None, "--html needs --folder")
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
