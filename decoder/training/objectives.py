"""The two objectives: cross-entropy under teacher forcing, and REINFORCE on a reward.

Shape suffixes as in `decoder.model.decoders`; S samples (K for each image).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from decoder.cider import Reward
from decoder.data.batches import Batch, PackedWords, pack
from decoder.generation.generate import NotFinite, draw_words, greedy
from decoder.model.attention import Rows
from decoder.model.decoders import Decoder, Memory
from decoder.training.options import ReinforceOptions
from pipeline.vocabulary import BOS, EOS, PAD, UNK

# An unknown word has no output: where it is the target, there is nothing to learn.
NO_TARGET = UNK - EOS


class Loss(NamedTuple):
    """The loss of one batch, and figures to report."""

    loss: Tensor
    """float32 [], to be minimised; a mean over words."""
    captions: int
    """Number of captions read or sampled."""
    words: Tensor
    """int64 [], number of words in the mean."""
    reward: Tensor | None = None
    """float32 [], mean reward of the samples, on the scale of the scores (10 for CIDEr-D)."""
    advantage: Tensor | None = None
    """float32 [], largest distance of a sample's reward from its baseline, on the same scale."""


def cross_entropy(
    model: Decoder, batch: Batch, label_smoothing: float = 0.0, own_words: float = 0.0
) -> Loss:
    """Return the loss of teacher forcing: predict each word of a caption from those before it.

    Args:
        model: in training mode.
        batch: images with their captions.
        label_smoothing: share of the target's probability spread over all words.
        own_words: probability that an input word is the model's own (scheduled sampling).

    Raises:
        NotFinite: in scheduled sampling, the model's scores are not finite numbers.
    """
    memory = model.encode(batch.features)
    words = pack(batch.tokens_BT, batch.image_B).to(batch.features.pooled_IC.device)
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
    """Replace each input word but the first by a sample of the model, with `probability`.

    Scheduled sampling (Bengio et al. 2015) in two passes (Mihaylova & Martins 2019): the samples
    come from a first pass under teacher forcing, so both passes stay parallel over the words.

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
    # A caption's previous word lies as many places back as captions were alive at that step.
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
    The loss is divided by the number of words of all samples, which keeps the size of the gradient
    independent of their length.

    Args:
        model: in evaluation mode, so that the gradient is that of the sampled distribution.
        batch: images; their captions are not read.
        reward: of samples.
        options: of this phase.
        max_length: largest number of words in a sample, the end token included.

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    memory = model.encode(batch.features)
    drawn = draw(model, memory, options.samples, max_length, options.temperature)
    with torch.no_grad():
        reward_IK = reward(batch.image_ids, drawn.tokens_ST, EOS).view(-1, options.samples)
        if options.baseline == "greedy":
            greedy_IT = greedy(model, memory, max_length).tokens_IKT[:, 0]
            baseline_IK = reward(batch.image_ids, greedy_IT, EOS)[:, None]
        else:
            others = options.samples - 1
            baseline_IK = (reward_IK.sum(1, keepdim=True) - reward_IK) / others
        advantage_S = (reward_IK - baseline_IK).flatten()

    loss = (advantage_S[drawn.sample_P] * drawn.surprise_P).mean()
    words = torch.tensor(len(drawn.sample_P), device=loss.device)
    return Loss(loss, len(advantage_S), words, reward_IK.mean(), advantage_S.abs().max())


class Drawn(NamedTuple):
    """Samples and their log-probabilities; P words of all samples."""

    tokens_ST: Tensor
    """int64, padded with PAD; each ends in EOS unless it is cut off at the largest length."""
    sample_P: Tensor
    """int64, the sample of each word."""
    surprise_P: Tensor
    """float32, negative log-probability of each word, with its autograd graph."""


def draw(
    model: Decoder,
    memory: Memory,
    count: int,
    max_length: int,
    temperature: float,
    choose: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Drawn:
    """Draw `count` samples for each image and keep the graph of their log-probabilities.

    Gradients flow through the sampling pass itself; no second forward pass is needed. Samples that
    have ended are no longer computed.

    Args:
        model: in evaluation mode.
        memory: of the images.
        count: K.
        max_length: largest number of words in a sample, the end token included.
        temperature: of the softmax.
        choose: chooses the words instead of drawing them, in tests: from probabilities [B, V],
            their samples [B] and the number of the step to outputs [B].

    Raises:
        NotFinite: the model's scores are not finite numbers.
    """
    device = memory.gates_IG.device
    image_B = torch.arange(memory.images, device=device).repeat_interleave(count)
    sample_B = torch.arange(len(image_B), device=device)
    tokens_ST = torch.full((len(image_B), max_length), PAD, device=device)
    words_B = torch.full_like(image_B, BOS)
    outputs: list[Tensor] = []
    probabilities: list[Tensor] = []
    samples: list[Tensor] = []
    with model.summed_gradients():
        state = model.initial_state(memory, image_B)
        for t in range(max_length):
            rows = Rows.grouped(image_B, memory.images)
            state, _ = model.step(model.gates_of(words_B, memory, image_B), memory, rows, state)
            outputs.append(state[0])
            samples.append(sample_B)
            with torch.no_grad():
                logits_BV = model.output(state[0])
                probabilities.append((logits_BV.float() / temperature).softmax(-1))
                chosen_B = (choose or _at_random)(probabilities[-1], sample_B, t)
            words_B = chosen_B + EOS
            tokens_ST[sample_B, t] = words_B
            going = (words_B != EOS).nonzero().squeeze(1)
            if len(going) == 0:
                break
            if len(going) < len(words_B):
                words_B, image_B, sample_B = words_B[going], image_B[going], sample_B[going]
                state = tuple(tensor.index_select(0, going) for tensor in state)
    chosen_P = torch.cat([tokens_ST[of_step, t] for t, of_step in enumerate(samples)]) - EOS
    surprise_P = _Surprise.apply(
        torch.cat(outputs),
        model.output.weight,
        model.output.bias,
        torch.cat(probabilities),
        chosen_P,
        temperature,
        logits_BV.dtype,
    )
    return Drawn(tokens_ST, torch.cat(samples), surprise_P)


class _Surprise(torch.autograd.Function):
    """Negative log-probability of the chosen words, from the probabilities they were drawn with.

    The gradient of the logits is (probability - chosen) / temperature, so the projection onto the
    words need not be computed a second time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output_PH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        probability_PV: Tensor,
        chosen_P: Tensor,
        temperature: float,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(output_PH, weight_VH, probability_PV, chosen_P)
        ctx.temperature, ctx.dtype = temperature, dtype
        return -probability_PV.gather(1, chosen_P[:, None]).squeeze(1).log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor | None, ...]:
        output_PH, weight_VH, probability_PV, chosen_P = ctx.saved_tensors
        gradient_P1 = gradient_P[:, None] / ctx.temperature
        to_logits_PV = probability_PV * gradient_P1
        to_logits_PV.scatter_add_(1, chosen_P[:, None], -gradient_P1)
        to_bias_V = to_logits_PV.sum(0)
        to_logits_PV = to_logits_PV.to(ctx.dtype)  # of the products, as under autocast
        to_output_PH = (to_logits_PV @ weight_VH.to(ctx.dtype)).to(output_PH.dtype)
        to_weight_VH = (to_logits_PV.T @ output_PH.to(ctx.dtype)).to(weight_VH.dtype)
        return to_output_PH, to_weight_VH, to_bias_V, None, None, None, None


def _at_random(probability_BV: Tensor, sample_B: Tensor, t: int) -> Tensor:
    return draw_words(probability_BV)
