"""Write the report of a run as one self-contained HTML file: `python -m evaluation.report`."""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from evaluation import concerns, runs
from evaluation.baselines import Baseline, baselines_of
from evaluation.charts import Chart, chart
from evaluation.costs import costs, duration, is_number, machine
from evaluation.diagnostics import diagnose
from evaluation.gallery import best_middle_worst, no_picture, picture, shade
from evaluation.mistakes import Confusion, analyse
from evaluation.options import ReportOptions
from evaluation.references import captions_of
from evaluation.runs import Run
from evaluation.score_tables import existing, score_rows, source_rows
from evaluation.toolkit import LABELS
from features.files import write_atomically
from features.sampling import evenly_spaced
from pipeline.caption_database import CaptionDatabase
from pipeline.captions import Image
from pipeline.command import run as run_command
from pipeline.up_to_date import Stamp
from pipeline.work import RunFolder

_MODELS = {"show_tell": "Show and Tell", "att2in": "Att2in", "updown": "Up-Down"}
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
_PICTURE, _THUMBNAIL, _EXAMPLE = 420, 160, 112  # pixels
_CONFUSIONS = 5  # listed for each kind of words
_DRAWN = "shapes"  # the data set that pipeline.shapes generates
_COLUMNS = ("nearest", "before", "value", "reranked", "people")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage with the command line `argv` and return its exit status."""
    return run_command(write_report, ReportOptions, "evaluation.report", argv)


def write_report(options: ReportOptions) -> None:
    """Write an HTML page with a run's scores, training curves, captions and attention."""
    folder = RunFolder(options.run.resolve())
    split = options.split or runs.captioned_split(folder)
    out = options.out or folder.report
    inputs = [*runs.inputs(folder, split), folder.work.features]
    stamp = Stamp(folder.path, "report", options, inputs)
    if not options.force and stamp.holds():
        print(f"report: unchanged, skipped: {out}")
        return
    loaded = runs.load(folder, split)
    known: dict[str, Baseline] = {}
    if loaded.scores:
        known, reasons = baselines_of(folder.work, loaded.table, split, loaded.scores.images)
        for reason in reasons:
            print(f"report: without a baseline: {reason}")
    write_atomically(out, render(loaded, options.images, known))
    stamp.write([out])
    print(f"report: {out}")


