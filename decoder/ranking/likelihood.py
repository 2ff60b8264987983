"""How likely a decoder finds captions of given images: the second pass of the search."""

import torch
from torch import Tensor

from decoder.data.batches import pack
from decoder.model.decoders import Decoder, Memory
from pipeline.vocabulary import EOS


@torch.inference_mode()
def log_likelihood(model: Decoder, memory: Memory, tokens_BT: Tensor, image_B: Tensor) -> Tensor:
    """Return the natural log-probability of each caption given its image.

    A word that the vocabulary lacks has no probability; it is read, but not counted.

    Args:
        model: in evaluation mode.
        memory: of the images, as `Decoder.encode` returns it.
        tokens_BT: int64, each row a caption ending in EOS (or cut off), then PAD.
        image_B: int64, the place in `memory` of each caption's image.

    Returns:
        float32 [B].
    """
    words = pack(tokens_BT, image_B)
    targets_P = words.targets_P - EOS
    known_P = targets_P >= 0
    log_probability_PV = model(memory, words).log_softmax(-1)
    found_P = log_probability_PV.gather(1, targets_P.clamp(min=0).unsqueeze(1)).squeeze(1)
    return found_P.new_zeros(len(tokens_BT)).index_add_(0, words.caption_P, found_P * known_P)
