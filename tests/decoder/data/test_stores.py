"""What decoders read from stores with more than one view, or of 8 bits."""

from pathlib import Path

import numpy as np
import pytest

from decoder import caption, train
from decoder.data.batches import Batch
from decoder.data.readers import SplitReader
from decoder.data.single_store import SingleStoreReader
from features.store import FeatureStore
from pipeline import captions, extract, vocabulary
from tests.decoder.conftest import SMALL

EXTRACT = ["--backbone", "efficientnet_lite0", "--force"]


@pytest.fixture(scope="module")
def views(extracted_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> SingleStoreReader:
    """Training batches of 8 images of which three views are stored, in 8 bits."""
    work = tmp_path_factory.mktemp("views")
    table = captions.load(extracted_shapes / "captions.json")
    captions.save(table, work / "captions.json")
    options = [*EXTRACT, "--views", "3", "--dtype", "int8"]
    assert extract.main(["--work", str(work), *options]) == 0
    words = vocabulary.load(extracted_shapes / "vocabulary.json")
    return SingleStoreReader(FeatureStore(work / "features.h5"), table, words, 8, seed=1)


def drawn(reader: SingleStoreReader, batch: Batch) -> list[int]:
    """Return the number of the view that a batch has of each image."""
    found = []
    rows = reader._store.rows(batch.image_ids.tolist())
    for row, grid, pooled in zip(rows, *batch.features[:2], strict=True):
        stored = [
            view
            for view in range(3)
            if np.array_equal(reader._store.grid([row], [view])[0], grid)
            and np.array_equal(reader._store.pooled([row], [view])[0], pooled)
        ]
        found += stored
    assert len(found) == len(rows)
    return found


def test_training_draws_a_view_of_each_image(views: SingleStoreReader) -> None:
    epochs = {
        (phase, epoch): [drawn(views, batch) for batch in views.epoch(phase, epoch)]
        for phase, epoch in (("xe", 1), ("xe", 2), ("rl", 1))
    }
    for batches in epochs.values():
        assert {view for batch in batches for view in batch} == {0, 1, 2}
    assert epochs["xe", 1] != epochs["xe", 2] != epochs["rl", 1]
    # A resumed epoch draws as one that was never interrupted.
    assert [drawn(views, batch) for batch in views.epoch("xe", 2, 2)] == epochs["xe", 2][2:]


def test_everything_but_training_reads_the_first_view(views: SingleStoreReader) -> None:
    table = captions.load(views._store.path.with_name("captions.json"))
    reader = SplitReader(views._store, table, "val")
    for images, features in reader.batches(4):
        rows = views._store.rows([image.id for image in images])
        np.testing.assert_array_equal(features.grid_IRC, views._store.grid(rows, [0] * len(rows)))


def test_each_process_reads_only_its_share_of_the_validation_batches(
    views: SingleStoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = captions.load(views._store.path.with_name("captions.json"))
    reader = SplitReader(views._store, table, "val")
    ids = [[image.id for image in images] for images, _ in reader.batches(4)]
    begun, begin = [], reader._begin
    monkeypatch.setattr(
        reader, "_begin", lambda chosen, views: begun.append(chosen) or begin(chosen, views)
    )
    for rank in range(3):
        begun.clear()
        mine = list(reader.batches(4, first=1 + rank, step=3))
        assert [[image.id for image in images] for images, _ in mine] == ids[1 + rank :: 3]
        assert [len(features.pooled_IC) for _, features in mine] == list(map(len, begun))
    assert list(reader.batches(4, first=len(ids), step=3)) == []


def test_a_run_trained_on_8_bits_captions_splits_and_new_pictures(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract.main(["--work", str(work), *EXTRACT, "--dtype", "int8"]) == 0
    options = ["--run", "small", *SMALL, "--xe.epochs", "1", "--rl.epochs", "0"]
    assert train.main(["--work", str(work), *options]) == 0
    run = ["--run", str(work / "runs" / "small")]
    assert caption.main([*run, "--split", "val"]) == 0
    pictures = [str(path) for path in sorted((work / "images").iterdir())[:3]]
    capsys.readouterr()
    assert caption.main([*run, *pictures]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == pictures


def test_a_decoder_that_does_not_attend_needs_no_grid(work: Path) -> None:
    store = FeatureStore(work / "features.h5")
    sizes, offsets = store._sizes, store._offsets
    with (work / "features.h5").open("r+b") as file:
        for row, size in enumerate(sizes[:, 0].tolist()):
            file.seek(offsets[row, 0])
            file.write(bytes(size))
    options = ["--work", str(work), *SMALL, "--xe.epochs", "1", "--rl.epochs", "0"]
    assert train.main([*options, "--run", "attends"]) == 2
    assert train.main([*options, "--run", "pooled", "--model", "show_tell"]) == 0
