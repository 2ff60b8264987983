"""Several runs side by side: their scores, which differences are certain, and how they write."""

import glob
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bootstrap import Floats, interval, resampled
from evaluation.runs import finite
from evaluation.toolkit import LABELS, Scores
from features.commands import SCORE
from features.errors import UserError, first_few
from features.files import read_json
from pipeline.captions import SPLITS

_DIAGNOSTICS: dict[str, tuple[str, Callable[[float], str]]] = {
    "distinct_words": ("distinct words", "{:,.0f}".format),
    "new_captions": ("not in training", "{:.1%}".format),
    "bad_endings": ("bad endings", "{:.1%}".format),
    "repeated_phrases": ("repeated phrase", "{:.1%}".format),
    "mean_length": ("mean length", "{:.1f}".format),
}


@dataclass(frozen=True)
class Scored:
    """A scores file, as `evaluation.score` writes it."""

    path: Path
    split: str
    scores: Scores
    """Its images are sorted, so that those of two runs stand in one order; without tokens' text."""
    references: str
    """Digest of the captions scored against."""
    diagnostics: dict[str, float]


def table(
    texts: Sequence[str],
    split: str | None,
    resamples: int,
    seed: int,
    confidence: float,
    markdown: bool,
) -> str:
    """Return runs as a table, with the differences to the first that are significant marked.

    Each is a run's folder or a scores file, or NAME=RUN,RUN,... for runs that differ in their seed
    only, of which the mean and the spread are shown; * and ? in their paths stand for any letters.

    Args:
        texts: the runs, at least one.
        split: the split whose scores are read from a run's folder; else test, val or train.
        resamples: of the images, the same ones for every run; 0 for no intervals and no marks.
        seed: of the resampling.
        confidence: of the intervals, and of the marks.
        markdown: a row for each run, for a README; else a column, for a terminal.

    Raises:
        UserError: a file is missing or is no scores file, or they are not of the same images.
    """
    groups = _groups(texts, split)
    first = next(iter(groups.values()))[0]
    for of_group in groups.values():
        for one in of_group:
            _check_same(first, one)
    names = [n for n in first.scores.corpus if all(n in s.scores.corpus for s in _all(groups))]
    columns = [["", *(LABELS.get(name, name) for name in names)]]
    columns[0] += [label for label, _ in _DIAGNOSTICS.values()]
    to_beat: dict[str, Floats] = {}
    for group, of_group in groups.items():
        seeds = f" ({len(of_group)} runs)" if len(of_group) > 1 else ""
        column, means = [f"{group}{seeds}"], _means(of_group, names, resamples, seed)
        for name in names:
            text = _value([one.scores.corpus[name] for one in of_group], "{:.3f}".format)
            if name in means and text != "none":
                low, high = interval(means[name], confidence)
                text += f" ({low:.3f}-{high:.3f})"
                if name in to_beat and _apart(means[name] - to_beat[name], confidence):
                    text += " *"
            column.append(text)
        for key, (_, form) in _DIAGNOSTICS.items():
            column.append(_value([one.diagnostics[key] for one in of_group], form))
        columns.append(column)
        to_beat = to_beat or means
    lines = _markdown(columns) if markdown else _plain(columns)
    about = f"{first.split} split, {len(first.scores.tokens):,} images"
    return "\n".join([about, "", *lines, "", *_notes(groups, resamples, confidence)])


def _notes(groups: Mapping[str, list[Scored]], resamples: int, confidence: float) -> list[str]:
    notes = []
    if resamples:
        notes.append(
            f"In brackets: {confidence:.0%} bootstrap intervals over the images "
            f"({resamples:,} resamples)."
        )
    if resamples and len(groups) > 1:
        notes.append(
            f"* differs from {next(iter(groups))}: the {confidence:.0%} interval of the paired "
            "difference leaves out 0. Other seeds are not part of it."
        )
    if any(len(of_group) > 1 for of_group in groups.values()):
        notes.append("±: standard deviation over runs.")
    return notes


def _groups(texts: Sequence[str], split: str | None) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        named = bool(name and equals) and "/" not in name
        paths = [path for part in (listed.split(",") if named else [text]) for path in _paths(part)]
        files = [scores_file(path, split) for path in dict.fromkeys(paths)]
        if named:
            _add(groups, name, files)
        else:
            for path, file in zip(paths, files, strict=True):
                _add(groups, path.resolve().name if path.is_dir() else _name(file), [file])
    return groups


