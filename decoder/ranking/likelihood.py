"""The log-probability of captions given images, under a decoder: the second pass of a search."""

import torch
from torch import Tensor

from decoder.data.batches import pack
from decoder.model.decoders import Decoder, Memory
from pipeline.vocabulary import EOS


@torch.inference_mode()
def log_likelihood(model: Decoder, memory: Memory, tokens_BT: Tensor, image_B: Tensor) -> Tensor:
    """Return the natural log-probability of each caption given its image.

    The decoder reads UNK like any other word, but UNK has no probability and does not count.

    Args:
        model: in evaluation mode.
        memory: the encoded images, from `Decoder.encode`.
        tokens_BT: int64, each row a caption that ends with EOS (or is cut off), then PAD.
        image_B: int64, the index in `memory` of each caption's image.

    Returns:
        float32 [B].
    """
    words = pack(tokens_BT, image_B)
    targets_P = words.targets_P - EOS
    known_P = targets_P >= 0
    log_probability_PV = model(memory, words).log_softmax(-1)
    target_P = log_probability_PV.gather(1, targets_P.clamp(min=0).unsqueeze(1)).squeeze(1)
    return target_P.new_zeros(len(tokens_BT)).index_add_(0, words.caption_P, target_P * known_P)
