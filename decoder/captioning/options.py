"""Options of decoder.caption and decoder.demo; the fields' docstrings are their help texts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from decoder.generation.options import GenerateOptions
from features.errors import require


@dataclass(frozen=True)
class CaptionOptions:
    """Write captions for a split of a work directory, or for pictures of your own."""

    run: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """A run's folder, WORK/runs/NAME, or what decoder.export made of one; without it the captioner
    that comes with this package. Several, each with --run, write together: the mean of their word
    probabilities decides."""
    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures, and folders that are searched for pictures with all below them; a line is printed
    for each: path, tab, caption, and if the caption is unsure, tab, unsure."""
    split: str | None = None
    """Caption this split of the run's work directory instead, into RUN/captions_SPLIT.json."""
    alt: Path | None = None
    """Write a copy of this HTML page (page.alt.html, or --out) whose <img> without alt get one,
    marked by data-alt-generated. Pictures are looked for below the page's folder, or --site."""
    site: Path | None = None
    """With --alt: the folder of the web site, which "/" stands for in the page."""
    weights: Literal["best", "best_xe", "both"] = "best"
    """The weights with the best validation CIDEr of all, or of the cross-entropy phase; or both
    together, as if they were two runs."""
    out: Path | None = None
    """Write the captions here: of pictures to a .csv or .jsonl file, to which only the pictures are
    added that it has not yet, so that an interrupted run goes on; of --split as COCO results; of
    --alt the page."""
    sidecar: Literal["txt", "xmp"] | None = None
    """Write each caption beside its picture, as PICTURE.txt or as the description in PICTURE.xmp.
    Sidecars that are there already are left alone, but for an XMP file of ours that is older than
    its picture."""
    unsure: float = 0.4
    """Captions less probable than this to be good are marked as unsure. Good means a CIDEr of 0.3
    or more, learnt from validation captions: only captioners that decoder.export made know it."""
    generate: tyro.conf.OmitArgPrefixes[GenerateOptions] = field(default_factory=GenerateOptions)
    attention: int = 64
    """With --split: save where each word looked for this many of the first images."""
    json: bool = False
    """Print a JSON object a line instead of path, tab, caption."""
    batch_size: int = 50
    """Images captioned at once."""
    seed: int = 1
    """With --sample: fixes what is drawn."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""
    force: bool = False
    """Caption again although nothing changed; with --out, --alt and --sidecar, replace files that
    are there, whoever made them."""

    def __post_init__(self) -> None:
        given = sum((self.split is not None, self.alt is not None, bool(self.pictures)))
        require(
            given == 1,
            "expected the paths of pictures, or --split NAME, or --alt PAGE, found "
            + ("none of them" if given == 0 else "more than one of them"),
        )
        if self.pictures and self.out is not None:
            require(
                self.out.suffix.lower() in (".csv", ".jsonl"),
                f"--out must end in .csv or .jsonl, found {self.out}",
            )
        require(
            self.split is None or len(self.run) > 0,
            "--split needs --run: the folder WORK/runs/NAME of a trained run",
        )
        require(self.pictures != () or self.sidecar is None, "--sidecar needs pictures")
        require(
            self.sidecar is None or self.out is None,
            "expected --sidecar or --out, found both; choose one",
        )
        require(self.alt is not None or self.site is None, "--site needs --alt")
        require(0 <= self.unsure <= 1, "--unsure must be from 0 to 1")
        require(
            self.split is None or len(self.run) == 1 or self.out is not None,
            "captions by several runs belong to none of their folders: name their file with --out",
        )
        require(self.seed >= 0, "--seed must not be negative")
        require(self.batch_size > 0, "--batch-size must be positive")
        require(self.attention >= 0, "--attention must not be negative")


@dataclass(frozen=True)
class DemoOptions:
    """A page in the browser that captions pictures, and searches those of a work directory."""

    run: Path | None = None
    """A run's folder, WORK/runs/NAME, or what decoder.export made of one; without it the captioner
    that comes with this package."""
    work: Path | None = None
    """Add a tab that searches this work directory."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can reach the default. 0.0.0.0 lets the whole network
    in."""
    port: int = 7860
    """0 takes any that is free."""
    max_upload: int = 20
    """Largest picture that is taken, in megabytes."""
    unsure: float = 0.4
    """Captions less probable than this to be good are marked as unsure."""
    device: str = "auto"
    """cpu, cuda, ...; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 2**16, f"--port must be from 0 to 65535, found {self.port}")
        require(self.max_upload > 0, f"--max-upload must be positive, found {self.max_upload}")
        require(0 <= self.unsure <= 1, "--unsure must be from 0 to 1")