def render(run: Run, images: int, baselines: Mapping[str, Baseline] | None = None) -> str:
    """Return the page as HTML, with `images` pictures in its gallery.

    Args:
        run: the run and its captions of a split.
        images: number of pictures in the gallery.
        baselines: "nearest" and "people", as far as they are known (see `evaluation.baselines`).

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
    baselines = baselines or {}
    if ciders:
        titles = ("The best", "The middle", "The worst")
        groups = list(zip(titles, best_middle_worst(ranked, images), strict=True))
    else:
        groups = [("", evenly_spaced(shown, images))]
    with_attention = [image for image in ranked if image in run.attention]
    rows = score_rows(run, baselines)
    return environment.from_string(template).render(
        run=run,
        model=_MODELS.get(_option(options, "model"), "Decoder"),
        cell=_option(options, "cell").upper() or "recurrent",
        dataset=run.table.dataset,
        backbone=run.config["features"].get("backbone", "unknown").removeprefix("files:"),
        split=_SPLITS[run.split],
        images=len(shown),
        concerns=_concerns(run, len(shown), baselines),
        scores=rows,
        columns=[c for c in _COLUMNS if any(row[c] is not None for row in rows)],
        baselines=baselines,
        people=not all(_is_drawn(run, by_id[i]) for i in shown),
        sources=source_rows(run),
        labels=LABELS,
        charts=_charts(run),
        groups=[(title, [card(by_id[i]) for i in ids]) for title, ids in groups if ids],
        mistakes=_mistakes(run, by_id),
        attention=[
            {
                **card(by_id[i]),
                "thumbnail": _picture(run, by_id[i], _THUMBNAIL),
                "words": [
                    (word, shade(weights))
                    for word, weights in zip(
                        run.attention[i].words, run.attention[i].weights, strict=True
                    )
                ],
            }
            for i in evenly_spaced(with_attention, max(1, images // 4))
        ],
        costs=costs(run.extraction, run.epochs),
        machine=machine(run.config),
        duration=duration,
        setup=_setup(run, options),
        seconds=sum(epoch["seconds"] for epoch in run.epochs if is_number(epoch.get("seconds"))),
    )


def _card(run: Run, ciders: dict[int, float], image: Image) -> dict[str, Any]:
    return {
        "picture": _picture(run, image, _PICTURE),
        "file_name": image.file_name,
        "caption": run.captions[image.id],
        "before": run.captions_xe.get(image.id),
        "reranked": run.captions_reranked.get(image.id),
        "references": [caption.text for caption in image.captions],
        "people": not _is_drawn(run, image),
        "cider": ciders.get(image.id),
    }


def _picture(run: Run, image: Image, size: int) -> str:
    """Return a picture as a data URI; a grey square for one that is in an archive of a shard."""
    path = run.table.path(image)
    if isinstance(run.table, CaptionDatabase) and not path.is_file():
        return no_picture(size)
    return picture(path, size)


def _is_drawn(run: Run, image: Image) -> bool:
    """Whether a picture and its captions were generated, so that no person wrote them."""
    return (image.source or run.table.dataset) == _DRAWN


def _concerns(run: Run, images: int, baselines: Mapping[str, Baseline]) -> list[str]:
    """Return the bad news about the run, one sentence or two each."""
    if run.scores:
        figures = run.scores.diagnostics
    else:
        figures = diagnose(" ".join(written.split()) for written in run.captions.values())
    found = [*concerns.of_captions(figures, images), *concerns.of_epochs(run.epochs)]
    cider = existing(run.scores).get("CIDEr")
    if cider is not None:
        reinforced = any(epoch["phase"] == "rl" for epoch in run.epochs)
        copied = baselines["nearest"].scores.get("CIDEr") if "nearest" in baselines else None
        before = existing(run.scores_xe).get("CIDEr")
        found += concerns.of_scores(cider, before, copied, reinforced)
    return found


def _mistakes(run: Run, by_id: Mapping[int, Image]) -> dict[str, Any]:
    """Return the error analysis, each confusion with an example."""
    captions = {i: text for i, text in run.captions.items() if i in by_id}
    found = analyse(captions, captions_of(by_id[i] for i in captions))

    def example(confusion: Confusion) -> dict[str, Any]:
        image = by_id[confusion.images[0]]
        texts = [caption.text for caption in image.captions]
        telling = [t for t in texts if confusion.expected in t.lower()]
        return {
            "written": confusion.written,
            "expected": confusion.expected,
            "images": len(confusion.images),
            "picture": _picture(run, image, _EXAMPLE),
            "caption": run.captions[image.id],
            "reference": (telling or texts)[0],
        }

    return {
        "kinds": [
            {
                "name": kind.name,
                "counts": (kind.confirmed, kind.contradicted, kind.unmentioned),
                "confusions": [example(confusion) for confusion in kind.confusions[:_CONFUSIONS]],
            }
            for kind in found.kinds
            if kind.confirmed + kind.contradicted + kind.unmentioned
        ],
        "never_used": found.never_used,
        "overused": found.overused,
    }


def _charts(run: Run) -> list[Chart]:
    """Return the curves of loss, reward and validation scores that the run has.

    The epochs of REINFORCE continue the numbering of those of cross-entropy.
    """
    numbered = list(enumerate(run.epochs, 1))
    start = next((number for number, epoch in numbered if epoch["phase"] == "rl"), None)

    def curve(name: str, phase: str | None = None) -> list[tuple[int, float]]:
        values = [(n, epoch if phase else epoch["val"]) for n, epoch in numbered]
        wanted = [(n, of.get(name)) for n, of in values if phase in (None, of.get("phase"))]
        return [(n, value) for n, value in wanted if is_number(value)]

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
            pairs.append((f"{prefix}{name}", _without_folders(value)))
    return pairs


def _without_folders(value: Any) -> Any:
    """Return a value with the names of files alone: their paths are nobody's business."""
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


if __name__ == "__main__":
    sys.exit(main())
