"""Searching a folder of pictures by words, with a captioner whose CNN sees only mean colours."""

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from decoder import demo, search
from decoder.captioning import search_stage
from decoder.captioning.writer import Caption, CaptionWriter
from decoder.ranking import albums, grades, nearest
from decoder.ranking.album_cache import AlbumCache, user_cache
from decoder.ranking.embedding import JointEmbedding
from decoder.ranking.embedding_file import provenance
from decoder.ranking.queries import parse
from decoder.runs import checkpoints
from decoder.runs.loading import load_description
from decoder.runs.packaged import packaged_captioner
from features.backbones import Backbone
from pipeline.work import RunFolder

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
CHANNELS = 3840


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The included captioner with an embedding in which colours lie near their names."""
    folder = tmp_path_factory.mktemp("captioner")
    for file in packaged_captioner().iterdir():
        folder.joinpath(file.name).symlink_to(file)
    run = RunFolder(folder)
    run.embedding.unlink(missing_ok=True)
    vocabulary, config = load_description(run)
    torch.manual_seed(0)
    model = JointEmbedding(len(vocabulary), CHANNELS).eval()
    with torch.no_grad():
        model.mean_C.fill_(0.4)
        model.picture.bias.zero_()
        model.sentence.bias.zero_()
        model.word.weight.mul_(0.01)
        inverse = torch.linalg.pinv(model.sentence.weight)
        for name, colour in COLOURS.items():
            vector = model.pictures(pooled(torch.tensor([[colour]])))[0]
            model.word.weight[vocabulary.ids[name]] = inverse @ vector
    tensors = {
        **model.state_dict(),
        "others.grid_IRC": torch.zeros(2 * 49, CHANNELS),
        "others.pooled_IC": torch.zeros(2, CHANNELS),
    }
    found = grades.Grades(0.5, 0.2, {"good": 0.8, "fair": 0.5, "weak": 0.1})
    header = {**provenance(vocabulary, config["fingerprint"]), "grades": found._asdict()}
    checkpoints.save(run.embedding, checkpoints.quantize(tensors), header)
    return folder


def pooled(pixels: torch.Tensor) -> torch.Tensor:
    """Return the mean colour of pictures, [B, ..., 3], as if a CNN had computed it."""
    return (pixels.float() / 255).flatten(1, -2).mean(1).repeat(1, CHANNELS // 3)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Replace the CNN, and count the pictures of each of its batches; keep the cache apart."""
    batches: list[int] = []

    def backbone(description: dict, device: torch.device, pictures: int) -> Backbone:
        def run(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            batches.append(int(pixels.flatten(1).any(1).sum()))  # a batch is padded with zeros
            means = pooled(pixels)
            return means[:, None], means

        return Backbone(description, device, "eager", run)

    monkeypatch.setattr(albums, "backbone_of", backbone)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return batches


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for name, colour in COLOURS.items():
        paint(folder / ("sub" if name == "blue" else "") / f"{name}.png", colour)
    return folder


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (64, 48), colour)
    picture.paste((255, 255, 255), (0, 0, 20, 20))  # a plain picture shows nothing
    picture.save(path)


