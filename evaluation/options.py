"""Options of evaluation.score, report and retrieve; the fields' docstrings are their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from features.errors import UserError, unknown_name
from pipeline.captions import SPLITS


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `python -m evaluation.score`."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Score the captions of the test split": (
            "--captions work/captions.json --results work/runs/first/captions_test.json"
        ),
        "Score results on COCO as they are": (
            "--captions annotations/captions_val2014.json --results results.json"
        ),
        "Score captions of a folder, matched by file name": (
            "--captions work/captions.json --results captions.jsonl"
        ),
        "Compare two runs": "--table work/runs/first work/runs/second",
        "Compare two models, each with several seeds": (
            "--table LSTM='work/runs/lstm-*' GRU='work/runs/gru-*'"
        ),
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--captions", "--results", "--out")
    EVERYDAY: ClassVar[tuple[str, ...]] = (
        "captions",
        "results",
        "table",
        "split",
        "markdown",
        "out",
        "spice",
        "partial",
        "force",
    )

    captions: Path | None = None
    """The reference captions: WORK/captions.json, or any COCO captions file."""
    results: Path | None = None
    """The captions to score: a list in COCO results format, by image_id or file_name, or a .csv or
    .jsonl file of decoder.caption --out."""
    table: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN")] = ()
    """Compare the scores of runs or scores files side by side; NAME=RUN,RUN or NAME='RUN-*' is
    one column of several seeds."""
    markdown: bool = False
    """With --table: print Markdown, with a row for each run."""
    split: str | None = None
    """The split of WORK/captions.json to score: train, val or test; by default that of the
    results."""
    out: Path | None = None
    """The scores file to write; by default, beside the results, scores_X.json for captions_X.json
    and scores_NAME_SPLIT.json for NAME.json."""
    spice: bool = False
    """Score SPICE too; needs Java 8 and a download of 384 MB."""
    partial: bool = False
    """Score WORK/captions.json even if images of the split have no caption; any other COCO file is
    scored like this."""
    bootstrap: int = 1000
    """Number of resamples for the 95 % intervals; 0 for no intervals."""
    seed: int = 0
    """Seed of the bootstrap resampling."""
    time_limit: float = 900.0
    """Seconds that each Java program (tokenizer, METEOR, SPICE) may take."""
    force: bool = False
    """Score even if nothing changed."""

    def __post_init__(self) -> None:
        _check_split(self.split)
        if self.table and (self.captions or self.results or self.out):
            raise UserError("--table reads scores: leave out --captions, --results and --out")
        if not self.table and (self.captions is None or self.results is None):
            raise UserError("expected --captions and --results, or --table")
        if self.markdown and not self.table:
            raise UserError("--markdown needs --table")
        if self.bootstrap < 0:
            raise UserError(f"--bootstrap must not be negative, found {self.bootstrap}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, found {self.seed}")
        if not self.time_limit > 0:
            raise UserError(f"--time-limit must be positive, found {self.time_limit:g}")


@dataclass(frozen=True)
class ReportOptions:
    """Options of `python -m evaluation.report`."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Write report.html into the run's folder": "--run work/runs/first",
        "Show the validation split with more pictures": (
            "--run work/runs/first --split val --images 60"
        ),
        "Write the page elsewhere": "--run work/runs/first --out report.html",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--run", "--split", "--out")
    EVERYDAY: ClassVar[tuple[str, ...]] = ("run", "split", "images", "out", "force")

    run: Path
    """The run's folder, WORK/runs/NAME."""
    split: str | None = None
    """The split to show; by default the first of test, val and train that the run has captioned."""
    images: int = 24
    """Number of pictures to show: one third the best, one third average, one third the worst."""
    out: Path | None = None
    """The page to write; by default report.html in the run's folder."""
    force: bool = False
    """Write the page even if nothing changed."""

    def __post_init__(self) -> None:
        _check_split(self.split)
        if self.images < 1:
            raise UserError(f"--images must be at least 1, found {self.images}")


@dataclass(frozen=True)
class RetrieveOptions:
    """Options of `python -m evaluation.retrieve`."""

    EXAMPLES: ClassVar[dict[str, str]] = {
        "Report the recall of a ranked split": "--ranking work/runs/first/ranking_test.npz",
        "Write the figures elsewhere": "--ranking ranking_test.npz --out recall.json",
        "Without intervals": "--ranking ranking_test.npz --bootstrap 0",
    }
    ONCE: ClassVar[tuple[str, ...]] = ("--ranking", "--out")
    EVERYDAY: ClassVar[tuple[str, ...]] = ("ranking", "out", "bootstrap", "seed")

    ranking: Path
    """The ranking, RUN/ranking_SPLIT.npz, that decoder.search --split wrote."""
    out: Path | None = None
    """The file to write; by default retrieval_X.json beside ranking_X.npz."""
    bootstrap: int = 1000
    """Number of resamples for the 95 % intervals; 0 for no intervals."""
    seed: int = 0
    """Seed of the bootstrap resampling."""

    def __post_init__(self) -> None:
        if self.bootstrap < 0:
            raise UserError(f"--bootstrap must not be negative, found {self.bootstrap}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, found {self.seed}")


def _check_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
