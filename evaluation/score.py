"""Score captions with the official COCO toolkit: `python -m evaluation.score`."""

import hashlib
import json
import math
import sys
from collections.abc import Iterable, Sequence

from evaluation import spice
from evaluation.bootstrap import intervals
from evaluation.by_source import scores_by_source
from evaluation.diagnostics import diagnose, share_of_new
from evaluation.options import ScoreOptions
from evaluation.outputs import check_out, scores_path
from evaluation.references import choose
from evaluation.results import read_results
from evaluation.scores import Scores
from evaluation.scores import load as load_scores
from evaluation.table import compare
from evaluation.toolkit import METRICS, Captions, score_tokens, tokenize_together, versions
from evaluation.validation import tokenize_without_java
from features.files import write_json
from pipeline.command import run
from pipeline.up_to_date import Stamp

_CONFIDENCE = 0.95


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(score_captions, ScoreOptions, "evaluation.score", argv)


def score_captions(options: ScoreOptions) -> None:
    """Score the captions of a split with the COCO toolkit, with confidence intervals."""
    if options.captions is None or options.results is None:
        bootstrap = (options.bootstrap, options.seed, _CONFIDENCE)
        print(compare(options.table, options.split, *bootstrap, options.markdown))
        return
    if options.spice:
        spice.check_available()
    inputs = {"results": options.results, "captions": options.captions}
    found = read_results(options.results)
    chosen = choose(options.captions, found, options.split, options.partial)
    references, results = chosen.captions, chosen.results
    out = options.out or scores_path(options.results, chosen.name)
    check_out(out, inputs, options.out is not None, "per_image")
    # The name begins so in any case: --out train.json must not replace the record of a training.
    stage = out.stem if out.stem.startswith("scores") else f"scores_{out.stem}"
    stamp = Stamp(out.parent, stage, options, [options.captions, options.results])
    if not options.force and stamp.holds():
        print("score: unchanged, skipped")
        print(_as_table(load_scores(out)))
        return
    metrics = (*METRICS, "SPICE") if options.spice else METRICS
    captions = {image: [text] for image, text in results.items()}
    written, tokens = tokenize_together([captions, references], options.time_limit)
    candidates = {image: texts[0] for image, texts in written.items()}
    scores = score_tokens(tokens, candidates, metrics, options.time_limit)
    bounds = intervals(
        scores.per_image, scores.statistics, options.bootstrap, options.seed, _CONFIDENCE
    )
    record = {
        "split": chosen.name,
        "captions": str(options.captions),
        "results": str(options.results),
        "images": len(references),
        "references": _digest(references),
        "left_out": chosen.images - len(references),
        "corpus": {name: _or_null(value) for name, value in scores.corpus.items()},
        "intervals": {name: [_or_null(x) for x in pair] for name, pair in bounds.items()},
        "confidence": _CONFIDENCE,
        "bootstrap": {"resamples": options.bootstrap, "seed": options.seed},
        "diagnostics": {
            **diagnose(scores.tokens.values()),
            "new_captions": _share_of_new(results, chosen.training),
        },
        "toolkit": versions(),
        "per_image": {
            name: {str(image): _or_null(value) for image, value in values.items()}
            for name, values in scores.per_image.items()
        },
        "statistics": {
            name: {str(i): row for i, row in zip(scores.tokens, rows.tolist(), strict=True)}
            for name, rows in scores.statistics.items()
        },
    }
    if len(set(chosen.sources.values())) > 1:
        draws = (options.bootstrap, options.seed, _CONFIDENCE)
        record["sources"] = scores_by_source(scores, tokens, chosen.sources, *draws)
    write_json(out, record)
    stamp.write([out])
    print(_as_table(load_scores(out)))
    print(f"written to {out}")


def _digest(references: Captions) -> str:
    """Return a hash of the references: only scores against the same ones can be compared."""
    return hashlib.sha256(json.dumps(sorted(references.items())).encode()).hexdigest()


def _share_of_new(results: dict[int, str], training: Iterable[str]) -> float | None:
    """Return the share of captions that differ from all training captions, ignoring case."""
    known = (tokenize_without_java({0: [text]})[0][0] for text in training)
    written = tokenize_without_java({image: [text] for image, text in results.items()})
    return share_of_new(known, (texts[0] for texts in written.values()))


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def _as_table(scores: Scores) -> str:
    every = f" of {len(scores.images) + scores.left_out:,}" if scores.left_out else ""
    lines = [
        f"{scores.split} split, {len(scores.images):,}{every} images",
        f"{'':8}  score   {scores.confidence:.0%} interval",
    ]
    for name, value in scores.corpus.items():
        if math.isnan(value):
            lines.append(f"{name:8}  none; it needs more than one image to weigh words by")
            continue
        interval = ""
        if name in scores.intervals:
            low, high = scores.intervals[name]
            interval = f"   {low:.3f} to {high:.3f}"
        lines.append(f"{name:8}  {value:.3f}{interval}")
    for source, record in scores.sources.items():
        values = (
            f"{name} {value:.3f}" for name, value in record["corpus"].items() if value is not None
        )
        lines.append(f"{source}, {record['images']:,} images: {', '.join(values)}")
    figures = scores.diagnostics
    lines.append(
        f"bad endings {figures['bad_endings']:.1%}, repeated phrase "
        f"{figures['repeated_phrases']:.1%}, distinct captions {figures['distinct_captions']:.1%}, "
        f"distinct words {figures['distinct_words']}, mean length {figures['mean_length']:.1f}"
    )
    if "new_captions" in figures:
        lines[-1] += f", not in training {figures['new_captions']:.1%}"
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
