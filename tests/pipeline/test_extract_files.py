"""pipeline.extract --from: features of another program, in every accepted form."""

import base64
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from decoder.data.pictures import backbone_of
from decoder.data.readers import read_features
from features.errors import UserError
from features.store import FeatureStore
from pipeline import extract

IDS = (7, 12, 30)
NAMES = ("a/dog.jpg", "a/cat.jpg", "b/bírd.png")
CHANNELS = 5


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work directory with three images and no picture: none is needed."""
    images = [{"id": i, "file_name": n, "split": "train"} for i, n in zip(IDS, NAMES, strict=True)]
    (tmp_path / "work").mkdir()
    content = {"info": {"dataset": "x", "image_root": "."}, "images": images, "annotations": []}
    (tmp_path / "work" / "captions.json").write_text(json.dumps(content))
    return tmp_path / "work"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "feats").mkdir()
    return tmp_path / "feats"


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def boxes(*counts: int) -> list[np.ndarray]:
    return [values(count, CHANNELS, seed=count) for count in counts]


def store(work: Path, files: Path, *options: str) -> FeatureStore:
    assert extract.main(["--work", str(work), "--from", str(files), *options]) == 0
    return FeatureStore(work / "features.h5")


def refused(work: Path, files: Path, capsys, *options: str) -> str:
    capsys.readouterr()
    assert extract.main(["--work", str(work), "--from", str(files), *options]) == 2
    assert not (work / "features.h5").exists()
    return capsys.readouterr().err


def expect(found: FeatureStore, arrays: list[np.ndarray]) -> None:
    """Check that a store holds these regions [r, c] of the images, and their means."""
    rows = found.rows(IDS)
    for row, array in zip(rows, arrays, strict=True):
        rounded = array.astype(np.float16).astype(np.float32)
        count = len(array) if found.regions is None else int(found.regions[row])
        grid = found.grid([row])[0]
        assert count == len(array)
        np.testing.assert_array_equal(grid[:count], rounded)
        assert not grid[count:].any()
        np.testing.assert_allclose(found.pooled([row])[0], array.mean(0), rtol=1e-3)


def save_each(files: Path, arrays: list[np.ndarray], names=IDS, **as_npz: str) -> None:
    for name, array in zip(names, arrays, strict=True):
        (files / str(name)).parent.mkdir(parents=True, exist_ok=True)
        if as_npz:
            np.savez_compressed(files / f"{name}.npz", **{as_npz["key"]: array})
        else:
            np.save(files / f"{name}.npy", array)


def folder_by_id(files: Path, arrays: list[np.ndarray]) -> Path:
    save_each(files, arrays)
    (files / ".DS_Store").write_text("hidden files are ignored")
    return files


def folder_by_path(files: Path, arrays: list[np.ndarray]) -> Path:
    save_each(files, arrays, ("a/dog", "a/cat.jpg", "b/bírd"), key="feat")
    return files


def archive(files: Path, arrays: list[np.ndarray]) -> Path:
    keyed = dict(zip(("dog", "cat", "bírd.png"), arrays, strict=True))
    np.savez(files / "all.npz", **keyed)
    return files / "all.npz"


def hdf5(files: Path, arrays: list[np.ndarray]) -> Path:
    with h5py.File(files / "all.h5", "w") as file:
        for name, array in zip(NAMES, arrays, strict=True):
            file[name] = array
    return files / "all.h5"


def table(files: Path, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    most = max(map(len, arrays))
    padded = [np.pad(a, ((0, most - len(a)), (0, 0)), constant_values=np.nan) for a in arrays]
    ids = np.array(IDS)[::-1]
    counts = np.array([len(a) for a in arrays])[::-1]
    return {"features": np.stack(padded)[::-1], "ids": ids, "num_boxes": counts}


def table_npz(files: Path, arrays: list[np.ndarray]) -> Path:
    np.savez_compressed(files / "table.npz", **table(files, arrays))
    return files / "table.npz"


def table_hdf5(files: Path, arrays: list[np.ndarray]) -> Path:
    with h5py.File(files / "table.h5", "w") as file:
        for name, array in table(files, arrays).items():
            file[name] = array
    return files / "table.h5"


def m2_transformer(files: Path, arrays: list[np.ndarray]) -> Path:
    with h5py.File(files / "coco_detections.hdf5", "w") as file:
        for i, array in zip(IDS, arrays, strict=True):
            file[f"{i}_features"], file[f"{i}_boxes"] = array, values(len(array), 4)
            file[f"{i}_cls_prob"] = values(len(array), 9)
    return files / "coco_detections.hdf5"


def groups_in_files(files: Path, arrays: list[np.ndarray]) -> Path:
    for name, array in zip(NAMES, arrays, strict=True):
        with h5py.File(files / f"{Path(name).stem}.h5", "w") as file:
            file[f"train2014/{name}/features"] = array
            file[f"train2014/{name}/boxes"] = values(len(array), 4)
    return files


def table_with_boxes(files: Path, arrays: list[np.ndarray]) -> Path:
    with h5py.File(files / "adaptive.h5", "w") as file:
        file["image_id"] = np.array(IDS, float)[None]  # a row of float64 as MATLAB writes it
        file["num_boxes"] = [[len(array)] for array in arrays]
        file["width"] = [640] * len(arrays)
        file["boxes"] = values(len(arrays), 100, 4)
        padded = [np.pad(array, ((0, 100 - len(array)), (0, 0))) for array in arrays]
        file["features"] = np.stack(padded)
    return files / "adaptive.h5"


def bottom_up_attention(files: Path, arrays: list[np.ndarray]) -> Path:
    for part, (i, array) in enumerate(zip(IDS, arrays, strict=True)):
        boxes = base64.b64encode(values(len(array), 4).tobytes()).decode()
        features = base64.b64encode(array.tobytes()).decode()
        line = f"{i}\t640\t480\t{len(array)}\t{boxes}\t{features}\r\n"
        (files / f"karpathy_train_resnet101_faster_rcnn_genome.tsv.{part}").write_text(line)
    return files


def openvqa(files: Path, arrays: list[np.ndarray]) -> Path:
    for name, array in zip(NAMES, arrays, strict=True):
        name = unicodedata.normalize("NFD", name)
        (files / name).parent.mkdir(exist_ok=True)
        np.savez(files / f"{name}.npz", x=array.T, bbox=values(len(array), 4), num_bbox=len(array))
    return files


def pythia(files: Path, arrays: list[np.ndarray]) -> Path:
    for name, array in zip(("dog", "cat", "b/bírd"), arrays, strict=True):
        (files / name).parent.mkdir(exist_ok=True)
        np.save(files / f"{name}.npy", array)
        np.save(files / f"{name}_info.npy", np.array({"boxes": 1}), allow_pickle=True)
    return files


FORMS = [
    *(folder_by_id, folder_by_path, archive, hdf5, table_npz, table_hdf5),
    *(m2_transformer, groups_in_files, table_with_boxes, bottom_up_attention, openvqa, pythia),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_boxes_of_varying_number_are_stored_from_every_form(
    form: Callable[[Path, list[np.ndarray]], Path], work, files
):
    arrays = boxes(2, 100, 1)
    found = store(work, form(files, arrays))
    expect(found, arrays)
    assert found.description["regions"] == "varying boxes"
    assert not found.row_format.has_map


def test_a_list_of_ids_lies_beside_an_array(work, files):
    rows = values(3, 4, CHANNELS)
    np.save(files / "all.npy", rows)
    (files / "all.ids.txt").write_text("\n".join(NAMES) + "\n")
    expect(store(work, files / "all.npy"), list(rows))


@pytest.mark.parametrize("given", ["all.npy", "."])
def test_features_are_read_again_when_only_their_list_of_ids_is_corrected(work, files, given):
    rows = values(3, 4, CHANNELS)
    np.save(files / "all.npy", rows)
    listed = files / "all.ids.txt"
    listed.write_text("\n".join(NAMES[::-1]))
    expect(store(work, files / given), list(rows[::-1]))
    listed.write_text("\n".join(NAMES))
    expect(store(work, files / given), list(rows))


def test_grids_are_read_with_the_channels_last_or_first(work, files):
    grids = [values(2, 3, CHANNELS, seed=i) for i in IDS]
    flat = [grid.reshape(6, CHANNELS) for grid in grids]
    save_each(files, grids)
    found = store(work, files)
    expect(found, flat)
    assert found.description["grid"] == [2, 3]
    assert found.row_format.has_map
    save_each(files, [np.moveaxis(grid, 2, 0) for grid in grids])
    expect(store(work, files, "--force"), flat)
    save_each(files, [grid.transpose(2, 0, 1)[None] for grid in grids])  # a batch of one
    expect(store(work, files, "--force", "--layout", "chw", "--dtype", "float16"), flat)


def test_the_folders_of_the_peer_load_as_they_are(work, tmp_path):
    arrays = boxes(3, 1, 5)
    vectors = [values(CHANNELS, seed=i) for i in IDS]
    for kind, each in (("att", arrays), ("fc", vectors), ("box", boxes(3, 1, 5))):
        folder = tmp_path / f"resnext_v1.5_{kind}"
        folder.mkdir()
        save_each(folder, each, **({"key": "feat"} if kind == "att" else {}))
    for path in ("resnext_v1.5_att", "resnext_v1.5"):
        found = store(work, tmp_path / path, "--force")
        np.testing.assert_allclose(found.pooled(found.rows(IDS)), vectors, rtol=1e-3)
        assert found.regions.tolist() == [3, 1, 5]


def test_a_stopped_run_continues_and_changed_files_are_read_again(work, files, capsys, monkeypatch):
    arrays = boxes(2, 3, 4)
    save_each(files, [*arrays[:2], np.full((4, CHANNELS), np.nan, np.float32)])
    assert "image 30: expected finite numbers, found 20" in refused(work, files, capsys)
    save_each(files, arrays)
    store(work, files)
    whole = (work / "features.h5").read_bytes()
    store(work, files)
    assert "unchanged, skipped" in capsys.readouterr().out
    arrays[1] = values(5, CHANNELS)
    save_each(files, arrays)
    expect(store(work, files), arrays)
    assert (work / "features.h5").read_bytes() != whole
    assert extract.main(["--work", str(work), "--from", str(files), "--verify"]) == 0
    assert "3 rows read, 3 compared" in capsys.readouterr().out


def test_a_new_picture_never_gets_the_features_of_a_removed_one(prepare, root, files):
    for name in ("a", "b", "b2", "c"):  # all older than the store
        np.save(files / f"{name}.npy", values(2, CHANNELS, seed=ord(name[-1])))

    def ids_of(*names: str) -> dict[str, int]:
        for old in root.iterdir():
            old.unlink()
        for name in names:
            (root / f"{name}.jpg").write_bytes(b"\xff\xd8\xff\xe0")
            (root / f"{name}.txt").write_text("A dog.")
        return {image.file_name: image.id for image in prepare("folder").table.images}

    ids_of("a", "b", "c")
    work = root.parent / "work"
    store(work, files, "--skip-extra")
    ids_of("a", "c")
    ids = ids_of("a", "b2", "c")
    assert ids == {"a.jpg": 1, "b2.jpg": 4, "c.jpg": 3}
    found = store(work, files, "--skip-extra")
    expected = np.load(files / "b2.npy").astype(np.float16)
    np.testing.assert_array_equal(found.grid(found.rows([4]))[0, :2], expected)


def change(files: Path, name: str, array: np.ndarray) -> None:
    np.save(files / f"{name}.npy", array)


REFUSED = {
    "1 of 3 images have no features: 30 (b/bírd.png)": lambda f: (f / "30.npy").unlink(),
    "found 1 others": lambda f: change(f, "99", values(2, CHANNELS)),
    "1 images have features twice": lambda f: change(f, "007", values(2, CHANNELS)),
    "1 others: notes.txt": lambda f: (f / "notes.txt").write_text(""),
    "found int64 in": lambda f: change(f, "7", np.ones((2, CHANNELS), np.int64)),
    "found object in": lambda f: np.save(f / "7.npy", np.array([{}]), allow_pickle=True),
    "expected the number of channels to be the same": lambda f: change(f, "7", values(2, 4)),
    "expected the number of axes to be the same": lambda f: change(f, "7", values(CHANNELS)),
    "found (2, 1, 2, 5)": lambda f: change(f, "7", values(2, 1, 2, CHANNELS)),
    "found (0, 5)": lambda f: change(f, "7", values(0, CHANNELS)),
    "at most 100 regions where their number varies, found 101": lambda f: change(
        f, "7", values(101, CHANNELS)
    ),
    "1 that are NaN or infinite": lambda f: change(
        f, "7", np.full((1, CHANNELS), [1, 2, np.inf, 3, 4])
    ),
    "at most 65504": lambda f: change(f, "7", np.full((1, CHANNELS), 1e6)),
    "7.npy is damaged or of another kind": lambda f: (f / "7.npy").write_bytes(b"\x93NUMPY\1\0"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_understood_is_refused_by_name(message, work, files, capsys):
    save_each(files, boxes(2, 3, 4))
    REFUSED[message](files)
    assert message in refused(work, files, capsys)


def test_ambiguous_names_and_useless_options_are_refused(work, files, capsys):
    save_each(files, [values(4, 4, 4)] * 3)
    assert "--layout hwc or --layout chw" in refused(work, files, capsys)
    save_each(files, [values(101, CHANNELS)] * 3)
    assert "fewer regions than channels, found (101, 5)" in refused(work, files, capsys)
    assert "leave out --grid" in refused(work, files, capsys, "--grid", "3")
    assert "it is not there" in refused(work, files / "other", capsys)
    table = json.loads((work / "captions.json").read_text())
    for image, name in zip(table["images"], ("12.jpg", "30.jpg", "7.jpg"), strict=True):
        image["file_name"] = name
    (work / "captions.json").write_text(json.dumps(table))
    arrays = boxes(1, 2, 3)
    save_each(files, arrays)
    assert "--keys id or --keys name" in refused(work, files, capsys)
    expect(store(work, files, "--keys", "id"), arrays)


def test_arrays_of_other_images_can_be_left_out(work, files, capsys):
    arrays = boxes(2, 3, 4)
    save_each(files, [*arrays, arrays[0]], (*IDS, 99))
    expect(store(work, files, "--skip-extra"), arrays)
    assert "1 arrays of other images are left out" in capsys.readouterr().out


def test_int8_and_dry_run(work, files, capsys):
    arrays = boxes(2, 3, 4)
    save_each(files, arrays)
    assert extract.main(["--work", str(work), "--from", str(files), "--dry-run"]) == 0
    assert "up to 100 boxes of 5 channels" in capsys.readouterr().out
    assert not (work / "features.h5").exists()
    found = store(work, files, "--dtype", "int8")
    np.testing.assert_allclose(found.grid(found.rows([7]))[0, :2], arrays[0], atol=0.005)


def test_decoders_read_which_regions_an_image_has_and_new_pictures_are_refused(work, files):
    save_each(files, boxes(2, 7, 4))
    found = store(work, files)
    features = read_features(found, found.rows(IDS))
    assert features.grid_IRC.shape == (3, 7, CHANNELS)
    assert features.mask_IR is not None
    assert features.mask_IR.sum(1).tolist() == [2, 7, 4]
    every = read_features(found, found.rows(IDS), every_region=True)
    assert every.grid_IRC.shape == (3, 100, CHANNELS)
    with pytest.raises(UserError, match=r"features feats were read from files.*--split"):
        backbone_of(found.description, torch.device("cpu"))
