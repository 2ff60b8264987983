"""The options of the stages `evaluation.score`, `evaluation.report` and `evaluation.retrieve`."""

from dataclasses import dataclass
from pathlib import Path

from features.errors import UserError, unknown_name
from pipeline.captions import SPLITS


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `python -m evaluation.score`."""

    captions: Path | None = None
    """The caption table with the references, WORK/captions.json."""
    results: Path | None = None
    """The captions to score, in COCO results format: [{"image_id": 1, "caption": "a dog"}]."""
    table: tuple[str, ...] = ()
    """Score nothing: print runs (or scores files) side by side, and mark what differs from the
    first. NAME=RUN,RUN,... or NAME='RUN-*' shows runs of several seeds as mean and spread."""
    markdown: bool = False
    """With --table: print it as Markdown, with a row for each run."""
    split: str | None = None
    """The split to score: train, val or test. Default: the one that the results are for; with
    --table, test if a run has scores of it, else val, else train."""
    out: Path | None = None
    """Where to write the scores. Default: beside the results; captions_X.json gives scores_X.json,
    any other name scores_SPLIT.json."""
    spice: bool = False
    """Score SPICE too. It needs a download of 384 MB and Java 8, and says so if one is missing."""
    partial: bool = False
    """Score only the images that have a caption, where some of the split have none. CIDEr then has
    the document frequencies of these images only."""
    bootstrap: int = 1000
    """Resamples of the images for the 95 % intervals; 0 for none."""
    seed: int = 0
    """Seed of the resampling."""
    time_limit: float = 900.0
    """Seconds that each Java program (tokenizer, METEOR, SPICE) may take."""
    force: bool = False
    """Score even if nothing changed since the last time."""

    def __post_init__(self) -> None:
        _check_split(self.split)
        if self.table and (self.captions or self.results or self.out):
            raise UserError("--table reads scores: leave out --captions, --results and --out")
        if not self.table and (self.captions is None or self.results is None):
            raise UserError("expected --captions and --results, or --table")
        if self.markdown and not self.table:
            raise UserError("--markdown needs --table")
        if self.bootstrap < 0:
            raise UserError(f"expected --bootstrap of 0 or more, found {self.bootstrap}")
        if self.seed < 0:
            raise UserError(f"expected --seed of 0 or more, found {self.seed}")
        if not self.time_limit > 0:
            raise UserError(f"expected --time-limit above 0 seconds, found {self.time_limit:g}")


@dataclass(frozen=True)
class ReportOptions:
    """Options of `python -m evaluation.report`."""

    run: Path
    """The run's folder, WORK/runs/NAME."""
    split: str | None = None
    """The split to show. Default: test if the run has captions of it, else val, else train."""
    images: int = 24
    """Pictures in the gallery: a third each of the best, the middling and the worst."""
    out: Path | None = None
    """Where to write the page. Default: report.html in the run's folder."""
    force: bool = False
    """Write the page even if nothing changed since the last time."""

    def __post_init__(self) -> None:
        _check_split(self.split)
        if self.images < 1:
            raise UserError(f"expected --images of 1 or more, found {self.images}")


@dataclass(frozen=True)
class RetrieveOptions:
    """Options of `python -m evaluation.retrieve`."""

    ranking: Path
    """The ranking that decoder.search --split wrote, RUN/ranking_SPLIT.npz."""
    out: Path | None = None
    """Where to write the figures. Default: beside the ranking; ranking_X.npz gives
    retrieval_X.json."""
    bootstrap: int = 1000
    """Resamples of the images for the 95 % intervals; 0 for none."""
    seed: int = 0
    """Seed of the resampling."""

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise UserError(f"expected --bootstrap of 0 or more, found {self.bootstrap}")
        if self.seed < 0:
            raise UserError(f"expected --seed of 0 or more, found {self.seed}")


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
