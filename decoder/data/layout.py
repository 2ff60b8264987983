"""Batches of few shapes, for CUDA GPUs; elsewhere captions are packed and end early instead.

A CPU spends its time on arithmetic, so nothing is computed there for words that do not exist
(`decoder.data.batches.pack`). A GPU spends it on starting kernels, thousands a step, unless a step
is a CUDA graph, which replays fixed shapes only. So on a GPU captions are padded, images have the
same number of captions, captions that have ended stay, and nothing asks the host what to do next,
except a search outside of graphs, which asks now and then whether all captions have ended.
`is_static` chooses between the two, everywhere. Both run the same models and objectives.

Shape suffixes: I images, B captions, S slots of a batch, each with the features of one image,
K captions of a slot, T tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.data.batches import Batch, Features, PackedWords, pack
from pipeline.vocabulary import BOS, PAD, UNK

# So that few shapes occur, lengths of captions and numbers of regions are rounded up to multiples
# of these, and slots are added by the eighth of a batch if images have more captions than a slot.
_LENGTHS, _REGIONS, _SHARE = 4, 16, 8

# Images that are captioned at once, and on a GPU captions that are searched at once.
_IMAGES, _CAPTIONS = 50, 2000

_static_on_cpu = False
_may_wait = True


def is_static(device: torch.device) -> bool:
    """Return whether shapes on this device depend on no data and nothing waits for the host."""
    return device.type == "cuda" or _static_on_cpu


@contextmanager
def static_on_cpu(wanted: bool = True) -> Iterator[None]:
    """Compute on a CPU as on a CUDA GPU, or not, inside this context; for tests."""
    global _static_on_cpu
    before, _static_on_cpu = _static_on_cpu, wanted
    try:
        yield
    finally:
        _static_on_cpu = before


def may_wait() -> bool:
    """Return whether the host may wait for a GPU now, for example to learn that all is done."""
    return _may_wait


@contextmanager
def without_waiting() -> Iterator[None]:
    """Take every step, and ask nothing of a GPU, inside this context; for what is captured."""
    global _may_wait
    before, _may_wait = _may_wait, False
    try:
        yield
    finally:
        _may_wait = before


def images_at_once(device: torch.device, captions: int) -> int:
    """Return how many images to caption at once, where `captions` of each are searched together.

    A GPU needs as long for hundreds of captions as for a few, and about 1 GB of memory.
    """
    return max(_IMAGES, _CAPTIONS // captions) if is_static(device) else _IMAGES


def lay_out(batch: Batch) -> PackedWords:
    """Return the captions of a batch, padded if it is one of `captions_in_slots`, else packed.

    They are on the device of the batch's features.
    """
    if batch.real_I is not None:
        return padded(batch.tokens_BT, len(batch.features.pooled_IC))
    return pack(batch.tokens_BT, batch.image_B).to(batch.features.pooled_IC.device)


def padded(tokens_BT: Tensor, images: int) -> PackedWords:
    """Return captions as words of which every caption has one at every step.

    Args:
        tokens_BT: int64, PAD after a caption's end; the captions are in the order of their images,
            of which each has the same number.
        images: their number.
    """
    captions, steps = tokens_BT.shape
    targets_TB = tokens_BT.T
    inputs_TB = torch.cat((torch.full_like(targets_TB[:1], BOS), targets_TB[:-1]))
    caption_B = torch.arange(captions, device=tokens_BT.device)
    image_B = caption_B // (captions // images)
    return PackedWords(
        inputs_P=inputs_TB.flatten(),
        # Nothing is learned where a target is unknown.
        targets_P=targets_TB.masked_fill(targets_TB == PAD, UNK).flatten(),
        caption_P=caption_B.repeat(steps),
        image_P=image_B.repeat(steps),
        image_B=image_B,
        alive=[captions] * steps,
        each=captions // images,
    )


def captions_of_a_slot(counts: Iterable[int]) -> int:
    """Return K for a data set: the number of captions that most of its images have."""
    return Counter(counts).most_common(1)[0][0]


def captions_in_slots(batch: Batch, images: int, each: int, longest: int) -> Batch:
    """Return a batch as one of few shapes, on the device of its features.

    An image with more captions than a slot holds takes several slots, whose other places stay
    empty, as do slots without an image: such captions consist of PAD.

    Args:
        batch: the captions of an image are contiguous, and on the CPU.
        images: largest number of images in a batch.
        each: K.
        longest: largest number of tokens in a caption.

    Returns:
        The batch, with a multiple of K captions, in the order of the slots. Its images are the
        slots; their number is `images` unless some images need more.
    """
    count_I = batch.image_B.bincount(minlength=len(batch.image_ids))
    slots_I = (count_I + each - 1) // each
    image_S = torch.arange(len(slots_I)).repeat_interleave(slots_I)
    step = -(-images // _SHARE)
    size = images + step * max(0, -(-(len(image_S) - images) // step))
    place_B = torch.arange(len(batch.image_B)) - (count_I.cumsum(0) - count_I)[batch.image_B]
    row_B = (slots_I.cumsum(0) - slots_I)[batch.image_B] * each + place_B
    tokens = batch.tokens_BT.shape[1]
    length = max(tokens, min(-(-tokens // _LENGTHS) * _LENGTHS, longest))
    tokens_BT = torch.full((size * each, length), PAD)
    if not batch.idle:
        tokens_BT[row_B, :tokens] = batch.tokens_BT
    return _in_slots(batch, image_S, size, tokens_BT)


def images_in_slots(batch: Batch, images: int) -> Batch:
    """Return the images of a batch, without captions, as a batch of `images` slots."""
    nothing = torch.empty(images, 0, dtype=torch.int64)
    return _in_slots(batch, torch.arange(len(batch.image_ids)), images, nothing)


def filled_up(features: Features, images: int) -> Features:
    """Return features of `images` images, of which the last ones are copies that do not count."""
    index_S = torch.arange(images, device=features.pooled_IC.device)
    index_S = index_S.masked_fill_(index_S >= len(features.pooled_IC), 0)
    return _of_slots(features, index_S)


def _in_slots(batch: Batch, image_S: Tensor, size: int, tokens_BT: Tensor) -> Batch:
    """Return a batch of `size` slots, of which the first have images, on the features' device."""
    device = batch.features.pooled_IC.device
    used = 0 if batch.idle else len(image_S)
    image_S = F.pad(image_S, (0, size - len(image_S)))  # any image, for it does not count
    image_B = torch.arange(size).repeat_interleave(max(1, len(tokens_BT) // size))
    return Batch(
        batch.image_ids[image_S],
        _of_slots(batch.features, image_S.to(device, non_blocking=True)),
        tokens_BT.to(device, non_blocking=True),
        image_B.to(device, non_blocking=True),
        batch.idle,
        (torch.arange(size) < used).to(device, non_blocking=True),
    )


def _of_slots(features: Features, index_S: Tensor) -> Features:
    """Return the features of the image of each slot, with one of few numbers of regions."""
    features = features.each(lambda tensor: tensor.index_select(0, index_S))
    if features.mask_IR is None:
        return features
    more = -features.mask_IR.shape[1] % _REGIONS
    return features._replace(
        grid_IRC=F.pad(features.grid_IRC, (0, 0, 0, more)),
        mask_IR=F.pad(features.mask_IR, (0, more)),
    )