def found(capsys, captioner: Path, album: Path, *arguments: str) -> list[dict]:
    capsys.readouterr()
    options = ["--run", str(captioner), "--folder", str(album), "--json"]
    assert search.main([*arguments, *options]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_words_find_pictures_and_scores_are_said_in_words(captioner, album, computed, capsys):
    results = found(capsys, captioner, album, "something", "in", "blue")
    assert Path(results[0]["path"]) == album / "sub" / "blue.png"
    assert results[0]["grade"] == "good"
    assert results[-1]["grade"] == "weak"
    scores = [one["score"] for one in results]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 3
    plain = ["a red", "--top", "1", "--run", str(captioner), "--folder", str(album)]
    assert search.main(plain) == 0
    assert capsys.readouterr().out == f"{album / 'red.png'}\tgood\n"
    (album / "red.png").rename(album / "re\nd.png")
    assert search.main(plain) == 0
    assert capsys.readouterr().out == f"{album}/re\\nd.png\tgood\n", "each result has one line"


def test_unknown_words_are_named_and_not_answered_with_pictures(captioner, album, computed, capsys):
    options = ["--run", str(captioner), "--folder", str(album)]
    assert search.main(["a", "xylophonist", "in", "quokkaland", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "is known (xylophonist, quokkaland)" in printed.err
    assert search.main(["of", "the", *options]) == 2
    assert "expected words that say what to look for" in capsys.readouterr().err
    assert search.main(["red", "xylophonist", *options]) == 0
    printed = capsys.readouterr()
    assert "ignored unknown words: xylophonist" in printed.err
    assert {line.split("\t")[1] for line in printed.out.splitlines()} == {"weak"}


def test_only_what_is_new_or_changed_is_computed(captioner, album, computed, capsys):
    def search_again() -> list[str]:
        computed.clear()
        return [Path(one["path"]).name for one in found(capsys, captioner, album, "blue")]

    assert search_again()[0] == "blue.png"
    assert sum(computed) == 3
    assert search_again()[0] == "blue.png"
    assert computed == []
    (album / "sub" / "blue.png").rename(album / "sea.png")
    assert search_again()[0] == "sea.png"
    assert computed == [], "a renamed picture is recognised by its content"
    paint(album / "green.png", COLOURS["blue"])
    os.utime(album / "sea.png")
    assert set(search_again()[:2]) == {"green.png", "sea.png"}
    assert sum(computed) <= 1
    (album / "red.png").unlink()
    assert set(search_again()) == {"green.png", "sea.png"}
    latin = os.fsdecode(b"caf\xe9.png")
    paint(album / latin, COLOURS["red"])
    assert len(search_again()) == 3
    moved = album.rename(album.with_name("moved"))
    computed.clear()
    assert len(found(capsys, captioner, moved, "blue")) == 3
    assert computed == []


def test_a_large_album_is_searched_by_an_index_with_the_same_answers(
    captioner, album, computed, monkeypatch, capsys
):
    pytest.importorskip("usearch", reason="needs the extra search")
    for number in range(6):
        paint(album / f"grey{number}.png", (40 * number, 40 * number, 30 * number))

    def answers() -> list[dict]:
        return found(capsys, captioner, album, "something", "blue")

    exact = answers()
    monkeypatch.setattr(nearest, "EXACT", 5)
    assert answers() == exact
    (file,) = user_cache().glob("*.usearch")
    written = file.stat().st_mtime_ns
    assert answers() == exact
    assert file.stat().st_mtime_ns == written
    (vectors,) = user_cache().glob("*.safetensors")
    vectors.write_bytes(vectors.read_bytes()[:100])
    assert answers() == exact, "damaged vectors are written again"
    paint(album / "sea.png", COLOURS["blue"])
    (album / "sub" / "blue.png").unlink()
    found_now = answers()
    assert found_now[0]["path"] == str(album / "sea.png")
    assert len(found_now) == len(exact)
    assert sum(computed) == 9, "the picture was known under another name"


def test_broken_pictures_are_listed_and_do_not_stop_the_others(captioner, album, computed, capsys):
    (album / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    Image.new("RGB", (40, 40), "white").save(album / "plain.png")
    for _ in range(2):  # the second time from the cache
        assert search.main(["red", "--run", str(captioner), "--folder", str(album)]) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 3
        assert f"cannot search {album / 'broken.jpg'}: " in printed.err
        assert f"cannot search {album / 'plain.png'}: it shows nothing" in printed.err
    assert sum(computed) == 3


def test_the_page_lists_what_it_cannot_search(captioner, album, computed, monkeypatch, capsys):
    (album / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (album / "raw.cr2").touch()
    pytest.importorskip("starlette")
    monkeypatch.setattr("decoder.captioning.page.PageCaptioner", lambda *_: None)
    monkeypatch.setattr("decoder.captioning.page_server.serve", lambda *_, **__: None)
    assert demo.main(["--run", str(captioner), "--folder", str(album), "--port", "0"]) == 0
    printed = capsys.readouterr().err
    assert f"demo: cannot search {album / 'broken.jpg'}: " in printed
    assert "demo: passed over in the folders: 1 x RAW" in printed


def test_an_interrupted_index_is_continued(captioner, album, computed, monkeypatch):
    def interrupted(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        albums.open_album(album, RunFolder(captioner), progress=interrupted)
    new: list[tuple[int, int]] = []
    opened = albums.open_album(
        album, RunFolder(captioner), progress=lambda *steps: new.append(steps)
    )
    assert len(opened) == 3
    assert new == [(1, 1)]


def test_a_second_process_waits_for_the_first(captioner, album, computed):
    run = RunFolder(captioner)
    albums.open_album(album, run)
    (key,) = (file.stem for file in user_cache().glob("*.sqlite"))
    paint(album / "more.png", COLOURS["red"])
    opened: list[albums.Album] = []
    with AlbumCache(album, key) as held, held.indexing():
        thread = threading.Thread(target=lambda: opened.append(albums.open_album(album, run)))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(20)
    assert len(opened[0]) == 4


def test_a_cache_that_cannot_be_used_stops_no_search(
    captioner, album, computed, tmp_path, monkeypatch, capsys, caplog
):
    found(capsys, captioner, album, "red")
    (file,) = user_cache().glob("*.sqlite")
    file.write_bytes(b"not a database, and long enough to be looked at" * 100)
    assert len(found(capsys, captioner, album, "red")) == 3
    assert "is damaged; starting it again" in caplog.text
    assert sum(computed) == 6
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(found(capsys, captioner, album, "red")) == 3
    assert "cannot keep the index of" in caplog.text
    assert sorted(path.name for path in album.rglob("*")) == [
        "blue.png",
        "green.png",
        "red.png",
        "sub",
    ]


def test_wrong_use_is_explained(captioner, album, tmp_path, capsys):
    included = captioner / "embedding.safetensors"
    without = tmp_path / "without"
    without.mkdir()
    for file in captioner.iterdir():
        if file != included:
            without.joinpath(file.name).symlink_to(file.resolve())
    empty = tmp_path / "empty"
    empty.mkdir()
    run = ["--run", str(captioner)]
    for arguments, message in {
        ("red", "--run", str(without), "--folder", str(album)): "decoder.export --search",
        ("red", *run, "--folder", str(empty)): "expected pictures in",
        ("red", *run, "--folder", str(album / "red.png")): "expected a folder of pictures",
        (*run, "--folder", str(album)): "expected what to look for in the --folder",
        ("red", *run, "--folder", str(album), "--work", "w"): "leave out --work",
        ("red", *run, "--html", "page.html"): "--html needs --folder",
        ("red", *run): "expected a folder of pictures to search (--folder)",
        ("red", *run, "--work", str(album)): f"--folder {album}",
    }.items():
        assert search.main(list(arguments)) == 2, arguments
        assert message in capsys.readouterr().err, arguments


def test_the_sheet_has_pictures_links_and_what_was_not_searched(
    captioner, album, computed, tmp_path, monkeypatch, capsys
):
    (album / "a & b.jpg").write_bytes(b"\xff\xd8\xff")
    at_once = []

    class Writer(CaptionWriter):
        def captions(self, paths):
            at_once.append(self._batch_size)
            yield album / "red.png", [Caption('A <red> "wall".', False, None, -1.0)]

    monkeypatch.setattr(search_stage, "CaptionWriter", Writer)
    sheet = tmp_path / "found.html"
    found(capsys, captioner, album, "red", "xylophonist", "--html", str(sheet))
    text = sheet.read_text()
    assert text.count('src="data:image/jpeg;base64,') == 3
    assert 'alt="A &lt;red&gt; &quot;wall&quot;."' in text
    assert 'href="album/sub/blue.png"' in text
    assert "Unknown words were ignored: xylophonist." in text
    assert "<li>a &amp; b.jpg: " in text
    assert "good 80%, fair 50%, weak 10%" in text
    assert at_once == [50], "however many pictures were found"
    again = ["red", "--run", str(captioner), "--folder", str(album), "--html", str(sheet)]
    assert search.main(again) == 0, "its own page is replaced"
    sheet.write_text("<h1>Our holiday</h1>")
    assert search.main(again) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert sheet.read_text() == "<h1>Our holiday</h1>"
    assert search.main([*again, "--force"]) == 0
    assert "holiday" not in sheet.read_text()


def test_queries_are_divided_as_captions_are(captioner):
    vocabulary, _ = load_description(RunFolder(captioner))
    query = parse("A dog's  red BALL, isn’t it? a t-shirt", vocabulary)
    assert query.words == ["a", "dog", "'s", "red", "ball", "is", "n't", "it", "a", "t-shirt"]
    assert query.content == ["dog", "red", "ball", "t-shirt"]
    assert parse("?!", vocabulary).words == []


def test_grades_promise_the_precision_that_was_measured():
    """Noisy pictures of 30 kinds, with a word for each kind."""
    torch.manual_seed(0)
    kinds = torch.nn.functional.normalize(torch.randn(30, 64))
    owners = torch.arange(300) % 30
    vectors = torch.nn.functional.normalize(kinds[owners] + 0.5 * torch.randn(300, 64))
    captions = [[[f"kind{owner}"]] for owner in owners.tolist()]

    def embed(sentences):
        return torch.stack([kinds[int(words[0][4:])] for words in sentences])

    measured = grades.measure(captions, vectors, embed, lambda word: True)
    assert measured is not None
    for size in (*measured.smaller, measured):
        assert size.precision["good"] >= 0.6
        assert 0.3 <= size.precision["fair"] < 0.6
    assert measured.precision["weak"] < 0.2
    assert measured.fair < measured.good
    assert grades.grades_of(json.loads(json.dumps(measured.as_record()))) == measured
    few, many = measured.smaller[0], measured
    assert (few.pictures, many.pictures) == (30, 300)
    assert few.good < many.good, "among few pictures a wrong one seldom scores as high"
    between = (few.good + many.good) / 2
    assert [measured.of(between, size) for size in (5, 30, 300, 10**6)] == ["good"] * 2 + [
        "fair"
    ] * 2
    assert f"good {few.precision['good']:.0%}" in measured.explained(30)
    before = measured._replace(smaller=None)._asdict()  # as files without sizes hold it
    del before["pictures"], before["smaller"]
    assert grades.grades_of(before).of(between, 30) == "fair"
    assert grades.measure(captions[:50], vectors[:50], embed, lambda word: True) is None
    with pytest.raises(ValueError, match="grades"):
        grades.grades_of({"good": 1})
