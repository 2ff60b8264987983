"""How good a captioner gets of 120 pictures, from nothing and from a trained captioner.

    .venv/bin/python -m tests.benchmarks.small_data EVERYDAY SCRATCH [--arms ...]

EVERYDAY is a folder with captions.csv (file_name, caption, split). Of the 300 pictures of its split
val, 120 are drawn: 108 to train on and 12 for validation. The other 180 are captioned and scored
with the official toolkit. The included captioner was chosen by these photographs, so a fair
comparison starts from another one; evaluation/README.md has the command.
"""

import csv
import json
import os
import random
import shutil
import sys
from pathlib import Path

import tyro

from decoder import caption, train
from evaluation import score
from pipeline import extract, prepare
from tests.pipeline.test_presets import options as preset_options

OWN, VALIDATION = 120, 12


def main(
    everyday: tyro.conf.Positional[Path],
    scratch: tyro.conf.Positional[Path],
    draws: int = 3,
    arms: tuple[str, ...] = ("nothing:", "packaged: --init packaged"),
) -> None:
    """Train every arm on every draw, and print the scores on the 180 pictures left.

    Args:
        everyday: the photographs with captions.
        scratch: the folder to work in; features that it has are used.
        draws: number of draws of 120 pictures.
        arms: what is compared, as "name: options of decoder.train".
    """
    with (everyday / "captions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    names = sorted({row["file_name"] for row in rows})
    backbone = preset_options("transfer", "extract").backbone
    features = scratch / "features.h5"
    for draw in range(1, draws + 1):
        work = scratch / f"draw{draw}"
        if not (work / "features.h5").exists():
            _prepare(rows, names, everyday, scratch / f"data{draw}", work, draw)
            if features.exists():
                os.link(features, work / "features.h5")
            elif extract.main(["--work", str(work), "--backbone", backbone]) == 0:
                os.link(work / "features.h5", features)
        for arm in arms:
            name, _, own = arm.partition(":")
            figures = _figures(work, name, own.split())
            print(f"draw {draw}, {name}: {figures}", flush=True)


def _prepare(
    rows: list[dict[str, str]], names: list[str], everyday: Path, root: Path, work: Path, draw: int
) -> None:
    """Make a work directory in which 120 pictures are drawn to train on."""
    own = random.Random(draw).sample(names, OWN)
    splits = dict.fromkeys(names, "test")
    splits |= dict.fromkeys(own, "train") | dict.fromkeys(own[:VALIDATION], "val")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    (root / "images").symlink_to((everyday / "images").resolve())
    with (root / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption", "split"])
        for row in rows:
            writer.writerow([row["file_name"], row["caption"], splits[row["file_name"]]])
    arguments = ["--dataset", "folder", "--root", str(root), "--work", str(work)]
    if status := prepare.main(arguments):
        sys.exit(status)


def _figures(work: Path, name: str, options: list[str]) -> str:
    """Train one arm, caption and score the test split; return the figures."""
    run = work / "runs" / name
    status = train.main(["--work", str(work), "--run", name, *options])
    status = status or caption.main(["--run", str(run), "--split", "test"])
    captions = ["--captions", str(work / "captions.json")]
    results = ["--results", str(run / "captions_test.json")]
    if status or score.main([*captions, *results, "--bootstrap", "0"]):
        sys.exit(1)
    scores = json.loads((run / "scores_test.json").read_text())
    corpus, endings = scores["corpus"], scores["diagnostics"]["bad_endings"]
    return (
        f"CIDEr {corpus['CIDEr']:.3f}, METEOR {corpus['METEOR']:.3f}, "
        f"BLEU-4 {corpus['Bleu_4']:.3f}, bad endings {endings:.1%}"
    )


if __name__ == "__main__":
    tyro.cli(main)
