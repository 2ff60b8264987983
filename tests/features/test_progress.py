"""Progress: a bar on a terminal, a line now and then in a log, nothing where it is not wanted."""

import pytest

from features import progress
from features.progress import Progress, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test advances: `clock.now`, in seconds."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then_with_the_time_left(clock, capsys):
    with Progress("extract", 2000, "image", done=1000) as shown:
        for clock.now in range(1, 1001):
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "extract: 1,010 of 2,000 images, 16:30 left"
    done = [line.split()[1] for line in lines]
    assert done[:3] == ["1,010", "1,040", "1,070"]
    assert done[-1] == "1,970", "nothing is left to say at the end"


def test_the_time_that_networks_take_to_load_is_not_multiplied(clock, capsys):
    with Progress("caption", 10, "picture") as shown:
        for clock.now in (20, 21, 52):
            shown.update()
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["caption: 1 of 10 pictures", "caption: 3 of 10 pictures, 01:52 left"]


def test_bytes_are_shown_in_large_units(clock, capsys):
    with Progress("coco.zip", None, "B", scale=True) as shown:
        clock.now = 20
        shown.update(3_000_000)
    assert capsys.readouterr().err == "coco.zip: 3.00MB\n"


@pytest.mark.parametrize("way", ["short", "hidden", "quiet"])
def test_nothing_is_shown_of_a_short_or_hidden_task(way, clock, capsys):
    progress.set_quiet(way == "quiet")
    try:
        with Progress("draw", 5, "image", hidden=way == "hidden") as shown:
            clock.now = 5 if way == "short" else 50
            shown.update()
    finally:
        progress.set_quiet(False)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "BAR_AFTER", 0)
    assert list(track("abc", "draw", "letter")) == ["a", "b", "c"]
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "draw: 100%" in bar
    assert "3/3 [00:00<00:00" in bar
