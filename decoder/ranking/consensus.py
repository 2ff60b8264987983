"""Consensus: choose the candidate caption that agrees best with the other candidates of its image.

The most probable caption maximises the chance of an exact match, but captions never match exactly.
Minimum Bayes risk (Kumar & Byrne 2004) chooses the caption with the highest expected score if the
truth is drawn from the model. The score here is CIDEr-D, and the candidates stand for the model.

Shape suffixes: I images, K candidates of each, T tokens.
"""

from pathlib import Path

import torch
from torch import Tensor

from decoder.cider import CiderD, Frequencies, References, all_words_encoded, whole_captions
from decoder.data.frequencies import count_frequencies as frequencies_streamed
from decoder.generation.generate import Generated
from decoder.runs import checkpoints
from features.errors import UserError
from pipeline.caption_database import SplitImages, load
from pipeline.captions import CaptionTable
from pipeline.vocabulary import EOS, Vocabulary
from pipeline.work import RunFolder

# Softmax temperature of the weights of beams. Beams cover only the top of the distribution, where
# the first would outvote the others. On Flickr8k, 20 beams of a small Up-Down model reach a CIDEr
# of 0.399 at 3, 0.390 at 1 and 0.387 with equal weights. The first of 5 beams reaches 0.383.
BEAM_TEMPERATURE = 3.0


def by_consensus(candidates: Generated, frequencies: Frequencies, sampled: bool) -> Generated:
    """Sort each image's candidates, best first, by how well each agrees with the others.

    The arguments are those of `consensus`.
    """
    return candidates.best_first(consensus(candidates, frequencies, sampled))


def consensus(candidates: Generated, frequencies: Frequencies, sampled: bool) -> Tensor:
    """Return how well each candidate agrees with the other candidates of its image.

    Samples have equal weights, because probable captions are sampled more often. Beams are weighted
    by the softmax of their log-probabilities at `BEAM_TEMPERATURE`.

    Args:
        candidates: captions of each image.
        frequencies: the number of training images in which each n-gram occurs.
        sampled: whether the candidates are samples, not beams.

    Returns:
        float64 [I, K], the mean CIDEr-D from 0 to 10.
    """
    exists_IK = candidates.log_probability_IK > -torch.inf
    weight_IK = (candidates.log_probability_IK.double() / BEAM_TEMPERATURE).softmax(1)
    return expected_cider(candidates, exists_IK.double() if sampled else weight_IK, frequencies)


def expected_cider(candidates: Generated, weight_IK: Tensor, frequencies: Frequencies) -> Tensor:
    """Return the weighted mean CIDEr-D of each candidate against the others of its image.

    Args:
        candidates: captions that end with EOS (or are cut off); an image may have duplicates.
        weight_IK: the weight of each candidate as a reference, not negative.
        frequencies: the number of training images in which each n-gram occurs.

    Returns:
        float64 [I, K], from 0 to 10; 0 where the other candidates have no weight.
    """
    images, count = weight_IK.shape
    captions = [whole_captions(tokens_KT) for tokens_KT in candidates.tokens_IKT.cpu()]
    references = References(dict(enumerate(captions)), frequencies)
    samples = candidates.tokens_IKT.flatten(0, 1)
    image_I = references.rows(torch.arange(images), samples.device)
    both = references.compare(image_I, samples, EOS)
    likeness_IKK = CiderD(references).likeness(both).view(images, count, count)
    # A candidate is not its own reference.
    itself_KK = torch.eye(count, dtype=torch.bool, device=weight_IK.device)
    weight_IKK = weight_IK.double()[:, None].masked_fill(itself_KK, 0)
    total_IK = weight_IKK.sum(2)
    return 10 * (likeness_IKK * weight_IKK).sum(2) / total_IK.where(total_IK > 0, 1)


def frequencies_of(run: RunFolder, vocabulary: Vocabulary) -> Frequencies:
    """Return the document frequencies of a run's training captions.

    An exported captioner has them in a file. For a run they are counted in the captions of its work
    directory.

    Raises:
        UserError: both files are missing, or the file is damaged.
    """
    if run.frequencies.exists():
        return load_frequencies(run.frequencies)
    table = run.work.captions
    if not table.exists():
        raise UserError(
            "--consensus weights words by their rarity in the training captions, but neither "
            f"{run.frequencies} nor {table} exists; use the run in the work directory where it was "
            "trained, or leave out --consensus"
        )
    return count_frequencies(load(table), vocabulary)


def count_frequencies(table: CaptionTable, vocabulary: Vocabulary) -> Frequencies:
    """Count the training images in whose captions each n-gram occurs.

    Raises:
        UserError: the table has no training captions.
    """
    train = table.split("train")
    if isinstance(train, SplitImages):
        return frequencies_streamed(train, vocabulary)
    images = [image for image in train if image.captions]
    if not images:
        raise UserError("--consensus needs training captions, but no training image has one")
    return References(all_words_encoded(images, vocabulary)).frequencies


def save_frequencies(frequencies: Frequencies, path: Path) -> None:
    """Write document frequencies to `path` atomically, 12 bytes for each n-gram."""
    tensors = {"ngram": frequencies.key_U, "images": frequencies.images_U.int()}
    checkpoints.save(path, tensors, {"images": frequencies.images})


def load_frequencies(path: Path) -> Frequencies:
    """Read document frequencies.

    Raises:
        UserError: the file is missing or damaged.
    """
    tensors, header = checkpoints.load(path, torch.device("cpu"))
    try:
        images, key_U, images_U = int(header["images"]), tensors["ngram"], tensors["images"].long()
        if key_U.dtype != torch.int64 or key_U.ndim != 1 or key_U.shape != images_U.shape:
            raise ValueError("expected one count for each n-gram, both as integers")
        if not (key_U[1:] > key_U[:-1]).all() or not ((images_U > 1) & (images_U <= images)).all():
            raise ValueError(f"expected ascending n-grams, each of 2 to {images} images")
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not hold document frequencies ({error!r}); copy the original file again"
        ) from error
    return Frequencies(key_U, images_U, images)
