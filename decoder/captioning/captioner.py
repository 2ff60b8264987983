"""A trained run, or an ensemble of runs, as a captioner: from features to candidate captions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from decoder.data.batches import Features, pack, pad
from decoder.data.pictures import MANY, backbone_of
from decoder.generation.constraints import constraints
from decoder.generation.ensemble import Ensemble, of_view
from decoder.generation.generate import LanguageModel, generate
from decoder.generation.options import GenerateOptions
from decoder.ranking.consensus import by_consensus, frequencies_of
from decoder.ranking.embedding_file import provenance
from decoder.ranking.novelty import Novelty
from decoder.ranking.reranker import Reranker
from decoder.runs.loading import load_decoder
from features.backbones import Backbone
from features.commands import EXPORT
from features.errors import UserError, first_few
from features.files import read_json
from features.labels import Label, Labels
from features.store import differences, fingerprint
from pipeline.vocabulary import EOS, Vocabulary
from pipeline.work import RunFolder

Runs = Sequence[tuple[RunFolder, Path]]
"""Runs, or captioners exported from runs, each with the weights to use."""


class Candidate(NamedTuple):
    """A caption of an image as the decoder generated it."""

    ids: list[int]
    """The ids of its words, without EOS."""
    text: str
    """Plain lower-case text."""
    log_probability: float
    """Natural logarithm of the probability of its words and EOS."""
    scores: Mapping[str, float] = {}
    """What else speaks for or against it, by name: the scores of the reranker, and the novelty of
    its picture, if the captioner has them."""


class Captioner:
    """The decoder of a run, or an ensemble of the decoders of several runs.

    Args:
        runs: the runs and their weights. The vocabulary, document frequencies and reranker of the
            first one are used.
        options: how captions are generated and chosen.
        device: where to compute.

    Attributes:
        run: the first run.
        models: the decoder of each run.
        vocabulary: the vocabulary that the runs share.
        config: the first run's config.json.
        options: as above.

    Raises:
        UserError: a run's files are missing, broken or do not belong together; or the runs differ
            in their vocabulary or in the features that they were trained on.
    """

    def __init__(self, runs: Runs, options: GenerateOptions, device: torch.device) -> None:
        loaded = [load_decoder(run, weights, device) for run, weights in runs]
        self.models = [model for model, _, _ in loaded]
        _, self.vocabulary, self.config = loaded[0]
        self.run = runs[0][0]
        for (run, _), (_, vocabulary, config) in zip(runs[1:], loaded[1:], strict=True):
            _expect_compatible(self.run, self.vocabulary, self.config, run, vocabulary, config)
        single = len(loaded) == 1 and options.views == 1
        self._model: LanguageModel[Any] = (
            self.models[0] if single else Ensemble(self.models, options.views)
        )
        self.options = options
        self._device = device
        self._backbone: Backbone | None = None
        self._backbone_for = 0
        self._max_length = options.max_length or self.vocabulary.max_length
        self._forbidden = constraints(options, self.vocabulary, self._max_length)
        self._frequencies = frequencies_of(self.run, self.vocabulary) if options.consensus else None
        self._reranker = None
        if options.rerank:
            self._reranker = Reranker.of(self.run, self.vocabulary, self.config["features"])
        self._novelty = None
        if self.run.novelty.exists():
            features = self.config["features"]
            belongs_to = provenance(self.vocabulary, fingerprint(features))
            self._novelty = Novelty.load(self.run.novelty, belongs_to, features["channels"])

    def caption(self, features: Features) -> list[Candidate]:
        """Return the best caption of each image of a batch; see `captions` for the arguments."""
        return [candidates[0] for candidates in self.captions(features)]

    def captions(self, features: Features) -> list[list[Candidate]]:
        """Return the `options.captions` best captions of each image of a batch, the best first.

        The captions of an image all differ. There are fewer if generation finds fewer, but at least
        one.

        Args:
            features: `options.views` rows for each image, one for each view, contiguous.
        """
        drawn = self.options.sample
        generated = generate(
            self._model, features.to(self._device), self.options, self._max_length, self._forbidden
        )
        scores: dict[str, torch.Tensor] = {}
        if self._reranker is not None:
            generated, reranked = self._reranker(generated, features, self.options.views, drawn)
            scores = {name.removesuffix("_IK"): score for name, score in reranked._asdict().items()}
        elif self._frequencies is not None:
            generated = by_consensus(generated, self._frequencies, drawn)
        elif drawn:
            order_IK = generated.log_probability_IK.argsort(1, descending=True)
            generated = generated.reordered(order_IK)
        if self._novelty is not None:
            whole = of_view(features, 0, self.options.views)
            novelty_I = self._novelty.of(whole.pooled_IC.cpu())
            scores["novelty"] = novelty_I[:, None].expand_as(generated.log_probability_IK)
        tokens, log_probabilities = (
            generated.tokens_IKT.tolist(),
            generated.log_probability_IK.tolist(),
        )
        values = {name: score_IK.tolist() for name, score_IK in scores.items()}
        return [
            self._distinct(
                tokens[i], log_probabilities[i], {name: of[i] for name, of in values.items()}
            )
            for i in range(len(tokens))
        ]

    def _distinct(
        self,
        tokens: list[list[int]],
        log_probabilities: list[float],
        scores: Mapping[str, list[float]],
    ) -> list[Candidate]:
        """Return the first `options.captions` distinct captions of an image."""
        candidates: dict[str, Candidate] = {}
        for k, (ids, log_probability) in enumerate(zip(tokens, log_probabilities, strict=True)):
            text = self.vocabulary.decode(ids)
            # An unused beam has probability 0.
            if text not in candidates and (log_probability > -math.inf or not candidates):
                own = {name: of[k] for name, of in scores.items()}
                candidates[text] = Candidate(self.vocabulary.strip(ids), text, log_probability, own)
        return list(candidates.values())[: self.options.captions]

    @property
    def attends(self) -> bool:
        """Whether a model attends to regions."""
        return any(model.attends for model in self.models)

    @torch.inference_mode()
    def attention(self, features: Features, captions: Sequence[Candidate]) -> np.ndarray:
        """Return the attention weights over the regions at each word of a caption of each image.

        They are the mean over the models that attend. Only the first view is used, which is the
        whole picture: the regions of a crop lie elsewhere.

        Args:
            features: see `captions`.
            captions: one caption for each image.

        Returns:
            float32 [images, words of the longest caption and EOS, regions], zero after EOS.

        Raises:
            ValueError: no model attends.
        """
        if not self.attends:
            raise ValueError("this model does not attend to regions")
        whole = of_view(features, 0, self.options.views).to(self._device)
        # EOS is included so that an empty caption is no special case; callers ignore its weights.
        tokens_IT = pad([[*caption.ids, EOS] for caption in captions]).to(self._device)
        words = pack(tokens_IT, torch.arange(len(captions), device=self._device))
        attending = [model for model in self.models if model.attends]
        weights = [
            torch.cat([weights_BR for _, weights_BR in model.read(model.encode(whole), words)])
            for model in attending
        ]
        mean_PR = torch.stack(weights).mean(0).cpu().numpy()
        attention_ITR = np.zeros((*tokens_IT.shape, mean_PR.shape[1]), dtype=np.float32)
        step_P = np.repeat(np.arange(len(words.alive)), words.alive)
        attention_ITR[words.caption_P.cpu().numpy(), step_P] = mean_PR
        return attention_ITR

    def labels(self, features: Features) -> list[list[Label]]:
        """Return the classes that the CNN sees in each image, if it has any; see `Labels.best`.

        Args:
            features: see `captions`.
        """
        whole = of_view(features, 0, self.options.views)
        known = self._labels
        return [[]] * len(whole.pooled_IC) if known is None else known.best(whole.pooled_IC)

    @cached_property
    def _labels(self) -> Labels | None:
        return Labels.of(self.config["features"])

    def backbone(self, pictures: int = 1) -> Backbone:
        """Return the CNN whose features the run was trained on; see `backbone_of`.

        It is kept, and loaded again only if a faster backend pays for the number of pictures.
        """
        if self._backbone is None or self._backbone_for < MANY <= pictures:
            # A network draws its first weights, although the published ones replace them.
            with torch.random.fork_rng(devices=[]):
                self._backbone = backbone_of(self.config["features"], self._device, pictures)
            self._backbone_for = pictures
        return self._backbone


def _expect_compatible(
    first: RunFolder,
    first_vocabulary: Vocabulary,
    first_config: dict[str, Any],
    run: RunFolder,
    vocabulary: Vocabulary,
    config: dict[str, Any],
) -> None:
    """Raise UserError, naming the difference, unless two runs can form an ensemble."""
    if vocabulary.words != first_vocabulary.words:
        missing = [word for word in first_vocabulary.words if word not in vocabulary.ids]
        added = [word for word in vocabulary.words if word not in first_vocabulary.ids]
        difference = "the order of the words differs"
        if missing or added:
            difference = (
                f"only the first has {first_few(missing) or 'no word'}, only the second has "
                f"{first_few(added) or 'no word'}"
            )
        raise UserError(
            f"{first.path} and {run.path} cannot form an ensemble: expected the same vocabulary, "
            f"but {difference}; train both on the same work directory"
        )
    wanted, found = first_config["features"], config["features"]
    if fingerprint(found) != fingerprint(wanted):
        raise UserError(
            f"{first.path} and {run.path} cannot form an ensemble: they were trained on different "
            f"features: {differences(wanted, found)}; train both on the same work directory"
        )


def input_files(runs: Runs, options: GenerateOptions) -> list[Path]:
    """Return the files of the runs that determine their captions.

    With `--rerank` in a work directory its feature store matters too, but is not listed.
    """
    files = [file for run, weights in runs for file in (weights, run.config, run.vocabulary)]
    if options.consensus or options.rerank:
        run = runs[0][0]
        exported = [run.frequencies, run.expectation, run.embedding]
        files += [file for file in exported if file.exists()] or [run.work.captions]
    return files


def default_generation(run: RunFolder, options: GenerateOptions | None = None) -> GenerateOptions:
    """Enable reranking if the run supports it and `options` do not choose another method.

    A beam width counts as choosing another method.

    Raises:
        UserError: the run is a captioner that reranks, but has lost what it reranks by.
    """
    options = options or GenerateOptions()
    chosen = options.sample or options.consensus or options.groups > 1 or options.beam is not None
    can_rerank = run.expectation.exists()
    if not can_rerank and run.captioner.exists():
        about = read_json(run.captioner, EXPORT)
        if isinstance(about, dict) and about.get("reranks"):
            raise UserError(
                f"{run.expectation} is not there, by which this captioner chooses its captions; "
                "copy the whole original folder again"
            )
    return replace(options, rerank=True) if can_rerank and not chosen else options
