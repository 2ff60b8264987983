"""Distributed training gives what one process gives."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from decoder import train
from decoder.data.batches import Batch
from decoder.training.objectives import cross_entropy
from tests.decoder.conftest import SMALL
from tests.decoder.model.test_decoders import build
from tests.decoder.training import ranked
from tests.decoder.training.processes import unlike, wait_until

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# Without dropout, which differs between processes, they compute the same as one process.
SAME = [*SMALL, "--dropout", "0", "--xe.epochs", "1"]
BOTH = [*SMALL, "--xe.epochs", "2", "--rl.epochs", "1", "--rl.samples", "2"]


@pytest.mark.parametrize("where", ["cpu", "static", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("images", [4, 1])
def test_gradients_are_those_of_one_process_on_the_whole_batch(
    images: int, where: str, batch: Batch, tmp_path: Path
) -> None:
    """The ranks have different numbers of words; with one image the second rank has none.

    They share a GPU, with gloo, or have one each, with NCCL.
    """
    mine = batch.image_B < images
    features = batch.features.each(lambda tensor: tensor[:images])
    chosen = Batch(batch.image_ids[:images], features, batch.tokens_BT[mine], batch.image_B[mine])
    model = build("updown")
    expected = cross_entropy(model, chosen)
    expected.loss.backward()
    processes = ranked.start(ranked.gradients, 2, "updown", chosen, tmp_path / "found", where)
    assert ranked.end(processes) == [0, 0]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found.rank{rank}", weights_only=True)
        rtol = 1e-4 if where == "cuda" else 1e-5
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=rtol, atol=rtol / 10)
        torch.testing.assert_close(found["loss"], expected.loss)
        assert int(found["captions"]) == len(chosen.tokens_BT)
        assert found["stops"], "one process was asked to stop, so all must stop"


def test_torchrun_trains_as_one_process_does(extracted_shapes: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(extracted_shapes, tmp_path / "work"))
    arguments = ["--work", str(work), "--run"]
    options = [*SAME, "--rl.epochs", "1", "--rl.samples", "2"]
    assert train.main([*arguments, "one", *options]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # The dashes keep torchrun from reading --run as one of its own options.
    command = [*launcher, "--nproc-per-node=2", "-m", "--", "decoder.train"]
    command += [*arguments, "two", *options]
    torchrun = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert torchrun.returncode == 0, torchrun.stderr
    assert torchrun.stdout.count("train: best validation CIDEr") == 1

    one, two = (work / "runs" / name for name in ("one", "two"))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    (xe, rl), (xe2, rl2) = (
        map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) for run in (one, two)
    )
    assert xe2["loss"] == pytest.approx(xe["loss"], rel=1e-4)
    assert (xe["phase"], rl["phase"]) == (xe2["phase"], rl2["phase"]) == ("xe", "rl")
    for line in (xe2, rl2):
        assert set(line["val"]) == set(xe["val"])


def test_a_stopped_run_of_two_processes_continues_to_the_same_end(
    extracted_shapes: Path, tmp_path: Path
) -> None:
    work = Path(shutil.copytree(extracted_shapes, tmp_path / "work"))
    arguments = ["--work", str(work), *BOTH, "--run"]
    output = tmp_path / "output"
    never_stopped = ranked.start(ranked.train, 2, [*arguments, "never_stopped"], output)
    assert ranked.end(never_stopped) == [0, 0]

    stopped = ranked.start(ranked.train, 2, [*arguments, "stopped"], output)
    run = work / "runs" / "stopped"
    wait_until((run / "metrics.jsonl").exists, stopped[0])
    assert stopped[1].pid
    os.kill(stopped[1].pid, signal.SIGTERM)  # to one process only; the other must follow
    assert ranked.end(stopped) == [130, 130], output.with_suffix(".rank0").read_text()
    again = ranked.start(ranked.train, 2, [*arguments, "stopped", "--resume"], output)
    assert ranked.end(again) == [0, 0]
    assert unlike(run, work / "runs" / "never_stopped") == []


def test_an_error_in_one_process_leaves_none_waiting(
    extracted_shapes: Path, tmp_path: Path
) -> None:
    work = Path(shutil.copytree(extracted_shapes, tmp_path / "work"))
    (work / "runs" / "there").mkdir(parents=True)
    (work / "runs" / "there" / "best.safetensors").write_bytes(b"")
    arguments = ["--work", str(work), *BOTH, "--run", "there"]
    found = ranked.end(ranked.start(ranked.train, 2, arguments, tmp_path / "output"))
    assert found == [2, 2]
    assert "already has a run" in (tmp_path / "output.rank0").read_text()
    error = (tmp_path / "output.rank1").read_text()
    assert "another process of this command stopped" in error
    assert "Traceback" not in error
