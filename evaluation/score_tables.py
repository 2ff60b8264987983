"""The tables of scores in a report: every score with its meaning, and the scores of each source."""

import math
from collections.abc import Mapping
from typing import Any

from evaluation.baselines import Baseline
from evaluation.runs import Run
from evaluation.scores import Scores
from evaluation.toolkit import LABELS

# One sentence on each score.
MEANINGS = {
    "Bleu_1": "Share of the caption’s words that a reference has too.",
    "Bleu_2": "The same, with pairs of consecutive words as well.",
    "Bleu_3": "The same, with up to three consecutive words.",
    "Bleu_4": "Agreement in up to four consecutive words; short captions lose points.",
    "METEOR": "Matched words, with word forms and synonyms; scattered matches lose points.",
    "ROUGE_L": "Longest sequence of words shared with a reference, gaps allowed.",
    "CIDEr": "Agreement with all references, where words that are rare in them count most.",
    "SPICE": "Agreement in the objects, attributes and relations that the sentences mention.",
}


def score_rows(run: Run, baselines: Mapping[str, Baseline]) -> list[dict[str, Any]]:
    """Return a row for each score. `scale` is the value at the end of its bar."""
    if run.scores is None:
        return []
    before = existing(run.scores_xe)
    reranked = existing(run.scores_reranked)
    rows = []
    for name, value in existing(run.scores).items():
        low, high = run.scores.intervals.get(name, (value, value))
        others = {key: baseline.scores.get(name) for key, baseline in baselines.items()}
        largest = max(x for x in (high, *others.values()) if x is not None)
        rows.append(
            {
                "name": LABELS.get(name, name),
                "meaning": MEANINGS.get(name, ""),
                "value": value,
                "low": low,
                "high": high,
                "scale": max(1.0, math.ceil(largest * 2) / 2),
                "before": before.get(name),
                "reranked": reranked.get(name),
                "nearest": others.get("nearest"),
                "people": others.get("people"),
            }
        )
    # The most telling score first.
    return sorted(rows, key=lambda row: row["name"] != "CIDEr")


def existing(scores: Scores | None) -> dict[str, float]:
    """Return the corpus scores that exist; a single image has no CIDEr."""
    if scores is None:
        return {}
    return {name: value for name, value in scores.corpus.items() if not math.isnan(value)}


def source_rows(run: Run) -> list[dict[str, Any]]:
    """Return the scores of each data set among the images; none if there is only one."""
    if run.scores is None:
        return []
    by_source: dict[str, list[int]] = {}
    for image in run.table.split(run.split):
        if image.id in run.captions:
            by_source.setdefault(image.source or run.table.dataset, []).append(image.id)
    if len(by_source) < 2:
        return []
    return [
        {"name": name, "images": len(ids), "scores": run.scores.of_images(ids)}
        for name, ids in sorted(by_source.items())
    ]
