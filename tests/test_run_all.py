"""Tests of run_all.sh: all stages on a few drawn scenes, its mistakes, its installation."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote
from zipfile import ZipFile

import pytest

PROJECT = Path(__file__).parents[1]
SCORES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")


def run_all(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROJECT / "run_all.sh", *options], capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.timeout(600)
def test_run_all_ends_with_scores_and_a_report_and_skips_finished_stages(tmp_path):
    options = ["shapes", "--images", "30", "--work", str(tmp_path / "work folder")]
    training = ["--", "--hidden", "16", "--xe.epochs", "1", "--rl.epochs", "1"]
    first = run_all(*options, *training)
    assert first.returncode == 0, first.stderr
    run = tmp_path / "work folder" / "runs" / "shapes"
    scores = json.loads((run / "scores_test.json").read_text())
    assert tuple(scores["corpus"]) == SCORES
    assert tuple(scores["intervals"]) == SCORES
    assert (run / "scores_test_xe.json").is_file()
    for name in SCORES:
        assert name in first.stdout
    assert str(run / "report.html") in first.stdout

    second = run_all(*options, *training)
    assert second.returncode == 0, second.stderr
    skipped = [line for line in second.stdout.splitlines() if "unchanged, skipped" in line]
    stages = second.stdout.count("\n== ")
    assert len(skipped) == stages == 8
    assert "CIDEr" in second.stdout, "the table of scores is printed again"

    # Only its training matters here: what follows has been run above.
    command = [PROJECT / "run_all.sh", *options, *training[:-1], "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as changed:
        for line in changed.stdout:
            if line.startswith("== decoder.caption"):
                changed.kill()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == ["xe", "rl", "rl"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["shaps"], "did you mean shapes"),
        (["flickr8k"], "needs --root"),
        (["shards"], "run the stages by hand"),
        (["--wrok", "x"], "unknown option --wrok"),
        (["coco", "--preset", "cocoa"], "unknown preset 'cocoa': did you mean coco"),
        (["shapes", "--backbone"], "--backbone needs a value"),
        (["shapes", "--work="], "--work needs a value"),
        (["flickr8k", "--root", "/nowhere"], "/nowhere"),
    ],
)
def test_invalid_options_end_run_all_with_status_2(options, expected, tmp_path):
    result = (
        run_all("--work", str(tmp_path), *options)
        if options[0] == "--wrok"
        else run_all(options[0], "--work", str(tmp_path), *options[1:])
    )
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_of_run_all_shows_how_to_install_and_to_run(option):
    result = run_all(option)
    assert result.returncode == 0
    assert "./run_all.sh [DATASET] [--root DIR]" in result.stdout
    assert "./run_all.sh install" in result.stdout
    assert "set -euo" not in result.stdout


# Stands for Python where it would create an environment or download; writes down what pip gets.
STUB = """#!/usr/bin/env bash
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip --version") ;;
    "-m pip show "*) [[ -n ${HAS_TORCH:-} ]] ;;
    "-m pip install "*) echo "pip starts"; echo "$*" >> "$PIP_LOG"; exit "${PIP_STATUS:-0}" ;;
    *) exec REAL "$@" ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    """Run `run_all.sh install` in a copy of the scripts, with a stub in place of Python."""
    project = tmp_path / "the project"
    (project / "pipeline").mkdir(parents=True)
    for name in ("run_all.sh", "setup.cfg", "pipeline/install.sh"):
        shutil.copy(PROJECT / name, project / name)
    stub = tmp_path / "python"
    stub.write_text(STUB.replace("REAL", sys.executable))
    stub.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stub), "PIP_LOG": str(tmp_path / "pip.log")}
    environment |= {"TORCH_INDEX": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def run(*options: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        (tmp_path / "pip.log").write_text("")
        done = subprocess.run(
            [project / "run_all.sh", "install", *options],
            capture_output=True,
            text=True,
            check=False,
            env=environment | variables,
        )
        return done, (tmp_path / "pip.log").read_text().splitlines()

    run.project = project
    return run


def test_install_only_installs_and_gives_the_size_before_it_starts(install):
    before = {path.name for path in install.project.iterdir()}
    done, calls = install()
    assert done.returncode == 0, done.stderr
    assert len(calls) == 1
    assert calls[0].endswith(f"--editable {install.project}[fast]")
    assert done.stdout.index("GB") < done.stdout.index("pip starts")
    assert done.stdout.endswith(
        f"installed in {install.project}/.venv; now try: .venv/bin/caption photo.jpg\n"
    )
    assert {path.name for path in install.project.iterdir()} - before == {".venv"}


def test_install_is_repeated_only_after_setup_cfg_has_changed(install):
    install()
    done, calls = install()
    assert (done.returncode, calls) == (0, [])
    with (install.project / "setup.cfg").open("a") as file:
        file.write("# newer\n")
    _, calls = install()
    assert len(calls) == 1


def test_an_installation_that_failed_is_tried_again(install):
    done, _ = install(PIP_STATUS="1")
    assert done.returncode != 0
    assert "installed in" not in done.stdout
    _, calls = install()
    assert len(calls) == 1


def test_install_refuses_options(install):
    done, calls = install("--work", "x")
    assert (done.returncode, calls) == (2, [])
    assert "install takes no options, found --work" in done.stderr


@pytest.fixture
def index(tmp_path) -> Iterator[str]:
    """The address of a package index with a tiny torch."""
    wheel = tmp_path / "index" / "torch" / "torch-99.0+cpu-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    about = "torch-99.0+cpu.dist-info"
    with ZipFile(wheel, "w") as file:
        file.writestr("torch.py", "")
        file.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 99.0+cpu\n"
        )
        file.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{about}/RECORD", "")
    link = f'<a href="{quote(wheel.name)}">{wheel.name}</a>'
    (wheel.parent / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = partial(Handler, directory=str(tmp_path / "index"))
    with ThreadingHTTPServer(("127.0.0.1", 0), folder) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch has no larger build")
def test_without_a_gpu_pytorch_comes_from_the_index_of_cpu_builds(install, index, tmp_path):
    no_gpu = tmp_path / "nvidia-smi"
    no_gpu.write_text("#!/bin/sh\nexit 9\n")
    no_gpu.chmod(0o755)
    done, (torch, project) = install(TORCH_INDEX=index)
    assert done.returncode == 0, done.stderr
    assert "about 1.3 GB, with PyTorch for the CPU" in done.stdout
    assert torch.endswith(f"--index-url {index} torch")
    assert "--editable" in project
    # The real pip installs from there with the same command line.
    site = tmp_path / "site"
    command = [sys.executable, *torch.split(), "--target", str(site)]
    own = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    own["PIP_CONFIG_FILE"] = os.devnull  # no other index
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=own)
    assert (site / "torch.py").is_file()

    with (install.project / "setup.cfg").open("a") as file:
        file.write("# newer\n")
    _, calls = install(TORCH_INDEX=index, HAS_TORCH="yes")
    assert len(calls) == 1, "an installed PyTorch is kept"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyTorch has no larger build")
@pytest.mark.parametrize("has_gpu", [True, False])
def test_with_a_gpu_or_without_the_index_pytorch_is_the_default_build(
    has_gpu, install, index, tmp_path
):
    gpu = tmp_path / "nvidia-smi"
    gpu.write_text(f"#!/bin/sh\nexit {0 if has_gpu else 9}\n")
    gpu.chmod(0o755)
    done, calls = install(TORCH_INDEX=index if has_gpu else "http://127.0.0.1:9")
    assert len(calls) == 1
    assert "4.5 GB for NVIDIA GPUs" in done.stdout
    assert ("cannot be reached" in done.stdout) == (not has_gpu)
