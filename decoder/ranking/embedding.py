"""A joint embedding of pictures and sentences: the first, cheap pass of the search.

Shape suffixes: N images, V views, C channels, B pairs in a batch, T tokens, D of the embedding.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoder.data.batches import pad
from decoder.training.adam import Adam
from features.errors import UserError
from pipeline.vocabulary import EOS

SIZE, WORD_SIZE = 512, 300
BATCH = 200
# Times that every image is seen, each time in one of its views with one of its captions; on data
# sets so large that MOST_STEPS come first, fewer, and on small ones more.
PASSES, LEAST_STEPS, MOST_STEPS = 60, 600, 10_000
TEMPERATURE = 0.07
LEARNING_RATE, WARMUP_STEPS, CLIP, AVERAGE = 1e-3, 100, 2.0, 0.995


class JointEmbedding(nn.Module):
    """Maps pooled features and bags of words to unit vectors, near where they belong together.

    A picture goes through one linear map, a sentence through the sum of its words' vectors and
    another one; as in Frome et al. 2013 (DeViSE), but with words that are learnt from the captions.

    Args:
        words: size of the vocabulary.
        channels: of the pooled features.
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
        """Return unit vectors [B, D] of pooled features, float32."""
        scaled_BC = (pooled_BC - self.mean_C) / self.scale_C
        return F.normalize(self.picture(F.dropout(scaled_BC, 0.5, self.training)))

    def sentences(self, tokens_BT: Tensor) -> Tensor:
        """Return unit vectors [B, D] of captions, int64 token ids; special ones do not count."""
        counts_BT1 = (tokens_BT > EOS).unsqueeze(2)
        words_BTE = F.dropout(self.word(tokens_BT), 0.3, self.training) * counts_BT1
        sum_BE = words_BTE.sum(1) / counts_BT1.sum(1).clamp(min=1).sqrt()
        return F.normalize(F.dropout(self.sentence(sum_BE), 0.3, self.training))


def learn(
    pooled_NVC: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    words: int,
    progress: Callable[[int, int], None] = lambda step, steps: None,
    seed: int = 1,
) -> JointEmbedding:
    """Learn an embedding in which each caption of a batch is nearest to its own picture.

    The objective is the symmetric cross-entropy of the cosines over a temperature (InfoNCE; van den
    Oord et al. 2018, as in CLIP, Radford et al. 2021).

    Args:
        pooled_NVC: float16, the pooled features of the training images in all stored views.
        captions: the token ids of each image's captions, at least one.
        words: size of the vocabulary.
        progress: is told how many steps are done, and of how many.
        seed: of the weights, dropout, and the order of images, views and captions.

    Returns:
        The embedding in evaluation mode, the running average of its weights.

    Raises:
        UserError: there are fewer than two images, so none can be told from another.
    """
    images, views, channels = pooled_NVC.shape
    if images < 2:
        raise UserError(
            f"expected 2 training images or more to learn a search from, found {images}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random = np.random.default_rng(seed)
        model = JointEmbedding(words, channels)
        # In float32, for squares of float16 may overflow; of a part, for it is as good.
        some = pooled_NVC[:: math.ceil(images / 10_000), 0].float()
        model.mean_C.copy_(some.mean(0))
        model.scale_C.copy_(some.std(0) + 1e-3)
        optimizer = Adam(model.parameters(), (0.9, 0.999))
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
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step(rate)
            averaged.update_parameters(model)
            progress(step + 1, steps)
        model.load_state_dict(averaged.module.state_dict())
        return model.eval()


def _running_average(average: Tensor, current: Tensor, before: Tensor | int) -> Tensor:
    """Return the next average; the first ones count less than `AVERAGE` would let them."""
    return torch.lerp(average, current, max(1 - AVERAGE, 9 / (10 + int(before))))
