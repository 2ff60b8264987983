"""Training by the command line: both phases, and mistakes that users make."""

import gc
import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from decoder import caption, train
from decoder.model import attention, operations
from decoder.model.options import ModelOptions
from decoder.runs import checkpoints
from decoder.runs.folder import locked
from decoder.training.config import arguments_like
from decoder.training.options import TrainOptions
from decoder.training.trainer import Trainer, learning_rate
from pipeline import extract, prepare
from pipeline.work import RunFolder
from tests.decoder.conftest import BOTH_PHASES, SMALL, hide_java

ONE_EPOCH = [*SMALL, "--xe.epochs", "1", "--rl.epochs", "0"]
# The quickest model, where it does not matter which one trains.
QUICK = [*ONE_EPOCH, "--model", "show_tell"]


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_java(monkeypatch)


def run_train(work: Path, *options: str, run: str = "small") -> int:
    return train.main(["--work", str(work), "--run", run, *options])


def metrics(work: Path, run: str = "small") -> list[dict]:
    lines = (work / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def without_times(lines: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "captions_per_second")}
        for line in lines
    ]


def test_both_phases_leave_the_files_that_the_readme_promises(trained):
    run = trained / "runs" / "small"
    for name in ("config.json", "vocabulary.json", "best.safetensors", "best_xe.safetensors"):
        assert (run / name).is_file()
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "vocabulary.json").read_text() == (trained / "vocabulary.json").read_text()
    config = json.loads((run / "config.json").read_text())
    assert config["options"]["decoder"]["hidden"] == 24
    assert config["features"]["backbone"] == "efficientnet_lite0"

    lines = metrics(trained)
    assert [(line["phase"], line["epoch"]) for line in lines] == [("xe", 1), ("xe", 2), ("rl", 1)]
    assert lines[0]["reward"] is None
    assert lines[2]["reward"] > 0
    for line in lines:
        assert {"CIDEr", "Bleu_4", "greedy_CIDEr", "bad_endings"} <= line["val"].keys()
        assert line["captions_per_second"] > 0


def test_cross_entropy_lowers_the_loss_and_fitted_weights_start_lower(trained, work):
    options = ["--xe.epochs", "2", "--rl.epochs", "0", "--initial", "random"]
    assert run_train(work, *SMALL, *options) == 0
    first, second = metrics(work)
    assert second["loss"] < first["loss"] - 0.1
    assert metrics(trained)[0]["loss"] < first["loss"] - 0.1


def test_nothing_that_can_wait_delays_the_first_step(work, monkeypatch):
    """Java, which takes a core, starts after it; modules are not garbage-collected."""
    seen: list[tuple[bool, bool]] = []
    step = Trainer.step

    def watched(trainer: Trainer, *arguments: Any) -> None:
        validator = trainer.validation.validator
        assert validator is not None
        seen.append((validator._references is not None, gc.get_freeze_count() > 0))
        step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", watched)
    assert run_train(work, *QUICK) == 0
    assert seen[:2] == [(False, True), (True, True)]
    assert gc.get_freeze_count() == 0


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trained, work):
    def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
        return load_file(folder / "runs" / run / "best.safetensors")

    assert run_train(work, *BOTH_PHASES) == 0
    assert run_train(work, *BOTH_PHASES, "--seed", "8", run="other") == 0
    ours, again, other = weights(trained, "small"), weights(work, "small"), weights(work, "other")
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert not all(torch.equal(ours[name], other[name]) for name in ours)
    assert without_times(metrics(work)) == without_times(metrics(trained))


def test_a_finished_run_is_skipped_and_another_option_trains_again(work, capsys):
    assert run_train(work, *QUICK) == 0
    capsys.readouterr()
    assert run_train(work, *QUICK) == 0
    assert "unchanged, skipped" in capsys.readouterr().out
    assert run_train(work, *QUICK, "--xe.learning-rate", "1e-4", "--resume", "--force") == 0
    assert metrics(work)[0]["learning_rate"] < 1e-4
    assert "unchanged" not in capsys.readouterr().out


