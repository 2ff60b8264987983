"""A trained run, or several, as a captioner: from stored features or new pictures to captions."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from decoder.data.batches import Features, pack, pad
from decoder.data.pictures import as_stored, backbone_of
from decoder.generation.constraints import constraints
from decoder.generation.ensemble import Ensemble, of_view
from decoder.generation.generate import Writer, generate
from decoder.generation.options import GenerateOptions
from decoder.ranking.consensus import by_consensus, frequencies_of
from decoder.ranking.reranker import Reranker
from decoder.runs.loading import load_decoder
from features.backbones import Backbone
from features.errors import UserError, first_few
from features.images import PictureError, read_picture
from features.store import differences, fingerprint
from features.views import VIEWS
from pipeline.vocabulary import EOS, Vocabulary
from pipeline.work import RunFolder


class Captioned(NamedTuple):
    """A caption: its words' ids, its plain lower-case text, its natural log-probability."""

    ids: list[int]
    text: str
    log_probability: float


class Captioner:
    """The decoder of a run, or those of several runs as an ensemble, and how they are to write.

    Args:
        runs: the runs and the weights to take of each. The first one's vocabulary and document
            frequencies are used.
        options: how to write.
        device: where to run.

    Raises:
        UserError: a run's files are missing, broken or do not belong together; or the runs differ
            in their vocabulary or in the features that they were trained on.
    """

    def __init__(
        self,
        runs: Sequence[tuple[RunFolder, Path]],
        options: GenerateOptions,
        device: torch.device,
    ) -> None:
        loaded = [load_decoder(run, weights, device) for run, weights in runs]
        self.models = [model for model, _, _ in loaded]
        _, self.vocabulary, self.config = loaded[0]
        (first, _), *others = runs
        for (run, _), (_, vocabulary, config) in zip(others, loaded[1:], strict=True):
            _expect_alike(first, self.vocabulary, self.config, run, vocabulary, config)
        single = len(loaded) == 1 and options.views == 1
        self.model: Writer[Any] = self.models[0] if single else Ensemble(self.models, options.views)
        self.options = options
        self.device = device
        self.max_length = options.max_length or self.vocabulary.max_length
        self._forbidden = constraints(options, self.vocabulary, self.max_length)
        self._frequencies = frequencies_of(first, self.vocabulary) if options.consensus else None
        self._reranker = None
        if options.rerank:
            self._reranker = Reranker.of(first, self.vocabulary, self.config["features"])

    def caption(self, features: Features) -> list[Captioned]:
        """Write a caption for each image of a batch.

        Args:
            features: of `options.views` views of each image, which stand together.
        """
        return [several[0] for several in self.captions(features)]

    def captions(self, features: Features) -> list[list[Captioned]]:
        """Write `options.captions` captions for each image of a batch, the best first.

        No two of an image are the same; there are fewer if fewer different ones were found, and
        always one. Args as `caption`.
        """
        found = generate(
            self.model, features.to(self.device), self.options, self.max_length, self._forbidden
        )
        if self._reranker is not None:
            found = self._reranker(found, features, self.options.views, self.options.sample)
        elif self._frequencies is not None:
            found = by_consensus(found, self._frequencies, self.options.sample)
        elif self.options.sample:
            found = found.reordered(found.log_probability_IK.argsort(1, descending=True))
        return [
            self._different(tokens, log_probabilities)
            for tokens, log_probabilities in zip(
                found.tokens_IKT.tolist(), found.log_probability_IK.tolist(), strict=True
            )
        ]

    def _different(
        self, tokens: list[list[int]], log_probabilities: list[float]
    ) -> list[Captioned]:
        """Return the first captions of an image that differ, as many as are asked for."""
        captions: dict[str, Captioned] = {}
        for ids, log_probability in zip(tokens, log_probabilities, strict=True):
            text = self.vocabulary.decode(ids)
            # A beam that found no caption has no probability.
            if text not in captions and (log_probability > -math.inf or not captions):
                captions[text] = Captioned(self.vocabulary.strip(ids), text, log_probability)
        return list(captions.values())[: self.options.captions]

    @property
    def attends(self) -> bool:
        """Whether a model attends to regions."""
        return any(model.attends for model in self.models)

    @torch.inference_mode()
    def attention(self, features: Features, captions: Sequence[Captioned]) -> np.ndarray:
        """Return where the models look as they write each word of captions, one for each image.

        It is the mean over those that attend, and of the whole picture, which is the first view:
        the regions of a crop lie elsewhere.

        Args:
            features: as for `caption`.
            captions: one for each image.

        Returns:
            float32 [images, words of the longest caption and EOS, regions], zero after EOS.

        Raises:
            ValueError: no model attends.
        """
        if not self.attends:
            raise ValueError("this model does not attend to regions")
        whole = of_view(features, 0, self.options.views).to(self.device)
        # With EOS, so that an empty caption is no special case; callers look at the words only.
        tokens_IT = pad([[*caption.ids, EOS] for caption in captions]).to(self.device)
        words = pack(tokens_IT, torch.arange(len(captions), device=self.device))
        attending = [model for model in self.models if model.attends]
        weights = [
            torch.cat([weights_BR for _, weights_BR in model.read(model.encode(whole), words)])
            for model in attending
        ]
        mean_PR = torch.stack(weights).mean(0).cpu().numpy()
        looked_ITR = np.zeros((*tokens_IT.shape, mean_PR.shape[1]), dtype=np.float32)
        step_P = np.repeat(np.arange(len(words.alive)), words.alive)
        looked_ITR[words.caption_P.cpu().numpy(), step_P] = mean_PR
        return looked_ITR

    def backbone(self, pictures: int = 1) -> Backbone:
        """Load the CNN that made the features which the run was trained on; see `backbone_of`."""
        return backbone_of(self.config["features"], self.device, pictures)


