"""Write the report of a run as one self-contained HTML file: `python -m evaluation.report`."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import Any, TypeGuard

from evaluation import runs
from evaluation.charts import Chart, chart
from evaluation.gallery import best_middle_worst, evenly_spaced, picture, shade
from evaluation.options import ReportOptions
from evaluation.runs import Run
from evaluation.scores import Scores
from evaluation.toolkit import LABELS
from features.files import write_atomically
from pipeline.captions import Image
from pipeline.command import run
from pipeline.up_to_date import Stamp
from pipeline.work import RunFolder

_MODELS = {"show_tell": "Show and Tell", "att2in": "Att2in", "updown": "Up-Down"}
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_PICTURE, _THUMBNAIL = 420, 160  # pixels


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run(write_report, ReportOptions, "evaluation.report", argv)


def write_report(options: ReportOptions) -> None:
    """Write an HTML page with a run's scores, training curves, captions and attention."""
    folder = RunFolder(options.run.resolve())
    split = options.split or runs.captioned_split(folder)
    out = options.out or folder.report
    stamp = Stamp(folder.path, "report", options, runs.inputs(folder, split))
    if not options.force and stamp.holds():
        print(f"report: unchanged, skipped: {out}")
        return
    write_atomically(out, render(runs.load(folder, split), options.images))
    stamp.write([out])
    print(f"report: {out}")


def render(run: Run, images: int) -> str:
    """Return the page as HTML, with `images` pictures in its gallery.

    Raises:
        UserError: a picture cannot be read.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("evaluation").joinpath("report.html").read_text(encoding="utf-8")
    by_id = {image.id: image for image in run.table.split(run.split)}
    ciders = run.scores.cider if run.scores else {}
    shown = [image for image in by_id if image in run.captions]
    ranked = sorted(shown, key=lambda image: -ciders.get(image, -math.inf))
    card = partial(_card, run, ciders)
    options = _flat(run.config["options"])
    if ciders:
        titles = ("The best", "The middle", "The worst")
        groups = list(zip(titles, best_middle_worst(ranked, images), strict=True))
    else:
        groups = [("", evenly_spaced(shown, images))]
    with_attention = [image for image in ranked if image in run.attention]
    return environment.from_string(template).render(
        run=run,
        model=_MODELS.get(_option(options, "model"), "Decoder"),
        cell=_option(options, "cell").upper() or "recurrent",
        dataset=run.table.dataset,
        backbone=run.config["features"].get("backbone", "unknown"),
        split=_SPLITS[run.split],
        images=len(shown),
        scores=_score_rows(run),
        charts=_charts(run),
        groups=[(title, [card(by_id[i]) for i in ids]) for title, ids in groups if ids],
        attention=[
            {
                **card(by_id[i]),
                "thumbnail": picture(run.table.path(by_id[i]), _THUMBNAIL),
                "words": [
                    (word, shade(weights))
                    for word, weights in zip(
                        run.attention[i].words, run.attention[i].weights, strict=True
                    )
                ],
            }
            for i in evenly_spaced(with_attention, max(1, images // 4))
        ],
        setup=_setup(run, options),
        seconds=sum(epoch["seconds"] for epoch in run.epochs if _is_number(epoch.get("seconds"))),
    )


def _card(run: Run, ciders: dict[int, float], image: Image) -> dict[str, Any]:
    return {
        "picture": picture(run.table.path(image), _PICTURE),
        "file_name": image.file_name,
        "caption": run.captions[image.id],
        "before": run.captions_xe.get(image.id),
        "reranked": run.captions_reranked.get(image.id),
        "references": [caption.text for caption in image.captions],
        "cider": ciders.get(image.id),
    }


def _score_rows(run: Run) -> list[dict[str, Any]]:
    """Return a row for each score. `scale` is the value at the end of its bar."""
    if run.scores is None:
        return []
    before = _existing(run.scores_xe)
    reranked = _existing(run.scores_reranked)
    rows = []
    for name, value in _existing(run.scores).items():
        low, high = run.scores.intervals.get(name, (value, value))
        rows.append(
            {
                "name": LABELS.get(name, name),
                "value": value,
                "low": low,
                "high": high,
                "scale": max(1.0, math.ceil(high * 2) / 2),
                "before": before.get(name),
                "reranked": reranked.get(name),
            }
        )
    return rows


def _existing(scores: Scores | None) -> dict[str, float]:
    """Return the corpus scores that exist; a single image has no CIDEr."""
    if scores is None:
        return {}
    return {name: value for name, value in scores.corpus.items() if not math.isnan(value)}


def _charts(run: Run) -> list[Chart]:
    """Return the curves of loss, reward and validation scores that the run has.

    The epochs of REINFORCE continue the numbering of those of cross-entropy.
    """
    numbered = list(enumerate(run.epochs, 1))
    start = next((number for number, epoch in numbered if epoch["phase"] == "rl"), None)

    def curve(name: str, phase: str | None = None) -> list[tuple[int, float]]:
        values = [(n, epoch if phase else epoch["val"]) for n, epoch in numbered]
        wanted = [(n, of.get(name)) for n, of in values if phase in (None, of.get("phase"))]
        return [(n, value) for n, value in wanted if _is_number(value)]

    charts = [
        chart(
            "CIDEr of validation captions",
            {"beam search": curve("CIDEr"), "greedy": curve("greedy_CIDEr")},
            start,
        ),
        chart("BLEU-4 of validation captions", {"beam search": curve("Bleu_4")}, start),
        chart("Loss of cross-entropy", {"loss": curve("loss", "xe")}),
        chart("Reward of REINFORCE samples", {"reward": curve("reward", "rl")}),
    ]
    return [drawn for drawn in charts if drawn is not None]


def _setup(run: Run, options: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return options, features, data and versions of the run as pairs of name and value."""
    config = run.config
    known = [(name, config[name]) for name in ("parameters", "seed", "reward") if name in config]
    data = {name: config[name] for name in ("vocabulary", "captions") if name in config}
    others = {
        "features": config["features"],
        "sha256": data,
        "machine": config.get("machine", {}),
        "version": config.get("versions", {}),
        "scoring": run.scores.toolkit if run.scores else {},
    }
    return [*known, *options, *_flat(others)]


def _option(options: list[tuple[str, Any]], name: str) -> str:
    return next((str(value) for key, value in options if key.split(".")[-1] == name), "")


def _flat(options: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested options as pairs of dotted name and value."""
    pairs = []
    for name, value in options.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _is_number(value: object) -> TypeGuard[float]:
    # Excludes what no chart can show, including infinity and NaN.
    return isinstance(value, int | float) and abs(value) < 1e12


if __name__ == "__main__":
    sys.exit(main())