def test_an_existing_run_is_neither_overwritten_nor_mixed_up(work, capsys):
    assert run_train(work, *QUICK) == 0
    (work / "runs" / "small" / ".done" / "train.json").unlink()
    before = (work / "runs" / "small" / "best.safetensors").read_bytes()
    assert run_train(work, *QUICK) == 2
    assert "--resume" in capsys.readouterr().err
    assert run_train(work, *QUICK, "--hidden", "32", "--resume") == 2
    assert "hidden (24 then, 32 now)" in capsys.readouterr().err
    assert (work / "runs" / "small" / "best.safetensors").read_bytes() == before


def test_starting_again_moves_the_old_run_aside_with_all_its_results(work, capsys):
    """An attention or scores file left from the old model would be taken for the new one's."""
    assert run_train(work, *ONE_EPOCH) == 0
    run = work / "runs" / "small"
    before = (run / "best.safetensors").read_bytes()
    (run / "attention_val.npz").write_bytes(b"of the old model")
    assert run_train(work, *QUICK, "--resume", "--force") == 0
    printed = capsys.readouterr().out
    assert "model (updown then, show_tell now)" in printed
    assert not (run / "attention_val.npz").exists()
    assert (work / "runs" / "small.old" / "best.safetensors").read_bytes() == before


def test_starting_again_twice_keeps_both_old_runs(work, capsys):
    kept = []
    for seed in range(3):
        assert run_train(work, *QUICK, "--seed", str(seed), "--force") == 0
        kept.append((work / "runs" / "small" / "best.safetensors").read_bytes())
    printed = capsys.readouterr().out
    for name, before in zip(("small.old", "small.2.old"), kept[:2], strict=True):
        assert (work / "runs" / name / "best.safetensors").read_bytes() == before
        assert f"the old run is kept in {work / 'runs' / name} (" in printed


def test_a_file_that_is_no_state_is_refused_and_never_deleted(work, capsys):
    assert run_train(work, *QUICK) == 0
    run = work / "runs" / "small"
    (run / ".done" / "train.json").unlink()
    state = run / "state" / "resume.safetensors"
    intact = state.read_bytes()
    for content, expected in (
        (intact[:1000], "not a complete safetensors file"),
        ((run / "best.safetensors").read_bytes(), "is not a run's state"),
    ):
        state.write_bytes(content)
        assert run_train(work, *QUICK, "--resume") == 2
        assert expected in capsys.readouterr().err
        assert state.read_bytes() == content


def test_a_state_that_fits_only_in_part_leaves_no_trace_in_a_run_that_starts_again(
    trained, work, capsys
):
    run = RunFolder(Path(shutil.copytree(trained / "runs" / "small", work / "runs" / "small")))
    tensors, header = checkpoints.load(run.state, torch.device("cpu"))
    part = {name: t for name, t in tensors.items() if not name.startswith("optimizer.")}
    checkpoints.save(run.state, part, header)
    (run.path / ".done" / "train.json").unlink()
    assert run_train(work, *BOTH_PHASES, "--resume", "--force") == 0
    assert "starting again" in capsys.readouterr().out
    assert without_times(metrics(work)) == without_times(metrics(trained))


def test_a_run_older_than_an_option_is_continued_with_what_was_in_effect_then(trained, work):
    run = RunFolder(Path(shutil.copytree(trained / "runs" / "small", work / "runs" / "small")))
    tensors, header = checkpoints.load(run.state, torch.device("cpu"))
    del header["config"]["options"]["length_penalty"]
    checkpoints.save(run.state, tensors, header)
    (run.path / ".done" / "train.json").unlink()
    assert run_train(work, *BOTH_PHASES, "--resume") == 2
    assert run_train(work, *BOTH_PHASES, "--resume", "--length-penalty", "0") == 0

    run.config.write_text(json.dumps(header["config"]))
    assert "--length-penalty=0.0" in arguments_like(run.path)


COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@COMPILES
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_steps_have_the_loss_and_gradient_of_uncompiled_ones(
    extracted_shapes, monkeypatch
):
    """In both phases, up to the last step, in which only one caption may be left."""
    from torch._inductor import config

    torch._dynamo.reset()
    for module in (attention, operations):  # so that attention is compiled as well, as on a GPU
        monkeypatch.setattr(module, "image_by_image", lambda tensor: False)
    decoder = ModelOptions(hidden=24, attention=16)
    options = TrainOptions(extracted_shapes, "none", decoder, batch_size=4)
    found = []
    # g++ takes half the time without vectors, which the next test has.
    with config.patch({"cpp.simdlen": 1, "compile_threads": 1}):
        for compile in (False, True):
            trainer = train.new_trainer(replace(options, compile=compile))
            found.append([])
            for phase in trainer.phases:
                for batch in islice(trainer.training.epoch(phase.name, 0), 3):
                    torch.manual_seed(0)
                    loss = trainer._loss(phase, batch).loss
                    trainer.state.optimizer.zero_grad()
                    loss.backward()
                    found[-1] += [loss.detach(), *(p.grad for p in trainer.model.parameters())]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    assert 1 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 10  # not one for each size


@COMPILES
@pytest.mark.filterwarnings("ignore")
def test_a_run_may_be_continued_with_compile_and_a_finished_one_is_skipped_without(
    trained, work, capsys
):
    run = RunFolder(Path(shutil.copytree(trained / "runs" / "small", work / "runs" / "small")))
    config = json.loads(run.config.read_text())
    assert config["machine"].pop("compile") is False
    run.config.write_text(json.dumps(config))  # as in a run older than the option
    assert run_train(work, *BOTH_PHASES, "--compile", "--resume") == 0
    assert "continuing" in capsys.readouterr().out
    options = ["--xe.epochs", "1", "--rl.epochs", "0", "--like", str(run.path)]
    assert run_train(work, *options, "--compile", run="other") == 0
    assert "machine.compile (False then, True now)" in capsys.readouterr().out
    assert metrics(work, "other")[0]["loss"] == pytest.approx(metrics(trained)[0]["loss"], abs=0.1)
    assert run_train(work, *options, run="other") == 0
    assert "unchanged, skipped" in capsys.readouterr().out


def test_without_a_compiler_compile_says_what_to_do_before_anything_is_written(work, capsys):
    from torch._inductor import config

    torch._dynamo.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):  # restores it, as monkeypatch does not
        assert run_train(work, *SMALL, "--compile") == 2
    error = capsys.readouterr().err
    assert "--compile needs a C++ compiler" in error
    assert "install g++, or leave out --compile" in error
    assert "Traceback" not in error
    assert not (work / "runs" / "small").exists()


def test_a_validation_image_without_a_caption_is_named_before_anything_is_trained(work, capsys):
    file = work / "captions.json"
    table = json.loads(file.read_text())
    image_id = next(image["id"] for image in table["images"] if image["split"] == "val")
    table["annotations"] = [a for a in table["annotations"] if a["image_id"] != image_id]
    file.write_text(json.dumps(table))
    for options in ([], ["--dry-run"]):
        assert run_train(work, *BOTH_PHASES, *options) == 2
        assert f"1 val images have no caption: {image_id}" in capsys.readouterr().err
    assert not (work / "runs" / "small").exists()


def test_a_run_is_not_continued_on_replaced_pictures(work, capsys):
    assert run_train(work, *QUICK) == 0
    pictures = json.loads((work / "pictures.json").read_text())
    for picture in pictures.values():
        picture["crc"] += 1
    (work / "pictures.json").write_text(json.dumps(pictures))
    (work / "runs" / "small" / ".done" / "train.json").unlink()  # as if extracted again
    assert run_train(work, *QUICK, "--resume") == 2
    assert "pictures have changed since: " in capsys.readouterr().err


