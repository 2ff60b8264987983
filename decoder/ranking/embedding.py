"""A joint embedding of pictures and sentences: the first, cheap pass of the search.

Shape suffixes: N images, V views, C channels, B pairs in a batch, T tokens, D of the embedding.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from decoder.data.batches import Features, pad
from decoder.data.readers import SplitReader
from decoder.runs import checkpoints
from decoder.runs.folder import digest
from features.commands import SEARCH
from features.errors import UserError
from features.store import FeatureStore
from pipeline import captions as tables
from pipeline.vocabulary import EOS, Vocabulary
from pipeline.work import RunFolder, WorkFolder

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
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            averaged.update_parameters(model)
            progress(step + 1, steps)
        model.load_state_dict(averaged.module.state_dict())
        return model.eval()


def _running_average(average: Tensor, current: Tensor, before: Tensor | int) -> Tensor:
    """Return the next average; the first ones count less than `AVERAGE` would let them."""
    return torch.lerp(average, current, max(1 - AVERAGE, 9 / (10 + int(before))))


# So many other images; each is read with every caption that the decoder looks at.
OTHERS = 20


_BLOCK = 1000


_PREFIX = "others."


class Embedding(NamedTuple):
    """A joint embedding, and what the decoder is shown for no image in particular."""

    model: JointEmbedding
    others: Features
    """Of some training images, to tell how likely a caption is whatever the picture."""
    file: Path


def embedding_of(
    run: RunFolder, work: WorkFolder, vocabulary: Vocabulary, fingerprint: str
) -> Embedding:
    """Load the embedding that fits a run, or learn and keep it: some minutes, once.

    It is the one in the run's folder, if that is an exported captioner which has one; else that of
    the run's own work directory; else that of `work`.

    Args:
        run: the run or captioner.
        work: the work directory to be searched.
        vocabulary: the run's.
        fingerprint: of the features that the run was trained on.

    Raises:
        UserError: there are no training captions to learn from, or a file is damaged.
    """
    own = run.embedding
    if own.exists():
        known = {"vocabulary": digest(vocabulary.words), "fingerprint": fingerprint}
        if found := _load(own, known, vocabulary):
            return found
        raise UserError(
            f"{own} is not the run's; copy the whole folder again from where it is from"
        )
    source = run.work if run.work.captions.exists() else work
    table_file = source.captions
    nothing = (
        f"a search is learnt from training captions, and neither {run.path} nor {work} has any; "
        "name a run that still lies in the work directory it was trained in, or a captioner of "
        "decoder.export --search"
    )
    if not table_file.exists():
        raise UserError(nothing)
    made_of = {
        "vocabulary": digest(vocabulary.words),
        "fingerprint": fingerprint,
        "captions": hashlib.sha256(table_file.read_bytes()).hexdigest(),
    }
    file = source.search / run.embedding.name
    if found := _load(file, made_of, vocabulary):
        return found
    table = tables.load(table_file)
    if not any(image.split == "train" and image.captions for image in table.images):
        raise UserError(nothing)
    store = FeatureStore(source.features)
    store.expect(fingerprint, f"the run {run.path}")
    reader = SplitReader(store, table, "train")
    model = _learn(store, reader, vocabulary)
    others = reader.features(
        np.unique(np.linspace(0, len(reader) - 1, OTHERS).astype(int)).tolist()
    )
    tensors = model.state_dict()
    # 16 bits, as they are stored.
    tensors |= {_PREFIX + name: part.half() for name, part in others._asdict().items()}
    checkpoints.save(file, tensors, made_of)
    return Embedding(model, others, file)


def _load(file: Path, made_of: dict[str, str], vocabulary: Vocabulary) -> Embedding | None:
    """Return what `file` holds, or None if it is not there or made of something else."""
    if not file.exists():
        return None
    tensors, header = checkpoints.load(file, torch.device("cpu"), SEARCH)
    if not isinstance(header, dict) or any(header.get(k) != v for k, v in made_of.items()):
        return None
    try:
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        grid, pooled = (tensors.pop(_PREFIX + name) for name in Features._fields)
        model = JointEmbedding(len(vocabulary), len(tensors["mean_C"]))
        model.load_state_dict(tensors)
        if grid.ndim != 3 or not len(grid) or pooled.shape != grid[:, 0].shape:
            raise ValueError(f"features of {tuple(grid.shape)} and {tuple(pooled.shape)}")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error!r:.200}); delete it") from error
    return Embedding(model.eval(), Features(grid, pooled), file)


def _learn(store: FeatureStore, reader: SplitReader, vocabulary: Vocabulary) -> JointEmbedding:
    told = [image for image in reader.images if image.captions]
    rows = store.rows([image.id for image in told])
    views = len(store.row_format.views)
    shape = (len(rows), views, store.row_format.channels)
    # 16 bits, as they are stored: all training images at once, 2.5 kB a view.
    pooled_NVC = torch.empty(shape, dtype=torch.float16)
    for start in range(0, len(rows), _BLOCK):
        for view in range(views):
            block = rows[start : start + _BLOCK]
            read = store.pooled(block, np.full(len(block), view))
            pooled_NVC[start : start + _BLOCK, view] = torch.from_numpy(read).half()
    captions = [[vocabulary.encode(c.tokens) for c in image.captions] for image in told]
    with tqdm(desc="learn to search", unit="step", disable=None) as bar:

        def progress(step: int, steps: int) -> None:
            bar.total = steps
            bar.update()

        return learn(pooled_NVC, captions, len(vocabulary), progress)


def blocks(rows: np.ndarray) -> Sequence[np.ndarray]:
    """Divide rows of the store into blocks that are read at once."""
    return [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
