"""A joint embedding of pictures and sentences: the first, cheap pass of a search.

Shape suffixes: N images, M of them as a sample, V views, C channels, B pairs in a batch, T tokens,
E size of a word vector, D size of the embedding.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoder.data.batches import pad
from features.errors import UserError
from pipeline.vocabulary import EOS

SIZE, WORD_SIZE = 512, 300
BATCH = 200
# Training passes over the images. A pass sees each image once, in a random view with a random one
# of its captions. The bounds on steps make it more passes on a small data set and fewer on COCO.
PASSES, LEAST_STEPS, MOST_STEPS = 60, 600, 10_000
TEMPERATURE = 0.07
LEARNING_RATE, WARMUP_STEPS, MAX_GRADIENT_NORM = 1e-3, 100, 2.0
AVERAGE_DECAY = 0.995


class JointEmbedding(nn.Module):
    """Maps pooled features and bags of words to unit vectors that are close where they match.

    A picture goes through a linear map, the sum of a sentence's word vectors through another one.
    This follows DeViSE (Frome et al. 2013), but the word vectors are trained on the captions.

    Args:
        words: size of the vocabulary.
        channels: number of channels of the pooled features.
    """

    mean_C: Tensor
    scale_C: Tensor

    def __init__(self, words: int, channels: int) -> None:
        super().__init__()
        self.picture = nn.Linear(channels, SIZE)
        self.word = nn.Embedding(words, WORD_SIZE)
        self.sentence = nn.Linear(WORD_SIZE, SIZE)
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("scale_C", torch.ones(channels))

    def pictures(self, pooled_BC: Tensor) -> Tensor:
        """Return unit vectors, float32 [B, D], for pooled features, float32."""
        scaled_BC = (pooled_BC - self.mean_C) / self.scale_C
        return F.normalize(self.picture(F.dropout(scaled_BC, 0.5, self.training)))

    def sentences(self, tokens_BT: Tensor) -> Tensor:
        """Return unit vectors, float32 [B, D], for captions as int64 token ids.

        Special tokens are ignored.
        """
        is_word_BT1 = (tokens_BT > EOS).unsqueeze(2)
        words_BTE = F.dropout(self.word(tokens_BT), 0.3, self.training) * is_word_BT1
        sum_BE = words_BTE.sum(1) / is_word_BT1.sum(1).clamp(min=1).sqrt()
        return F.normalize(F.dropout(self.sentence(sum_BE), 0.3, self.training))


def train_embedding(
    pooled_NVC: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    words: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
    seed: int = 1,
) -> JointEmbedding:
    """Train an embedding in which each caption of a batch is closest to its own picture.

    The objective is the symmetric cross-entropy of the cosines over a temperature (InfoNCE, van den
    Oord et al. 2018; as in CLIP, Radford et al. 2021).

    Args:
        pooled_NVC: float16, the pooled features of the training images in all stored views.
        captions: the captions of each image as token ids, at least one for each image.
        words: size of the vocabulary.
        progress: called after each step with the number of finished steps and of all steps.
        seed: determines the weights, dropout, and the order of images, views and captions.

    Returns:
        The running average of the weights, in evaluation mode.

    Raises:
        UserError: there are fewer than two images, so there is nothing to contrast.
    """
    images, views, channels = pooled_NVC.shape
    if images < 2:
        raise UserError(
            f"expected at least 2 images with captions to train the search on, found {images}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        model = JointEmbedding(words, channels)
        # 10,000 images are enough for statistics. Their squares could overflow in float16.
        sample_MC = pooled_NVC[:: math.ceil(images / 10_000), 0].float()
        model.mean_C.copy_(sample_MC.mean(0))
        model.scale_C.copy_(sample_MC.std(0) + 1e-3)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
        averaged = torch.optim.swa_utils.AveragedModel(model, avg_fn=_running_average)
        size = min(BATCH, images)
        steps = min(MOST_STEPS, max(LEAST_STEPS, PASSES * (images // size)))
        order: list[int] = []
        for step in range(steps):
            if len(order) < size:
                order = random.permutation(images).tolist()
            chosen, order = order[:size], order[size:]
            texts = [captions[i][int(random.integers(len(captions[i])))] for i in chosen]
            pooled_BC = pooled_NVC[chosen, random.integers(views, size=size)].float()
            cosine_BB = model.pictures(pooled_BC) @ model.sentences(pad(texts)).T
            own_B = torch.arange(size)
            loss = F.cross_entropy(cosine_BB / TEMPERATURE, own_B)
            loss = loss + F.cross_entropy(cosine_BB.T / TEMPERATURE, own_B)
            rate = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 - step / steps)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            averaged.update_parameters(model)
            progress(step + 1, steps)
        model.load_state_dict(averaged.module.state_dict())
        return model.eval()


def _running_average(average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    """Return the next average; its decay grows towards `AVERAGE_DECAY` over the first updates."""
    return torch.lerp(average, current, max(1 - AVERAGE_DECAY, 9 / (10 + int(updates))))