def test_a_run_is_not_continued_on_changed_captions(work, capsys):
    assert run_train(work, *QUICK) == 0
    table = json.loads((work / "captions.json").read_text())
    for annotation in table["annotations"]:
        annotation["tokens"].reverse()
    (work / "captions.json").write_text(json.dumps(table))
    assert run_train(work, *QUICK, "--resume") == 2
    error = capsys.readouterr().err
    assert "the captions in WORK have changed since" in error
    assert "captions.train, captions.val; repeat" in error  # without their digests
    assert "--force" in error


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "show_tell", "--cell", "gru", "--rl.baseline", "greedy"],
        ["--model", "att2in", "--beam", "1", "--average", "0", "--rl.bleu-weight", "0.5"],
        ["--cell", "gru", "--xe.scheduled-sampling", "0.5", "--rl.patience", "1"],
    ],
)
def test_every_model_cell_and_objective_trains_from_the_command_line(options, work):
    assert run_train(work, *SMALL, "--xe.epochs", "1", "--rl.epochs", "1", *options) == 0
    assert [line["phase"] for line in metrics(work)] == ["xe", "rl"]
    assert caption.main(["--run", str(work / "runs" / "small"), "--split", "val"]) == 0
    attends = "show_tell" not in options
    assert (work / "runs" / "small" / "attention_val.npz").exists() == attends


def test_a_split_whose_pictures_all_failed_is_named(tmp_path, capsys):
    work = tmp_path / "work"
    stage = ["--dataset", "shapes", "--images", "10", "--min-count", "1", "--work", str(work)]
    assert prepare.main(stage) == 0
    table = json.loads((work / "captions.json").read_text())
    for image in table["images"]:
        if image["split"] == "val":
            (work / "images" / image["file_name"]).write_bytes(b"")
    assert extract.main(["--work", str(work), "--backbone", "efficientnet_lite0"]) == 0
    assert run_train(work, *SMALL) == 2
    assert "all 1 val images could not be extracted" in capsys.readouterr().err


def test_two_trainings_never_write_to_one_run(work, capsys):
    with locked(RunFolder(work / "runs" / "small")):
        assert run_train(work, *BOTH_PHASES) == 2
    assert "another training is writing" in capsys.readouterr().err


def test_early_stopping_ends_a_phase_that_does_not_gain(work, capsys):
    """With a learning rate of almost nothing, the second epoch cannot beat the first."""
    options = [*QUICK, "--xe.epochs", "9", "--xe.patience", "1"]
    assert run_train(work, *options, "--xe.learning-rate", "1e-12") == 0
    assert len(metrics(work)) == 2


def test_an_exploding_loss_names_the_step_and_the_images(work, capsys):
    options = [*SMALL, "--xe.epochs", "3", "--rl.epochs", "0", "--xe.learning-rate", "1e38"]
    assert run_train(work, *options, "--warmup", "0") == 2
    error = capsys.readouterr().err
    assert "is not finite at step" in error
    assert "images" in error
    assert "Traceback" not in error


def test_images_without_features_are_left_out_and_counted(tmp_path, capsys):
    folder = str(tmp_path / "work")
    assert prepare.main(["--dataset", "shapes", "--images", "30", "--work", folder]) == 0
    first = min((tmp_path / "work" / "images").iterdir())
    first.write_bytes(b"not a picture")
    assert extract.main(["--work", folder, "--backbone", "efficientnet_lite0"]) == 0
    assert run_train(tmp_path / "work", *QUICK) == 0
    assert "1 of 24 train images left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--xe.epoch", "3"], "--xe.epochs"),
        (["--model", "updwn"], "updown"),
        (["--xe.epochs", "-1"], "--xe.epochs must not be negative"),
        (["--rl.samples", "1"], "--rl.samples of at least 2"),
        (["--run", "a/b"], "plain name"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--xe.epochs", "0", "--rl.epochs", "0"], "are both 0"),
        (["--device", "gpu9"], "use cpu, or auto"),
    ],
)
def test_wrong_options_end_with_status_2_and_what_to_do(options, expected, work, capsys):
    assert run_train(work, *options) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "Traceback" not in error


def test_missing_files_name_the_command_that_makes_them(tmp_path, work, capsys):
    assert run_train(tmp_path) == 2
    assert "python -m pipeline.prepare" in capsys.readouterr().err
    (work / "features.h5").unlink()
    assert run_train(work) == 2
    assert "python -m pipeline.extract" in capsys.readouterr().err


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_nothing():
    rates = [learning_rate(1.0, step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == pytest.approx(1.0, abs=0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)
