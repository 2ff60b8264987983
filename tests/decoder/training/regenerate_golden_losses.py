"""Writes golden_losses.json, the losses of the first steps of each model in both phases.

Run it with `python -m tests.decoder.training.regenerate_golden_losses` after a deliberate change of
what is computed, and read the difference before committing it. A change that only makes training
faster may not change a value by more than the rounding of float32.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from decoder.data.batches import Batch, Features, pad
from decoder.model import decoders
from decoder.model.options import ModelOptions
from decoder.training.adam import Adam
from decoder.training.objectives import cross_entropy, draw
from pipeline.vocabulary import EOS, UNK

GOLDEN = Path(__file__).with_name("golden_losses.json")
NAMES = [
    f"{model}-{cell}" for model in ("show_tell", "att2in", "updown") for cell in ("lstm", "gru")
]
STEPS = 10
WORDS, CHANNELS, REGIONS, IMAGES, CAPTIONS = 60, 40, 9, 4, 3


def losses(name: str, phase: str) -> list[float]:
    """Return the losses of the first steps of a small model.

    REINFORCE learns from fixed captions and rewards, because rounding could change which captions
    are drawn from the model.
    """
    torch.manual_seed(3)
    model_name, cell = name.split("-")
    options = ModelOptions(model=model_name, cell=cell, hidden=48, attention=40, dropout=0.5)
    model = decoders.build(options, WORDS, CHANNELS).train(phase == "xe")
    optimizer = Adam(model.parameters(), (0.9, 0.999))
    found = []
    for step in range(STEPS):
        torch.manual_seed(step)
        batch = _batch(phase)
        advantage_S = torch.randn(len(batch.tokens_BT))
        if phase == "xe":
            loss = cross_entropy(model, batch, label_smoothing=0.1).loss
        else:
            longest, given = batch.tokens_BT.shape[1], _Given(batch.tokens_BT)
            drawn = draw(model, model.encode(batch.features), CAPTIONS, longest, 0.5, given)
            loss = (advantage_S[drawn.sample_P] * drawn.surprise_P).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(0.01)
        found.append(loss.item())
    return found


class _Given:
    """Returns the words of given captions instead of drawing any."""

    def __init__(self, tokens_BT: Tensor) -> None:
        self.tokens_BT = tokens_BT

    def __call__(self, probability_BV: Tensor, sample_B: Tensor, t: int) -> Tensor:
        return self.tokens_BT[sample_B, t] - EOS


def _batch(phase: str) -> Batch:
    lengths = torch.randint(0, 12, (IMAGES * CAPTIONS,)).tolist()
    captions = [[*torch.randint(EOS + 1, WORDS, (n,)).tolist(), EOS] for n in lengths]
    if phase == "xe":
        captions[0][0] = UNK  # no sample holds one
    return Batch(
        image_ids=torch.arange(IMAGES),
        features=Features(torch.rand(IMAGES, REGIONS, CHANNELS), torch.rand(IMAGES, CHANNELS)),
        tokens_BT=pad(captions),
        image_B=torch.arange(IMAGES).repeat_interleave(CAPTIONS),
    )


if __name__ == "__main__":
    golden = {phase: {name: losses(name, phase) for name in NAMES} for phase in ("xe", "rl")}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
