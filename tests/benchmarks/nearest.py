"""The index of a search compared with comparing all vectors: recall, time and size.

    .venv/bin/python -m tests.benchmarks.nearest --work WORK --count 1000000

WORK is a work directory whose features the included captioner was trained on. Its pictures are
vectors of the embedding; repeated, with noise of their own covariance, they are `count` vectors.
Their nearest neighbours are then about as near as those of the pictures. Queries are captions of
the validation and test pictures, and single words of them. One thread unless OMP_NUM_THREADS says
otherwise; an hour for a million vectors.
"""

import os
import resource
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from decoder.data.batches import pad
from decoder.ranking.embedding_file import Embedding, blocks, load, provenance
from decoder.ranking.nearest import Index, nearest
from decoder.ranking.queries import is_content
from decoder.runs.loading import load_description
from decoder.runs.packaged import packaged_captioner
from features.store import STORED, FeatureStore, fingerprint
from pipeline import captions as tables
from pipeline.vocabulary import Vocabulary
from pipeline.work import RunFolder, WorkFolder

NOISE = 0.7  # standard deviations of the pictures' own distribution
QUERIES, RESULTS, BLOCK = 1000, 10, 20_000


def pictures(store: FeatureStore, embedding: Embedding) -> Tensor:
    """Return the vectors of all stored images, float32 [n, D]."""
    rows = np.flatnonzero(store.status == STORED)
    with torch.inference_mode():
        parts = [embedding.model.pictures(torch.from_numpy(store.pooled(b))) for b in blocks(rows)]
        return torch.cat(parts)


def sentences(work: WorkFolder, embedding: Embedding, vocabulary: Vocabulary) -> Tensor:
    """Return the vectors of the queries, float32 [Q, D]: half captions, half words of captions."""
    table = tables.load(work.captions)
    captions = [
        caption.tokens
        for image in table.images
        if image.split in ("val", "test")
        for caption in image.captions
    ]
    random = np.random.default_rng(0)
    chosen = [captions[i] for i in random.permutation(len(captions))[:QUERIES]]
    known = [[w for w in words if w in vocabulary.ids and is_content(w)] for words in chosen]
    usable = [(words, of_them) for words, of_them in zip(chosen, known, strict=True) if of_them]
    queries = [
        words if number % 2 else [of_them[int(random.integers(len(of_them)))]]
        for number, (words, of_them) in enumerate(usable)
    ]
    with torch.inference_mode():
        return torch.cat(
            [embedding.model.sentences(pad([vocabulary.encode(words)])) for words in queries]
        )


def write_many(picture_nD: Tensor, count: int, file: Path) -> Tensor:
    """Write `count` vectors like the pictures' to a file, and return them memory-mapped."""
    torch.manual_seed(0)
    size = picture_nD.shape[1]
    values, axes = torch.linalg.eigh(torch.cov(picture_nD.T))
    spread_DD = axes * values.clamp(min=0).sqrt()
    file.touch()
    item_ND = torch.from_file(str(file), shared=True, size=count * size, dtype=torch.float16).view(
        count, size
    )
    for start in range(0, count, BLOCK):
        many = min(BLOCK, count - start)
        some_BD = picture_nD[torch.arange(start, start + many) % len(picture_nD)]
        some_BD = some_BD + NOISE * torch.randn(many, size) @ spread_DD.T
        item_ND[start : start + many] = torch.nn.functional.normalize(some_BD).half()
    return item_ND


def main() -> None:
    """Print the figures."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="work directory")
    parser.add_argument("--count", type=int, default=1_000_000, help="number of vectors")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    run, work = RunFolder(packaged_captioner()), WorkFolder(options.work)
    vocabulary, config = load_description(run)
    store = FeatureStore(work.features)
    embedding = load(
        run.embedding, provenance(vocabulary, fingerprint(config["features"])), vocabulary
    )
    if embedding is None or store.fingerprint != fingerprint(config["features"]):
        raise SystemExit("expected a work directory with the features of the included captioner")
    query_QD = sentences(work, embedding, vocabulary)
    picture_nD = pictures(store, embedding)
    with tempfile.TemporaryDirectory() as folder:
        item_ND = write_many(picture_nD, options.count, Path(folder) / "vectors")
        own_nn = nearest(picture_nD[:QUERIES], picture_nD, 2).cosine_QK[:, 1].median()
        made_nn = nearest(item_ND[:QUERIES].float(), item_ND, 2).cosine_QK[:, 1].median()
        print(f"median cosine of nearest neighbours: {own_nn:.3f}, made {made_nn:.3f}", flush=True)
        start = time.perf_counter()
        for query_D in query_QD[:3]:
            nearest(query_D[None], item_ND, RESULTS)
        print(f"exact query: {(time.perf_counter() - start) / 3:.3f} s", flush=True)
        exact = nearest(query_QD, item_ND, RESULTS)
        file, keys = Path(folder) / "index.usearch", np.arange(options.count, dtype=np.uint64)
        before = resource.getrusage(resource.RUSAGE_SELF)
        start, processor = time.perf_counter(), time.process_time()
        index = Index(file, keys, item_ND)
        print(
            f"build: {time.process_time() - processor:.0f} s of processor time, "
            f"{time.perf_counter() - start:.0f} s; {file.stat().st_size / options.count:.0f} bytes "
            f"a vector; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, "
            f"before {before.ru_maxrss / 1024:.0f} MB",
            flush=True,
        )
        del index
        start = time.perf_counter()
        index = Index(file, keys, item_ND)
        print(f"opened again in {time.perf_counter() - start:.2f} s", flush=True)
        seconds, hits = [], []
        for query_D, index_K in zip(query_QD, exact.index_QK, strict=True):
            start = time.perf_counter()
            found = index.nearest(query_D[None], RESULTS)
            seconds.append(time.perf_counter() - start)
            hits.append(np.isin(index_K.numpy(), found.index_QK[0].numpy()).mean())
        words, captions = np.mean(hits[::2]), np.mean(hits[1::2])
        print(
            f"recall@{RESULTS}: {np.mean(hits):.4f} (words {words:.4f}, captions {captions:.4f}); "
            f"query: median {1000 * np.median(seconds):.2f} ms, 95 % below "
            f"{1000 * np.quantile(seconds, 0.95):.2f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
