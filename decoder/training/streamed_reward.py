"""The reward of REINFORCE for captions in a database: references are read with each batch."""

from torch import Tensor

from decoder.cider import CiderD, References
from decoder.data.frequencies import count_frequencies, encode_all_words
from decoder.training.rewards import Bleu4
from features.progress import track
from pipeline.caption_database import SplitImages
from pipeline.vocabulary import Vocabulary


class StreamedReward:
    """The reward of `decoder.training.rewards.MixedReward`, in less memory.

    Only the document frequencies of the n-grams that two training images share are kept.

    Args:
        images: the training images.
        vocabulary: of the captions.
        bleu_weight: share of BLEU-4, from 0 to 1.
    """

    def __init__(self, images: SplitImages, vocabulary: Vocabulary, bleu_weight: float) -> None:
        self._images = images
        self._vocabulary = vocabulary
        self._bleu_weight = bleu_weight
        self._frequencies = count_frequencies(track(images, "count n-grams", "image"), vocabulary)

    def __call__(self, image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
        """Reward samples; arguments, result and errors are those of `CiderD.__call__`."""
        images = self._images.with_ids(image_ids.tolist())
        captions = encode_all_words(images, self._vocabulary)
        by_id = {image.id: of_image for image, of_image in zip(images, captions, strict=True)}
        references = References(by_id, self._frequencies)
        reward = CiderD(references)(image_ids, samples, eos)
        if self._bleu_weight > 0:
            bleu = 10 * Bleu4(references)(image_ids, samples, eos)
            reward = (1 - self._bleu_weight) * reward + self._bleu_weight * bleu
        return reward
