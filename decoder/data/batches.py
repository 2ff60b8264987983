"""Batches: features of images, and captions packed step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.vocabulary import BOS, PAD


class Features(NamedTuple):
    """Stored features of a batch of images, as float32."""

    grid_IRC: Tensor
    pooled_IC: Tensor
    mask_IR: Tensor | None = None
    """bool, which regions an image has, where their number varies; None if all have all of them.
    What the grid holds in the other places has no effect."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """Return the features after the same change to each tensor."""
        mask_IR = None if self.mask_IR is None else change(self.mask_IR)
        return Features(change(self.grid_IRC), change(self.pooled_IC), mask_IR)

    def to(self, device: torch.device) -> "Features":
        """Return the features on `device`."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class PackedWords:
    """Captions sorted by decreasing length and packed step by step, without padding.

    The first `alive[0]` words are the first words of all captions, the next `alive[1]` the second
    words of those that have one, and so on. A caption of n tokens, EOS included, has the inputs BOS
    and its first n - 1 tokens, and its n tokens as targets.
    """

    inputs_P: Tensor
    """int64, the words read."""
    targets_P: Tensor
    """int64, the words to predict."""
    caption_P: Tensor
    """int64, the caption of each word, by its row in the argument of `pack`."""
    image_P: Tensor
    """int64, the image of each word's caption."""
    image_B: Tensor
    """int64, the image of each caption, longest caption first."""
    alive: list[int]
    """Number of captions that still have a word, for each step."""
    each: int = 0
    """Number of captions of each image, if it is the same and they are in the order of the images;
    else 0."""

    def to(self, device: torch.device) -> "PackedWords":
        """Return the words on `device`."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def pack(tokens_BT: Tensor, image_B: Tensor) -> PackedWords:
    """Pack captions.

    Args:
        tokens_BT: int64, in each row a caption that ends in EOS or is cut off, then PAD.
        image_B: int64, the image of each caption.
    """
    real_BT = tokens_BT != PAD
    length_B = real_BT.sum(1)
    order_B = length_B.argsort(descending=True, stable=True)
    steps = int(length_B.max())
    real_TB = real_BT[order_B, :steps].T
    targets_TB = tokens_BT[order_B, :steps].T
    inputs_TB = torch.cat((torch.full_like(targets_TB[:1], BOS), targets_TB[:-1]))
    caption_P = order_B.expand(steps, -1)[real_TB]
    return PackedWords(
        inputs_P=inputs_TB[real_TB],
        targets_P=targets_TB[real_TB],
        caption_P=caption_P,
        image_P=image_B[caption_P],
        image_B=image_B[order_B],
        alive=real_TB.sum(1).tolist(),
    )


def pad(captions: Sequence[Sequence[int]]) -> Tensor:
    """Return captions of token ids as one int64 tensor [B, T], padded with PAD."""
    longest = max(map(len, captions))
    return torch.tensor([[*caption, *[PAD] * (longest - len(caption))] for caption in captions])


class Batch(NamedTuple):
    """One training batch; all but the features stay on the CPU, where packing waits for no GPU."""

    image_ids: Tensor
    """int64 [I], the data set's ids."""
    features: Features
    tokens_BT: Tensor
    """int64 [B, T], all captions of the images."""
    image_B: Tensor
    """int64 [B], each caption's image, by its place in the batch."""
    idle: bool = False
    """The batch has fewer images than there are processes, and this one's image does not count."""
    real_I: Tensor | None = None
    """bool, which images count, in a batch filled up to a fixed size; None if all do."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its features on `device`."""
        return self._replace(features=self.features.to(device))
