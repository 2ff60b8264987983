"""The two objectives: cross-entropy under teacher forcing, and REINFORCE on a reward.

Shape suffixes as in `decoder.models`; S samples (K for each image).
"""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from decoder.batches import Batch, PackedWords, pack
from decoder.generate import NotFinite, greedy, sample
from decoder.models import Decoder, Memory
from decoder.options import ReinforceOptions
from decoder.reward import Bleu4, CiderD, References
from pipeline.vocabulary import EOS, PAD, UNK

# An unknown word has no output: where it is the target, there is nothing to learn.
NO_TARGET = UNK - EOS


class Reward(Protocol):
    """What `reinforce` rewards samples with; see `decoder.reward.CiderD.__call__`."""

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Return float32 [S]."""


class Loss(NamedTuple):
    """What an objective gives for one batch."""

    loss: Tensor
    """float32 [], to be minimised; its mean is over words."""
    captions: int
    """Captions read, or sampled."""
    words: Tensor
    """int64 [], how many words the mean is over."""
    reward: Tensor | None = None
    """float32 [], mean reward of the samples, on the scale of the scores (10 for CIDEr-D)."""
    advantage: Tensor | None = None
    """float32 [], largest distance of a sample's reward from its baseline, on the same scale."""


def cross_entropy(
    model: Decoder, batch: Batch, label_smoothing: float = 0.0, own_words: float = 0.0
) -> Loss:
    """Teacher forcing: predict each word of the captions from those before it.

    Args:
        model: in training mode.
        batch: images with their captions.
        label_smoothing: share of the target's probability spread over all words.
        own_words: probability that an input word is the model's own (scheduled sampling).
    """
    memory = model.encode(batch.features)
    words = pack(batch.tokens_BT, batch.image_B).to(batch.image_ids.device)
    if own_words > 0:
        words = mix_in_own_words(model, memory, words, own_words)
    loss = F.cross_entropy(
        model(memory, words),
        words.targets_P - EOS,
        ignore_index=NO_TARGET,
        label_smoothing=label_smoothing,
    )
    return Loss(loss, len(batch.tokens_BT), (words.targets_P != UNK).sum())


def mix_in_own_words(
    model: Decoder, memory: Memory, words: PackedWords, probability: float
) -> PackedWords:
    """Replace input words by samples of the model, each with `probability`; never the first.

    Scheduled sampling (Bengio et al. 2015) in two passes (Mihaylova & Martins 2019): the samples
    come from a first pass under teacher forcing, so that both passes stay parallel over the words.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    with torch.no_grad():
        logits_PV = model(memory, words)
        if not logits_PV.isfinite().all():
            raise NotFinite("the decoder's scores of words are not finite numbers")
        drawn_P = torch.multinomial(logits_PV.softmax(-1), 1).squeeze(1) + EOS
    place_P = torch.arange(len(drawn_P), device=drawn_P.device)
    alive = torch.tensor(words.alive, device=drawn_P.device)
    later_P = place_P[words.alive[0] :]
    # The same caption's word of the step before lies as far back as captions were alive then.
    before_P = later_P - alive[:-1].repeat_interleave(alive[1:])
    own = torch.rand(len(later_P), device=drawn_P.device) < probability
    inputs_P = words.inputs_P.clone()
    inputs_P[later_P[own]] = drawn_P[before_P[own]]
    return PackedWords(**{**vars(words), "inputs_P": inputs_P})


def reinforce(
    model: Decoder, batch: Batch, reward: Reward, options: ReinforceOptions, max_length: int
) -> Loss:
    """REINFORCE (Williams 1992): make samples that beat their baseline more probable.

    The baseline is the greedy caption's reward (self-critical, Rennie et al. 2017) or the mean of
    the image's other samples (Luo 2020, "A better variant of self-critical sequence training").
    The images are encoded once. Samples are drawn without keeping a graph and then read again under
    teacher forcing, where only their real words are computed. The model is in evaluation mode for
    both, so that the gradient is that of the distribution which was sampled. It is divided by the
    number of words of all samples, which keeps its size independent of their length.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    memory = model.encode(batch.features)
    with torch.no_grad():
        samples_SKT = sample(model, memory, options.samples, max_length, options.temperature)[0]
        samples_ST = samples_SKT.flatten(0, 1)
        reward_IK = reward(batch.image_ids, samples_ST, EOS).view(-1, options.samples)
        if options.baseline == "greedy":
            greedy_IT = greedy(model, memory, max_length).tokens_IKT[:, 0]
            baseline_IK = reward(batch.image_ids, greedy_IT, EOS)[:, None]
        else:
            others = options.samples - 1
            baseline_IK = (reward_IK.sum(1, keepdim=True) - reward_IK) / others
        advantage_S = (reward_IK - baseline_IK).flatten()

    loss = policy_loss(model, memory, samples_ST, advantage_S, options.temperature)
    words = (samples_ST != PAD).sum()
    return Loss(loss, len(samples_ST), words, reward_IK.mean(), advantage_S.abs().max())


def policy_loss(
    model: Decoder, memory: Memory, samples_ST: Tensor, advantage_S: Tensor, temperature: float
) -> Tensor:
    """Read samples, K for each image; return the mean of -advantage * log p over their words."""
    words = pack(samples_ST, memory.rows(len(samples_ST)).image_B)
    logits_PV = model(memory, words) / temperature
    surprise_P = F.cross_entropy(logits_PV, words.targets_P - EOS, reduction="none")
    return (advantage_S[words.caption_P] * surprise_P).mean()


class MixedReward:
    """CIDEr-D with a share of BLEU-4, both over the same references.

    BLEU-4 counts ten times, to be on CIDEr-D's scale of 0 to 10.
    """

    def __init__(self, references: dict[int, list[list[int]]], bleu_weight: float) -> None:
        prepared = References(references)
        self.cider = CiderD(prepared)
        self.bleu = Bleu4(prepared)
        self.bleu_weight = bleu_weight

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Reward samples; arguments, result and errors are those of `CiderD.__call__`."""
        cider = self.cider(image_ids, samples, eos)
        if self.bleu_weight == 0:
            return cider
        bleu = 10 * self.bleu(image_ids, samples, eos)
        return (1 - self.bleu_weight) * cider + self.bleu_weight * bleu
