"""Unusual names of pictures and folders work from the data set to the report."""

import shutil
from pathlib import Path

import pytest

from decoder import caption, train
from evaluation import report
from pipeline import captions, extract, prepare
from tests.fuzz.readers import trained

LONG = "/".join(["a" * 200] * 5) + "/" + "long " * 20 + ".jpg"  # 1,100 characters
NAMES = [
    "two words.jpg",
    "été.jpg",
    "e\u0301te\u0301.jpg",  # looks the same but is another name
    "犬 🐕.jpg",
    "-rf.jpg",
    "50% #1 & 'two' <b>.jpg",
    "a..b.jpg",
    LONG,
    ".hidden.jpg",
    "back\\slash.jpg",
    "$HOME `id` $(id).jpg",
    "x.jpg",
]


@pytest.fixture(scope="module")
def work(extracted_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained work directory; its name and those of its pictures are unusual."""
    folder = tmp_path_factory.mktemp("unusual")
    root, work = folder / "röot 'of' all", folder / "work\nof 🐕"
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(extracted_shapes / "images" / f"{i:06}.jpg", root / name)
    rows = [f'"{n}",A dog {i},{"val" if i % 3 else "train"}\n' for i, n in enumerate(NAMES)]
    (root / "captions.csv").write_text("file_name,caption,split\n" + "".join(rows))
    given = ["--dataset", "folder", "--root", str(root), "--min-count", "1"]
    assert prepare.main([*given, "--work", str(work)]) == 0
    lite0 = ["--backbone", "efficientnet_lite0", "--backend", "eager"]
    assert extract.main(["--work", str(work), *lite0]) == 0
    train.train(trained(work))
    return work


def test_unusual_names_work_from_the_data_set_to_the_report(work: Path) -> None:
    table = captions.load(work / "captions.json")
    assert sorted(image.file_name for image in table.images) == sorted(NAMES)
    run = work / "runs" / "small"
    assert caption.main(["--run", str(run), "--split", "val"]) == 0
    assert report.main(["--run", str(run), "--images", "12"]) == 0
    page = (run / "report.html").read_text()
    assert "50% #1 &amp; &#39;two&#39; &lt;b&gt;.jpg" in page
    assert LONG in page


def test_pictures_with_unusual_names_are_captioned(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = str(work / "runs" / "small"), captions.load(work / "captions.json").root
    capsys.readouterr()
    assert caption.main(["--run", run, str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == sorted(str(root / name) for name in NAMES)


def test_name_with_a_line_break_needs_json_output(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = str(work / "runs" / "small"), captions.load(work / "captions.json").root
    picture = tmp_path / "a\n/etc/passwd\tA lie.jpg"
    picture.parent.mkdir(parents=True)
    shutil.copy(root / "x.jpg", picture)
    assert caption.main(["--run", run, str(tmp_path)]) == 2
    assert "1 names contain a line break" in capsys.readouterr().err
    assert caption.main(["--run", run, "--json", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_too_long_a_name_does_not_stop_the_other_pictures(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, root = str(work / "runs" / "small"), captions.load(work / "captions.json").root
    assert caption.main(["--run", run, "x" * 1000 + ".jpg", str(root / "x.jpg")]) == 1
    shown = capsys.readouterr()
    assert "x.jpg: File name too long" in shown.err
    assert len(shown.out.splitlines()) == 1


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\tb.jpg", "a\x1b[2J.jpg", "/etc/x.jpg", "../x.jpg"])
def test_error_for_a_refused_name_quotes_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.csv").write_text(f'file_name,caption\n"{name}",A dog\n"b.jpg",A dog\n')
    given = ["--dataset", "folder", "--root", str(tmp_path), "--work", str(tmp_path / "work")]
    assert prepare.main(given) == 2
    assert repr(name) in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--root", "--work"])
def test_folder_with_too_long_a_name_is_refused(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--dataset": "folder", "--root": str(tmp_path), "--work": str(tmp_path / "work")}
    given[option] = str(tmp_path / ("x" * 1000))
    assert prepare.main([text for pair in given.items() for text in pair]) == 2
    assert "File name too long" in capsys.readouterr().err
