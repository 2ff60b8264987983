"""Bootstrap confidence intervals over images for corpus scores (Efron, 1979, percentile method).

BLEU and METEOR of a corpus are not means over images, so their statistics are resampled and the
corpus score is computed from the sums. CIDEr, ROUGE-L and SPICE are means. The document frequencies
of CIDEr stay those of all references, so its interval is that of the mean, not of the weights.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from evaluation.toolkit import Scores

Floats = NDArray[np.float64]

_BLOCK = 100  # resamples at a time, so that 40,000 images need 32 MB


def intervals(
    scores: Scores, resamples: int, seed: int, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Return the lower and upper bound of each corpus score of `scores`.

    A score that is NaN has NaN bounds.
    """
    values = resampled(scores, resamples, seed)
    return {name: interval(of_resample, confidence) for name, of_resample in values.items()}


def resampled(scores: Scores, resamples: int, seed: int) -> dict[str, Floats]:
    """Return each corpus score [R] of `resamples` resamples of the images; none for 0 of them.

    The same images come in each resample for every model's scores of the same images under the same
    seed, so that differences of the results are paired.
    """
    blocks = [resample(scores, counts) for counts in _draws(len(scores.tokens), resamples, seed)]
    names = scores.corpus if blocks else ()
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def interval(values: Floats, confidence: float = 0.95) -> tuple[float, float]:
    """Return the bounds between which the middle `confidence` of resampled values [R] lies."""
    low, high = np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def resample(scores: Scores, counts: NDArray[np.int64]) -> dict[str, Floats]:
    """Return the corpus scores [R] of resamples that hold image i `counts[r, i]` times.

    `counts` is int64 [R, N]; a row of ones gives the corpus scores themselves.
    """
    values = {}
    if "Bleu" in scores.statistics:
        columns = bleu(counts @ scores.statistics["Bleu"]).T
        values = {f"Bleu_{n}": column for n, column in enumerate(columns, 1)}
    for name, of_image in scores.per_image.items():
        if name == "METEOR":
            values[name] = meteor(counts @ countable(scores.statistics[name]))
        elif name not in values:
            values[name] = counts @ np.array(list(of_image.values())) / counts.sum(axis=1)
    return values


def bleu(sums: NDArray[np.int64]) -> Floats:
    """Return BLEU-1 to 4 [..., 4] of summed statistics [..., 10] (see `evaluation.toolkit.Scores`).

    The small constants are those of the toolkit's `BleuScorer`.
    """
    length, reference, guesses, matches = np.split(sums, [1, 2, 6], axis=-1)
    precision = np.cumprod((matches + 1e-15) / (guesses + 1e-9), axis=-1)
    ratio = (length + 1e-15) / (reference + 1e-9)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return precision ** (1 / np.arange(1, 5)) * brevity


def countable(statistics: Floats) -> Floats:
    """Return METEOR's statistics [N, 23] as its jar adds them up over a corpus.

    A caption that matches its reference word for word has no fragmentation, so its one chunk does
    not count.
    """
    statistics = statistics.copy()
    statistics[_identical(statistics), 20] = 0
    return statistics


def meteor(sums: Floats) -> Floats:
    """Return METEOR 1.5 [...] of summed statistics [..., 23], with its parameters for English.

    The statistics are the lengths of caption and reference, how many of these words are function
    words; then for each of the modules exact, stem, synonym and paraphrase the matched content
    words of caption and reference and the matched function words of both; then the chunks and the
    matched words of caption and reference. From Denkowski and Lavie, "Meteor Universal" (2014).
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.array([1.0, 0.6, 0.8, 0.6])
    lengths, functions = sums[..., 0:2], sums[..., 2:4]
    modules = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # module, kind, side
    matched = np.einsum("m,k,...mks->...s", weights, [delta, 1 - delta], modules)
    weighted_length = delta * (lengths - functions) + (1 - delta) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / weighted_length, -1, 0)
        f_mean = 1 / ((1 - alpha) / precision + alpha / recall)
        fragmentation = sums[..., 20] / (sums[..., 21:23].sum(axis=-1) / 2)
    fragmentation = np.where(_identical(sums), 0, fragmentation)
    return np.nan_to_num(f_mean * (1 - gamma * fragmentation**beta))


def _identical(statistics: Floats) -> NDArray[np.bool_]:
    all_matched = (statistics[..., 0:2] == statistics[..., 21:23]).all(axis=-1)
    return all_matched & (statistics[..., 20] == 1)


def _draws(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    chances = np.full(images, 1 / images)
    for start in range(0, resamples, _BLOCK):
        yield generator.multinomial(images, chances, size=min(_BLOCK, resamples - start))
