"""A trained run as a captioner: from stored features, or from new pictures, to captions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from decoder.batches import Features, pack, pad
from decoder.generate import generate
from decoder.options import GenerateOptions
from decoder.runs import RunFolder, load_decoder
from features.backbones import Backbone, load_backbone
from features.errors import UserError
from features.images import PictureError, read_picture
from features.store import differences, fingerprint, to_float16
from pipeline.vocabulary import EOS


class Captioned(NamedTuple):
    """A caption: its words' ids, its plain lower-case text, its natural log-probability."""

    ids: list[int]
    text: str
    log_probability: float


class Captioner:
    """The decoder of a run, and how it is to write.

    Raises:
        UserError: the run's files are missing, broken or do not belong together.
    """

    def __init__(
        self, run: RunFolder, weights: Path, options: GenerateOptions, device: torch.device
    ) -> None:
        self.model, self.vocabulary, self.config = load_decoder(run, weights, device)
        self.options = options
        self.device = device
        self.max_length = options.max_length or self.vocabulary.max_length

    def caption(self, features: Features) -> list[Captioned]:
        """Write a caption for each image of a batch."""
        found = generate(self.model, features.to(self.device), self.options, self.max_length)
        first_IT, log_probability_I = found.tokens_IKT[:, 0], found.log_probability_IK[:, 0]
        return [
            Captioned(self.vocabulary.strip(ids), self.vocabulary.decode(ids), log_probability)
            for ids, log_probability in zip(
                first_IT.tolist(), log_probability_I.tolist(), strict=True
            )
        ]

    @torch.inference_mode()
    def attention(self, features: Features, captions: Sequence[Captioned]) -> np.ndarray:
        """Return where the model looks as it writes each word of captions, one for each image.

        Returns:
            float32 [images, words of the longest caption and EOS, regions], zero after EOS.

        Raises:
            ValueError: the model does not attend.
        """
        if not self.model.attends:
            raise ValueError("this model does not attend to regions")
        # With EOS, so that an empty caption is no special case; callers look at the words only.
        tokens_IT = pad([[*caption.ids, EOS] for caption in captions]).to(self.device)
        words = pack(tokens_IT, torch.arange(len(captions), device=self.device))
        memory = self.model.encode(features.to(self.device))
        weights = [weights_BR for _, weights_BR in self.model.read(memory, words)]
        looked_ITR = np.zeros((*tokens_IT.shape, weights[0].shape[1]), dtype=np.float32)
        step_P = np.repeat(np.arange(len(words.alive)), words.alive)
        looked_ITR[words.caption_P.cpu().numpy(), step_P] = torch.cat(weights).cpu().numpy()
        return looked_ITR

    def backbone(self) -> Backbone:
        """Load the CNN that made the features which the run was trained on.

        Raises:
            UserError: the CNN here has other weights or another transform.
        """
        wanted = self.config["features"]
        backbone = load_backbone(wanted["backbone"], wanted["grid"][0], self.device)
        if fingerprint(backbone.description) != self.config["fingerprint"]:
            raise UserError(
                f"the run was trained on features of another {wanted['backbone']}: "
                f"{differences(wanted, backbone.description)}; install the version that made them"
            )
        return backbone


def caption_pictures(
    captioner: Captioner, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, Captioned | PictureError]]:
    """Yield each picture's caption, or why it cannot be read, in the order of `paths`.

    Pictures are decoded by threads, a batch at a time; a picture that cannot be read does not stop
    the others.
    """
    backbone = captioner.backbone()

    def read(path: Path) -> torch.Tensor | PictureError:
        try:
            return backbone.transform(read_picture(path))
        except PictureError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), batch_size):
            chosen = paths[start : start + batch_size]
            pictures = list(pool.map(read, chosen))
            readable = [picture for picture in pictures if isinstance(picture, torch.Tensor)]
            captions: Iterator[Captioned] = iter(())
            if readable:
                captions = iter(captioner.caption(Features(*_stored(backbone, readable))))
            for path, picture in zip(chosen, pictures, strict=True):
                yield path, picture if isinstance(picture, PictureError) else next(captions)


def _stored(backbone: Backbone, pictures: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return features as they would come from the store, which keeps 16 bits of each."""
    features = backbone.features(torch.stack(pictures))
    return [torch.from_numpy(to_float16(f.cpu().numpy())).float() for f in features]
