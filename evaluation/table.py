"""Runs side by side: their scores, which differences are significant, and their captions."""

import glob
import statistics
from collections.abc import Callable, Mapping, Sequence
from math import nan
from pathlib import Path

import numpy as np

from evaluation.bootstrap import Floats, interval, resampled
from evaluation.scores import Scores, load
from evaluation.toolkit import LABELS
from features.commands import CAPTION, SCORE
from features.errors import UserError, first_few
from pipeline.captions import SPLITS
from pipeline.work import RunFolder

_DIAGNOSTICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "distinct_words": ("distinct words", "{:,.0f}".format),
    "new_captions": ("not in training", "{:.1%}".format),
    "bad_endings": ("bad endings", "{:.1%}".format),
    "repeated_phrases": ("repeated phrase", "{:.1%}".format),
    "mean_length": ("mean length", "{:.1f}".format),
}


def compare(
    runs: Sequence[str],
    split: str | None,
    resamples: int,
    seed: int,
    confidence: float,
    markdown: bool,
) -> str:
    """Return a table of runs in which significant differences from the first one are marked.

    Args:
        runs: one or more folders of runs or scores files, with wildcards, or NAME=RUN,RUN,... for
            runs that differ only in their seed. These are shown as mean and standard deviation.
        split: the split whose scores are read from a run's folder. None stands for the first of
            test, val and train that was scored.
        resamples: of the images, the same for every run; 0 for no intervals and no marks.
        seed: of the resampling.
        confidence: of the intervals and of the marks.
        markdown: return Markdown with a row for each run, not plain text with a column for each.

    Raises:
        UserError: a file is missing or is not a scores file, or the files do not have the same
            images and reference captions.
    """
    groups = _groups(runs, split)
    every = [scores for group in groups.values() for scores in group]
    first = every[0]
    for other in every:
        _check_comparable(first, other)
    names = [name for name in first.corpus if all(name in scores.corpus for scores in every)]
    columns = [["", *(LABELS.get(name, name) for name in names)]]
    columns[0] += [label for label, _ in _DIAGNOSTICS.values()]
    baseline: dict[str, Floats] = {}
    for title, group in groups.items():
        seeds = f" ({len(group)} runs)" if len(group) > 1 else ""
        column, means = [f"{title}{seeds}"], _means(group, names, resamples, seed)
        for name in names:
            text = _value([scores.corpus[name] for scores in group], "{:.3f}".format)
            if name in means and text != "none":
                low, high = interval(means[name], confidence)
                text += f" ({low:.3f}-{high:.3f})"
                if name in baseline and _differs(means[name] - baseline[name], confidence):
                    text += " *"
            column.append(text)
        for key, (_, form) in _DIAGNOSTICS.items():
            column.append(_value([scores.diagnostics.get(key, nan) for scores in group], form))
        columns.append(column)
        baseline = baseline or means
    lines = _markdown(columns) if markdown else _plain(columns)
    heading = f"{first.split} split, {len(first.images):,} images"
    return "\n".join([heading, "", *lines, "", *_notes(groups, resamples, confidence)])


def _notes(groups: Mapping[str, list[Scores]], resamples: int, confidence: float) -> list[str]:
    notes = []
    if resamples:
        notes.append(
            f"In brackets: {confidence:.0%} bootstrap intervals over the images "
            f"({resamples:,} resamples)."
        )
    if resamples and len(groups) > 1:
        notes.append(
            f"* differs from {next(iter(groups))}: the {confidence:.0%} interval of the paired "
            "difference excludes 0. It does not cover other seeds."
        )
    if any(len(group) > 1 for group in groups.values()):
        notes.append("±: standard deviation over the runs.")
    return notes


def _groups(runs: Sequence[str], split: str | None) -> dict[str, list[Scores]]:
    groups: dict[str, list[Scores]] = {}
    for text in runs:
        name, equals, listed = text.partition("=")
        named = bool(name and equals) and "/" not in name
        paths = [path for part in (listed.split(",") if named else [text]) for path in _paths(part)]
        files = [_scores_file(path, split) for path in dict.fromkeys(paths)]
        if named:
            _add(groups, name, files)
        else:
            for path, file in zip(paths, files, strict=True):
                _add(groups, path.resolve().name if path.is_dir() else _name(file), [file])
    return groups


def _add(groups: dict[str, list[Scores]], name: str, files: list[Path]) -> None:
    if name in groups:
        raise UserError(f"two columns are called {name}; choose other names with --table NAME=RUN")
    groups[name] = [_load(file) for file in files]


def _paths(text: str) -> list[Path]:
    """Return the paths that match `text`, without old runs that a new training moved aside."""
    # Path.glob would not accept an absolute pattern.
    paths = [Path(path) for path in sorted(glob.glob(text))]  # noqa: PTH207
    return [path for path in paths if path.suffix != ".old"] or [Path(text)]


def _name(file: Path) -> str:
    return f"{file.resolve().parent.name}/{file.stem.removeprefix('scores_')}"


def _scores_file(path: Path, split: str | None) -> Path:
    """Return `path`, or the scores file in the folder of a run.

    Raises:
        UserError: the run has no scores of `split`, or of any split if that is None.
    """
    if not path.is_dir():
        return path
    splits = [split] if split else [*reversed(SPLITS)]
    for wanted in splits:
        if (file := RunFolder(path).scores(wanted)).is_file():
            return file
    raise UserError(
        f"{path} has no scores of {' or '.join(splits)}; caption it with "
        f"{CAPTION} --run {path} --split {splits[0]}, then score it with {SCORE}"
    )


def _load(path: Path) -> Scores:
    """Read a scores file that can be resampled, which those of version 0.1 cannot."""
    scores = load(path)
    if not scores.statistics or scores.references is None:
        raise UserError(f"{path} was written by an older version; score again with {SCORE} --force")
    return scores


def _check_comparable(first: Scores, other: Scores) -> None:
    different = set(first.images) ^ set(other.images)
    if different:
        raise UserError(
            f"{other.path} ({other.split} split) and {first.path} ({first.split} split) are scores "
            f"of different images: {len(different)} are in only one of them: "
            f"{first_few(sorted(different))}; score the same images (see --split)"
        )
    if first.references != other.references:
        raise UserError(
            f"{other.path} and {first.path} were scored against different reference captions; "
            f"score both with the same captions.json ({SCORE} --captions FILE)"
        )


def _means(
    group: Sequence[Scores], names: Sequence[str], resamples: int, seed: int
) -> dict[str, Floats]:
    """Return the mean over runs of each score [R] of the R resamples; nothing for 0 resamples."""
    if resamples == 0:
        return {}
    of_run = [resampled(run.per_image, run.statistics, resamples, seed) for run in group]
    return {name: np.mean([values[name] for values in of_run], axis=0) for name in names}


def _differs(differences: Floats, confidence: float) -> bool:
    low, high = interval(differences, confidence)
    return low > 0 or high < 0


def _value(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not np.isfinite(values).all():
        return "none"
    text = form(statistics.fmean(values))
    return f"{text} ± {form(statistics.stdev(values))}" if len(values) > 1 else text


def _plain(columns: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in columns]
    rows = zip(*columns, strict=True)
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _markdown(columns: Sequence[Sequence[str]]) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", "\\|").replace(" *", r" \*") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    head, *rows = columns
    rule = f"|{'---|' * len(head)}"
    return [row(["run", *head[1:]]), rule, *map(row, rows)]
