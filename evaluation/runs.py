"""The files of a run and of its captions, read and checked for the report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import npz, results, scores
from evaluation.recorded_commands import recorded_commands
from evaluation.references import captions_of
from evaluation.scores import Scores
from features.commands import CAPTION, EXTRACT, TRAIN
from features.errors import UserError
from features.files import read_json, reading
from pipeline.caption_database import load as load_table
from pipeline.captions import SPLITS, CaptionTable
from pipeline.up_to_date import changed_inputs
from pipeline.work import RunFolder

# Suffixes of the captions that a report compares. "_reranked" is from the last stage of run_all.sh.
_FINAL, _BEFORE_REINFORCE, _RERANKED = "", "_xe", "_reranked"
_ATTENTION = ("image_id", "words", "weights")


@dataclass(frozen=True)
class Attention:
    """Where a decoder looked as it wrote each word of one caption."""

    words: list[str]
    """The T words of the caption, without special tokens."""
    weights: NDArray[np.float32]
    """[T, grid height, grid width], finite."""


@dataclass(frozen=True)
class Run:
    """A run as far as it has come. A field whose file does not exist is empty or None."""

    name: str
    split: str
    table: CaptionTable
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    captions: dict[int, str]
    """By image id, as are the next three."""
    captions_xe: dict[int, str]
    """From before REINFORCE."""
    captions_reranked: dict[int, str]
    attention: dict[int, Attention]
    scores: Scores | None
    scores_xe: Scores | None
    scores_reranked: Scores | None
    extraction: dict[str, Any]
    """The figures in extract.json of the work directory."""
    commands: list[str]
    """The commands that repeat the run."""


def inputs(run: RunFolder, split: str) -> list[Path]:
    """Return the files that `load` reads. Some of them may not exist."""
    ways = (_FINAL, _BEFORE_REINFORCE, _RERANKED)
    return [
        run.work.captions,
        run.work.extraction,
        run.config,
        run.metrics,
        run.attention(split),
        *(run.captions(split, way) for way in ways),
        *(run.scores(split, way) for way in ways),
        # They tell whether the scores are those of the captions.
        *(run.path / ".done" / f"{run.scores(split, way).stem}.json" for way in ways),
    ]


def captioned_split(run: RunFolder) -> str:
    """Return the split that the run has captions for: test if possible, then val, then train.

    Raises:
        UserError: the run does not exist or has no captions yet.
    """
    if not run.config.is_file():
        raise UserError(
            f"{run.path} is not a run: {run.config.name} is missing; train one with {TRAIN}"
        )
    for split in reversed(SPLITS):
        if run.captions(split).is_file():
            return split
    raise UserError(
        f"{run.path} has no captions yet; write them with {CAPTION} --run {run.path} --split val"
    )


def load(run: RunFolder, split: str) -> Run:
    """Read a run and its captions of `split`.

    Raises:
        UserError: a required file is missing, or the content of a file is wrong.
    """
    table = load_table(run.work.captions)
    config = _load_config(run.config)
    written = results.read(run.captions(split))
    references = captions_of(table.split(split))
    results.match(written, references, f"the split {split}", run.captions(split), partial=True)
    return Run(
        name=run.path.resolve().name,
        split=split,
        table=table,
        config=config,
        epochs=_load_epochs(run.metrics),
        captions=written,
        captions_xe=_load_captions(run.captions(split, _BEFORE_REINFORCE)),
        captions_reranked=_load_captions(run.captions(split, _RERANKED)),
        attention=_load_attention(run.attention(split)),
        scores=_load_scores(run.scores(split, _FINAL)),
        scores_xe=_load_scores(run.scores(split, _BEFORE_REINFORCE)),
        scores_reranked=_load_scores(run.scores(split, _RERANKED)),
        extraction=_load_extraction(run.work.extraction),
        commands=recorded_commands(run, split, config["options"]),
    )


def _load_config(path: Path) -> dict[str, Any]:
    content = read_json(path, TRAIN)
    for key in ("options", "features"):
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            raise UserError(
                f"{path}: expected an object with the object {key!r}, as {TRAIN} writes it; "
                "restore the file or train again"
            )
    return content


def _load_extraction(path: Path) -> dict[str, Any]:
    content = read_json(path, EXTRACT) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def _load_captions(path: Path) -> dict[int, str]:
    return results.read(path) if path.exists() else {}


def _load_scores(path: Path) -> Scores | None:
    """Return the scores in a file, if they are of the captions that are there now."""
    if not path.exists():
        return None
    if changed := changed_inputs(path.parent, path.stem):
        print(f"report: left out {path}, because {changed[0]} changed since; score it again")
        return None
    return scores.load(path)


def _load_epochs(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    epochs = []
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            epoch = json.loads(line)
            known = epoch["phase"] in ("xe", "rl") and isinstance(epoch["val"], dict)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}, line {number}: expected an epoch as {TRAIN} records it ({error!r}); "
                "delete the line to leave this epoch out"
            ) from error
        if not known:
            raise UserError(
                f"{path}, line {number}: expected the phase xe or rl and validation scores, found "
                f"{line[:200]}; delete the line to leave this epoch out"
            )
        epochs.append(epoch)
    return epochs


def _load_attention(path: Path) -> dict[int, Attention]:
    if not path.exists():
        return {}
    remedy = f"write it again with {CAPTION} --attention N"
    try:
        images, words, weights = npz.read(path, _ATTENTION)
    except ValueError as error:
        raise UserError(f"{path} is not an attention file ({error}); {remedy}") from error
    if (
        weights.ndim != 4
        or words.shape != weights.shape[:2]
        or images.shape != words.shape[:1]
        or (images.dtype.kind, words.dtype.kind, weights.dtype.kind) != ("i", "U", "f")
        or not np.isfinite(weights).all()
    ):
        raise UserError(
            f"{path}: expected image_id [n], words [n, T], finite weights "
            f"[n, T, height, width]; found {images.dtype} {images.shape}, {words.dtype} "
            f"{words.shape} and {weights.dtype} {weights.shape}; {remedy}"
        )
    try:
        rows = words.tolist()
    except (SystemError, ValueError) as error:
        raise UserError(
            f"{path}: expected words, found what is no text ({error}); {remedy}"
        ) from error
    attention = {}
    for image, row, maps in zip(images, rows, weights, strict=True):
        kept = [t for t, word in enumerate(row) if word and not word.startswith("<")]
        attention[int(image)] = Attention([row[t] for t in kept], maps[kept])
    return attention