def _add(groups: dict[str, list[Scored]], name: str, files: list[Path]) -> None:
    if name in groups:
        raise UserError(f"two columns are called {name}; give them names: --table NAME=RUN")
    groups[name] = [read(file) for file in files]


def _paths(text: str) -> list[Path]:
    """Return what matches `text`, without the old runs that a new training moved aside."""
    # Not by Path.glob, which takes no absolute pattern.
    found = [Path(path) for path in sorted(glob.glob(text))]  # noqa: PTH207
    return [path for path in found if path.suffix != ".old"] or [Path(text)]


def _name(file: Path) -> str:
    return f"{file.resolve().parent.name}/{file.stem.removeprefix('scores_')}"


def scores_file(path: Path, split: str | None) -> Path:
    """Return the scores file at `path`, or in the run's folder `path`.

    Raises:
        UserError: the run has none of `split`, or of any split if that is None.
    """
    if not path.is_dir():
        return path
    splits = [split] if split else [*reversed(SPLITS)]
    for wanted in splits:
        if (path / f"scores_{wanted}.json").is_file():
            return path / f"scores_{wanted}.json"
    raise UserError(
        f"{path} has no scores of {' or '.join(splits)}; caption the split with python -m "
        f"decoder.caption --run {path} --split {splits[0]}, and score that with {SCORE}"
    )


def read(path: Path) -> Scored:
    """Read a scores file.

    Raises:
        UserError: it is missing, is not a scores file, or is of a version before tables.
    """
    content = read_json(path, SCORE)
    if isinstance(content, dict) and "corpus" in content and "statistics" not in content:
        raise UserError(f"{path} was written by an older version; score anew with {SCORE} --force")
    try:
        per_image = {
            name: dict(sorted((int(image), _number(value)) for image, value in values.items()))
            for name, values in content["per_image"].items()
        }
        images = list(next(iter(per_image.values())))
        rows = {
            name: {int(image): [finite(x) for x in row] for image, row in of_image.items()}
            for name, of_image in content["statistics"].items()
        }
        made = {name: np.array([of_image[i] for i in images]) for name, of_image in rows.items()}
        for name, width in (("Bleu", 10), ("METEOR", 23)):
            if made[name].shape != (len(images), width):
                raise ValueError(f"statistics of {name} {made[name].shape}")
        if any(list(values) != images for values in per_image.values()):
            raise ValueError("scores of different images")
        corpus = {name: _number(content["corpus"][name]) for name in content["corpus"]}
        if missing := corpus.keys() - {*per_image}:
            raise ValueError(f"no scores of single images for {sorted(missing)}")
        return Scored(
            path,
            str(content["split"]),
            Scores(corpus, per_image, made, dict.fromkeys(images, "")),
            str(content["references"]),
            {name: _number(content["diagnostics"][name]) for name in _DIAGNOSTICS},
        )
    except (
        AttributeError,
        KeyError,
        OverflowError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f"{path} is not a scores file ({error!r}); {SCORE} makes it anew"
        ) from error


def _number(value: Any) -> float:
    return float("nan") if value is None else finite(value)


def _check_same(first: Scored, other: Scored) -> None:
    apart = first.scores.tokens.keys() ^ other.scores.tokens.keys()
    if apart:
        raise UserError(
            f"{other.path} ({other.split} split) and {first.path} ({first.split} split) are scores "
            f"of different images: {len(apart)} are in one of them only: "
            f"{first_few(sorted(apart))}; score the same images (see --split)"
        )
    if first.references != other.references:
        raise UserError(
            f"{other.path} and {first.path} were scored against different reference captions; "
            f"score both with the same captions.json ({SCORE} --captions FILE)"
        )


def _all(groups: Mapping[str, list[Scored]]) -> list[Scored]:
    return [one for of_group in groups.values() for one in of_group]


def _means(
    of_group: Sequence[Scored], names: Sequence[str], resamples: int, seed: int
) -> dict[str, Floats]:
    """Return the mean over runs of each score [R] of every resample; nothing for 0 resamples."""
    if resamples == 0:
        return {}
    found = [resampled(one.scores, resamples, seed) for one in of_group]
    return {name: np.mean([values[name] for values in found], axis=0) for name in names}


def _apart(differences: Floats, confidence: float) -> bool:
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
