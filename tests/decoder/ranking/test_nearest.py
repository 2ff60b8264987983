"""Searching many vectors by an index: as good as comparing all, kept on disk and up to date."""

import numpy as np
import pytest
import torch

from decoder.ranking import nearest
from decoder.ranking.nearest import Index

pytest.importorskip("usearch", reason="needs the extra search")


@pytest.fixture(scope="module")
def items() -> torch.Tensor:
    """3,000 unit vectors around 100 centres, float16."""
    torch.manual_seed(0)
    centres = torch.randn(100, 32)
    vectors = centres[torch.arange(3000) % 100] + 0.6 * torch.randn(3000, 32)
    return torch.nn.functional.normalize(vectors).half()


def queries(count: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.nn.functional.normalize(torch.randn(count, 32))


def keys(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.uint64)[::-1] * np.uint64(7)


def recall(found: nearest.Nearest, wanted: nearest.Nearest) -> float:
    pairs = zip(found.index_QK.numpy(), wanted.index_QK.numpy(), strict=True)
    return float(np.mean([np.isin(b, a).mean() for a, b in pairs]))


def test_an_index_finds_what_comparing_all_finds_with_the_same_scores(items, tmp_path):
    index = Index(tmp_path / "a.usearch", keys(len(items)), items)
    query = queries(50)
    wanted, found = nearest.nearest(query, items.float(), 10), index.nearest(query, 10)
    assert recall(found, wanted) > 0.99
    torch.testing.assert_close(
        found.cosine_QK, (items.float()[found.index_QK] @ query[:, :, None])[..., 0]
    )
    assert (found.cosine_QK.diff(dim=1) <= 0).all()
    assert index.nearest(query[:1], 5000).index_QK.shape[1] <= len(items)


def test_blocks_of_memory_mapped_vectors_are_compared_as_all_at_once(items, monkeypatch):
    whole = nearest.nearest(queries(7), items.float(), 20)
    monkeypatch.setattr(nearest, "_BLOCK", 111)
    blockwise = nearest.nearest(queries(7), items, 20)
    assert torch.equal(whole.index_QK, blockwise.index_QK)
    torch.testing.assert_close(whole.cosine_QK, blockwise.cosine_QK)


def test_only_new_items_are_added_and_those_that_are_gone_are_never_found(
    items, tmp_path, monkeypatch
):
    file = tmp_path / "a.usearch"
    Index(file, keys(2900), items[:2900])
    added: list[int] = []
    original = nearest._in_8_bits
    monkeypatch.setattr(
        nearest, "_in_8_bits", lambda vectors: added.append(len(vectors)) or original(vectors)
    )
    # The keys of the first 20 items are gone, and 100 items are new.
    now, keys_now = items[20:], np.concatenate([keys(2900)[20:], 10**6 + keys(100)])
    index = Index(file, keys_now, now)
    assert added == [100]
    assert recall(index.nearest(queries(30), 10), nearest.nearest(queries(30), now, 10)) > 0.98
    written = file.stat()
    Index(file, keys_now, now)
    assert file.stat().st_mtime_ns == written.st_mtime_ns, "an index that is up to date is read"


@pytest.mark.parametrize("size", [0, 10, 1000, 100_000])
def test_a_damaged_index_is_made_again(items, tmp_path, size, caplog):
    file = tmp_path / "a.usearch"
    Index(file, keys(len(items)), items)
    file.write_bytes(file.read_bytes()[:size])
    index = Index(file, keys(len(items)), items)
    assert recall(index.nearest(queries(9), 5), nearest.nearest(queries(9), items, 5)) > 0.98
    assert "making it again" in caplog.text


def test_without_the_extra_all_are_compared_and_the_extra_is_named(monkeypatch, caplog):
    assert not nearest.pays(nearest.EXACT)
    assert nearest.pays(nearest.EXACT + 1)
    monkeypatch.setattr(nearest, "is_installed", lambda package: False)
    assert not nearest.pays(nearest.EXACT + 1)
    assert "caption-pipeline[search]" in caplog.text