def _expect_alike(
    first: RunFolder,
    first_vocabulary: Vocabulary,
    first_config: dict[str, Any],
    run: RunFolder,
    vocabulary: Vocabulary,
    config: dict[str, Any],
) -> None:
    """Raise UserError unless two runs can write together, naming in what they differ."""
    if vocabulary.words != first_vocabulary.words:
        only = [w for w in first_vocabulary.words if w not in vocabulary.ids]
        strange = [w for w in vocabulary.words if w not in first_vocabulary.ids]
        raise UserError(
            f"{first.path} and {run.path} cannot write together: their vocabularies differ. Only "
            f"the first has {first_few(only) or 'no word'}, only the second "
            f"{first_few(strange) or 'no word'}"
            f"{'' if only or strange else '; the order of the words differs'}; train both on one "
            "work directory"
        )
    wanted, found = first_config["features"], config["features"]
    if fingerprint(found) != fingerprint(wanted):
        raise UserError(
            f"{first.path} and {run.path} cannot write together: they were trained on other "
            f"features: {differences(wanted, found)}; train both on one work directory"
        )


def caption_pictures(
    captioner: Captioner, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, list[Captioned] | PictureError]]:
    """Yield each picture's captions, or why it cannot be read, in the order of `paths`.

    Pictures are decoded by threads, a batch at a time; a picture that cannot be read does not stop
    the others.
    """
    backbone = captioner.backbone(len(paths) * captioner.options.views)
    views = VIEWS[: captioner.options.views]

    def read(path: Path) -> torch.Tensor | Features | PictureError:
        try:
            pixels = backbone.views(read_picture(path), views)
        except PictureError as error:
            return error
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return as_stored(backbone, [images]) if backbone.one_by_one else images

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            chosen = paths[start : start + batch_size]
            seen = list(pool.map(read, chosen))
            parts = [one for one in seen if isinstance(one, Features)]
            if pictures := [one for one in seen if isinstance(one, torch.Tensor)]:
                parts = [as_stored(backbone, pictures)]
            captions: Iterator[list[Captioned]] = iter(())
            if parts:
                features = Features(*(torch.cat(each) for each in zip(*parts, strict=True)))
                captions = iter(captioner.captions(features))
            for path, one in zip(chosen, seen, strict=True):
                yield path, one if isinstance(one, PictureError) else next(captions)


def usual_writing(run: RunFolder, options: GenerateOptions | None = None) -> GenerateOptions:
    """Return `options` with how a run or captioner chooses if they do not say: as well as it can.

    A width of the beam, too, says how to choose.
    """
    options = options or GenerateOptions()
    told = options.sample or options.consensus or options.groups > 1 or options.beam is not None
    able = run.expectation.exists()
    return options if told or not able else replace(options, rerank=True)
