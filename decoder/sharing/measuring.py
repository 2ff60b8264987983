"""Scores of an exported captioner: its own captions of the validation split, scored."""

from typing import Any

import torch

from decoder.captioning.captioner import Captioner, default_generation
from decoder.captioning.split import caption_split
from decoder.sharing.metadata import evaluation
from evaluation.options import ScoreOptions
from evaluation.score import score_captions
from evaluation.scores import load
from pipeline.captions import CaptionTable
from pipeline.work import RunFolder

SPLIT = "val"
SUFFIX = "_exported"
_BATCH_SIZE = 50


def measure(
    new: RunFolder, run: RunFolder, table: CaptionTable, device: torch.device
) -> dict[str, Any]:
    """Caption the validation split with the captioner in `new`, and score the captions.

    The captions and scores are kept in the run, as captions_val_exported.json and
    scores_val_exported.json.

    Args:
        new: the exported captioner; all its files except captioner.json and the card.
        run: the run, in its work directory.
        table: the captions of the work directory.
        device: where to compute.

    Returns:
        The entries of captioner.json that are measured; see `evaluation`.

    Raises:
        UserError: the work directory has no such split, features or toolkit.
    """
    captions = run.captions(SPLIT, SUFFIX)
    captioner = Captioner([(new, new.best)], default_generation(new), device)
    caption_split(captioner, run.work, SPLIT, captions, _BATCH_SIZE, attended=0)
    # Images without features have no caption; the scores name the number of images.
    options = ScoreOptions(captions=run.work.captions, results=captions, split=SPLIT, partial=True)
    score_captions(options)
    return evaluation({SPLIT: load(run.scores(SPLIT, SUFFIX))}, captions, table)
