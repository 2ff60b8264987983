"""The outputs of a shard are all there or not at all, wherever they are and whatever stops."""

import errno
import fcntl
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from features import output_places, scratch
from features.errors import UserError
from features.output_places import Busy, output_place
from features.remote_files import file_system
from features.scratch import scratch_folder
from features.shard_outputs import Outputs, make_shard, make_shards
from features.shards import Shard, ShardError, find_shards
from tests.object_store import object_store

SUFFIXES = (".jsonl", ".h5")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> Outputs:
    if request.param == "local":
        location = str(tmp_path / "out")
    else:
        location = f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return Outputs(location, "a.command", {"backbone": "small", "dtype": "int8"}, SUFFIXES)


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_text(name)
    return find_shards([f"{tmp_path}/{{0..1}}.tar"])


class Maker:
    """Writes the content of a shard and the number of times that it has been asked for it."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, shard: Shard, folder: Path) -> Mapping[str, int]:
        self.made.append(shard.name)
        content = f"{Path(shard.source).read_text()} {self.made.count(shard.name)}"
        if "broken" in content:
            raise ShardError("it says so")
        for suffix in SUFFIXES:
            (folder / f"{shard.name}{suffix}").write_text(content + suffix)
        return {"pictures": 3}


def content(outputs: Outputs, name: str) -> str | None:
    data = outputs.place.read(name)
    return None if data is None else data.decode()


def run(shards: list[Shard], outputs: Outputs, make: Callable, force: bool = False) -> list[str]:
    return [outcome.state for outcome in make_shards(shards, outputs, make, "test", force)]


def test_each_shard_is_made_once(outputs: Outputs, shards: list[Shard]) -> None:
    make = Maker()
    assert run(shards, outputs, make) == ["made", "made"]
    assert run(shards, outputs, make) == ["done", "done"]
    assert outputs.all_done(shards) == {"0", "1"}
    assert make.made == ["0", "1"]
    assert content(outputs, "1.h5") == "1.tar 1.h5"
    record = json.loads(content(outputs, "1.json") or "")
    assert record["files"]["1.jsonl"]["bytes"] == len("1.tar 1.jsonl")
    assert (record["pictures"], record["kind"]) == (3, outputs.kind)
    assert [outputs.wrong(shard) for shard in shards] == ["", ""]


def test_a_broken_shard_does_not_stop_the_others(outputs: Outputs, shards: list[Shard]) -> None:
    Path(shards[0].source).write_text("broken")
    broken, made = make_shards(shards, outputs, Maker(), "test")
    assert (broken.state, broken.reason, made.state) == ("broken", "it says so", "made")
    Path(shards[0].source).write_text("repaired")
    assert run(shards, outputs, Maker()) == ["made", "done"]


@pytest.mark.parametrize("missing", ["0.h5", "0.jsonl"])
def test_a_half_published_shard_is_made_again(
    missing: str, outputs: Outputs, shards: list[Shard]
) -> None:
    make = Maker()
    run(shards, outputs, make)
    outputs.place.remove(missing)
    assert outputs.wrong(shards[0]) == "it is not done"
    assert run(shards, outputs, make) == ["made", "done"]
    outputs.place.write(missing, b"{")
    assert run(shards, outputs, make) == ["made", "done"]
    assert content(outputs, "0.h5") == "0.tar 3.h5"


@pytest.mark.parametrize("name", ["0.json", "0.jsonl", "0.h5"])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_of_another_program_is_never_replaced(
    name: str, force: bool, outputs: Outputs, shards: list[Shard]
) -> None:
    outputs.place.write(name, b'{"photos": 3}')
    broken, made = make_shards(shards, outputs, Maker(), "test", force)
    assert (broken.state, made.state) == ("broken", "made")
    assert name in broken.reason
    assert "was not written by this project" in broken.reason
    assert content(outputs, name) == '{"photos": 3}'


def test_a_kill_between_any_two_steps_of_publishing_leaves_no_mixture(
    outputs: Outputs, shards: list[Shard]
) -> None:
    class Killed(Exception):
        pass

    make, step = Maker(), 0
    run(shards, outputs, make)
    while True:
        left, finished = step, replace(outputs, owner=f"run {step}")
        place = output_place(outputs.location)

        def counted(operation: Callable, place=place) -> Callable:
            def run(*arguments: object) -> object:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return operation(*arguments)

            return run

        for name in ("put", "write", "remove"):
            setattr(place, name, counted(getattr(place, name)))
        finished.__dict__["place"] = place
        try:
            make_shard(shards[0], finished, make, force=True)
        except Killed:
            step += 1
        else:
            break
        outputs.place.remove(".claims/0")  # or the next one would wait until it lapses
        record = outputs.done(shards[0])
        assert record is None or outputs.wrong(shards[0]) == ""
        assert make_shard(shards[0], outputs, make).state in ("made", "done")
        assert outputs.wrong(shards[0]) == ""
    assert step >= 4


def test_other_outputs_are_not_replaced_unless_forced(
    outputs: Outputs, shards: list[Shard], tmp_path: Path
) -> None:
    make = Maker()
    run(shards, outputs, make)
    other = replace(outputs, kind={**outputs.kind, "dtype": "float16"}, owner="another")
    with pytest.raises(UserError, match="other outputs than requested: dtype int8 instead of fl"):
        run(shards, other, make)
    with pytest.raises(UserError, match=r"was written by a\.command; choose another --out"):
        run(shards, replace(outputs, command="another"), make, force=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.tar").write_text("another shard 0")
    (tmp_path / "b" / "1.tar").write_text("1.ta?")  # of the same size
    (tmp_path / "c" / "0").mkdir(parents=True)
    (tmp_path / "c" / "0" / "0.tar").write_text("0.tar")
    patterns = [f"{tmp_path}/{name}" for name in ("b/1.tar", "c/0", "missing/0.tar")]
    for pattern in (f"{tmp_path}/b/0.tar", *patterns, "https://example.invalid/0.tar"):
        (outcome,) = make_shards(find_shards([pattern]), outputs, make, "test")
        assert outcome.state == "broken"
        assert "which may be another shard; choose another --out" in outcome.reason
    assert run(shards, other, make, force=True) == ["made", "made"]
    assert run(shards, other, make, force=True) == ["done", "done"]  # the same run
    assert content(outputs, "0.h5") == "0.tar 2.h5"


def test_a_shard_that_moved_is_done_and_one_that_changed_is_not(
    outputs: Outputs, shards: list[Shard], tmp_path: Path
) -> None:
    make = Maker()
    run(shards, outputs, make)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for shard in shards:
        Path(shard.source).replace(moved / f"{shard.name}.tar")
    assert run(shards, outputs, make) == ["done", "done"]  # the pictures may be deleted
    assert run(find_shards([f"{moved}/*.tar"]), outputs, make) == ["done", "done"]
    for shard in shards:
        Path(shard.source).write_text("changed")
    assert run(shards, outputs, make) == ["made", "made"]
    os.utime(shards[0].source, (1, 1))
    Path(shards[1].source).write_text("Changed")
    os.utime(shards[1].source, (1, 1))
    assert run(shards, outputs, make) == ["done", "made"]


def test_a_folder_that_moved_is_done_and_one_with_other_files_is_not(tmp_path: Path) -> None:
    outputs = Outputs(str(tmp_path / "out"), "a.command", {}, SUFFIXES)

    def make(shard: Shard, folder: Path) -> Mapping[str, int]:
        for suffix in SUFFIXES:
            (folder / f"{shard.name}{suffix}").touch()
        return {}

    def shard_in(name: str, *files: str) -> list[Shard]:
        (tmp_path / name / "photos" / "May").mkdir(parents=True)
        for file in files:
            (tmp_path / name / "photos" / file).write_text(file)
        return find_shards([f"{tmp_path}/{name}/photos"])

    assert run(shard_in("a", "0.jpg", "May/1.jpg"), outputs, make) == ["made"]
    assert run(shard_in("b", "May/1.jpg", "0.jpg", ".hidden"), outputs, make) == ["done"]
    assert run(shard_in("c", "0.jpg", "1.jpg"), outputs, make) == ["broken"]
    here = find_shards([f"{tmp_path}/a/photos"])
    (tmp_path / "a" / "photos" / "new.jpg").touch()
    assert run(here, outputs, make) == ["made"]
    (tmp_path / "a" / "photos" / "photos.jsonl").touch()  # as if OUT were in it
    assert run(here, outputs, make) == ["done"]
    for file in (tmp_path / "a" / "photos").rglob("*.jpg"):
        file.unlink()
    assert run(here, outputs, make) == ["done"]  # the pictures may be deleted


def test_a_remote_shard_that_was_replaced_is_made_again(bucket: str, tmp_path: Path) -> None:
    outputs, folder = (
        Outputs(str(tmp_path / "out"), "a.command", {}, SUFFIXES),
        f"{bucket}/replaced",
    )
    system = file_system(folder)

    def make(shard: Shard, folder: Path) -> Mapping[str, int]:
        for suffix in SUFFIXES:
            (folder / f"{shard.name}{suffix}").touch()
        return {}

    for content, first, then in ((b"one", "*", "{0..0}"), (b"two", "{0..0}", "*")):
        system.pipe_file(f"{folder}/0.tar", content)
        assert run(find_shards([f"{folder}/{first}.tar"]), outputs, make) == ["made"]
        assert run(find_shards([f"{folder}/{then}.tar"]), outputs, make) == ["done"]
    system.rm_file(f"{folder}/0.tar")
    assert run(find_shards([f"{folder}/{{0..0}}.tar"]), outputs, make) == ["done"]


def test_failures_that_may_pass_are_tried_again_once_in_a_run(
    shards: list[Shard], tmp_path: Path
) -> None:
    make, outputs = Maker(), Outputs(str(tmp_path / "out"), "a.command", {}, SUFFIXES)

    def failing(shard: Shard, folder: Path) -> Mapping[str, int]:
        return {**make(shard, folder), "failed": 2, "passing": passing[shard.name]}

    passing = {"0": 0, "1": 2}

    assert run(shards, outputs, failing) == ["made", "made"]
    assert run(shards, replace(outputs, owner="another"), failing) == ["done", "done"]
    again = replace(outputs, owner="a third", retry=True)
    assert run(shards, again, failing) == ["done", "done"]  # as many failed, so the old is kept
    assert content(outputs, "1.h5") == "1.tar 1.h5"
    passing["1"] = 1
    assert run(shards, again, failing) == ["done", "made"]
    assert run(shards, again, failing) == ["done", "done"]
    assert content(outputs, "1.h5") == "1.tar 3.h5"


def test_two_runs_share_the_work(outputs: Outputs, shards: list[Shard]) -> None:
    outputs.place.poll_seconds = 0.05
    slow, quick = Maker(), Maker()
    begun, go_on = threading.Event(), threading.Event()

    def wait(shard: Shard, folder: Path) -> Mapping[str, int]:
        begun.set()
        assert go_on.wait(60)
        return slow(shard, folder)

    states: list[str] = []
    other = replace(outputs, owner="another")
    thread = threading.Thread(target=lambda: states.extend(run(shards, other, wait)))
    thread.start()
    assert begun.wait(60)
    assert make_shard(shards[0], outputs, quick).state == "busy"
    assert make_shard(shards[1], outputs, quick).state == "made"
    timer = threading.Timer(0.3, go_on.set)
    timer.start()
    assert run(shards, outputs, quick) == ["done", "done"]
    thread.join()
    assert states == ["made", "done"]
    assert (slow.made, quick.made) == (["0"], ["1"])


def test_a_task_joins_the_claim_of_its_own_run(outputs: Outputs, shards: list[Shard]) -> None:
    """A second task for a straggler, and one that replaces a task on a node that is lost."""
    make, joined = Maker(), []

    def hang(shard: Shard, folder: Path) -> Mapping[str, int]:
        same_run = replace(outputs)
        thread = threading.Thread(target=lambda: joined.append(make_shard(shard, same_run, make)))
        thread.start()
        thread.join()
        return make(shard, folder)

    # On an object store the claim ended with the first of the two.
    assert make_shard(shards[0], outputs, hang).state in ("done", "busy")
    assert [outcome.state for outcome in joined] == ["made"]
    assert content(outputs, "0.h5") == "0.tar 1.h5"


def test_a_claim_on_an_object_store_lapses_only_when_it_is_not_renewed(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = output_place(f"{bucket}/lease")
    abandoned = json.dumps({"owner": "killed", "renewed": time.time() - 599}).encode()
    place.write(".claims/a", abandoned)
    with pytest.raises(Busy), place.claim("a", "me"):
        pass
    monkeypatch.setattr(output_places, "_LEASE_SECONDS", 10.0)
    monkeypatch.setattr(output_places, "_RENEW_SECONDS", 0.05)
    with place.claim("a", "me") as check:
        before = place.read(".claims/a")
        time.sleep(0.3)
        assert place.read(".claims/a") != before
        check()
        monkeypatch.setattr(output_places, "_RENEW_SECONDS", 3600.0)
        time.sleep(0.3)  # a renewal that has begun would replace the claim of the other
        place.write(".claims/a", json.dumps({"owner": "b", "renewed": time.time()}).encode())
        with pytest.raises(Busy):
            check()
    assert place.read(".claims/a") is not None  # of the other
    place.remove(".claims/a")


def test_of_two_processes_that_find_a_claim_lapsed_one_gets_it(bucket: str) -> None:
    first, second = (output_place(f"{bucket}/race") for _ in range(2))
    lapsed = json.dumps({"owner": "killed", "renewed": time.time() - 601}).encode()
    first.write(".claims/a", lapsed)
    read = first.read
    with ExitStack() as held:

        def overtaken(name: str) -> bytes | None:
            found = read(name)
            checks.append(held.enter_context(second.claim("a", "second")))
            return found

        checks: list[Callable[[], None]] = []
        first.read = overtaken  # type: ignore[method-assign]
        with pytest.raises(Busy), first.claim("a", "first"):
            pass
        (check,) = checks
        check()
        with pytest.raises(Busy), second.claim("a", "third"):
            pass


def test_uploads_that_a_killed_process_left_on_s3_are_aborted(
    bucket: str, tmp_path: Path, shards: list[Shard]
) -> None:
    location = f"{bucket}/{tmp_path.name}"
    system = file_system(location)

    def uploads() -> set[str]:
        return {upload["Key"] for upload in system.list_multipart_uploads("bucket")}

    others = {f"{tmp_path.name}/{name}" for name in ("0.h5.bak", "00.h5", "another/0.h5")}
    for key in {*others, f"{tmp_path.name}/0.h5", f"{tmp_path.name}/0.jsonl"}:
        system.call_s3("create_multipart_upload", Bucket="bucket", Key=key)
    assert len(uploads()) == 5
    outputs = Outputs(location, "a.command", {}, SUFFIXES)
    assert run(shards, outputs, Maker()) == ["made", "made"]
    assert uploads() == others


def test_a_store_that_fails_for_a_moment_is_asked_again(
    outputs: Outputs, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(outputs.place, output_places._Local):
        pytest.skip("a disk is not asked again")
    monkeypatch.setattr(output_places, "_WAITS", (0, 0))
    system = file_system(outputs.location)
    put, failures = system.put_file, [TimeoutError("slow"), OSError("reset")]

    def failing(*arguments: object) -> object:
        if failures:
            raise failures.pop()
        return put(*arguments)

    monkeypatch.setattr(system, "put_file", failing)
    assert run(shards, outputs, Maker()) == ["made", "made"]
    assert failures == []
    failures += [OSError("the store is gone")] * 3
    with pytest.raises(UserError, match=r"cannot reach s3://bucket/.*the store is gone; what was"):
        run(shards, replace(outputs, owner="another"), Maker(), force=True)


def _die_in_a_scratch_folder(root: str) -> None:
    tempfile.tempdir = root
    with scratch_folder() as folder:
        (folder / "large").touch()
        os._exit(9)


def test_what_killed_processes_left_in_temporary_folders_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    process = multiprocessing.get_context("fork").Process(
        target=_die_in_a_scratch_folder, args=(str(tmp_path),)
    )
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list(tmp_path.glob("*/large"))) == 1
    with scratch_folder() as alive:
        scratch._delete_left_over.cache_clear()
        with scratch_folder() as another:
            assert {path for path in tmp_path.iterdir() if path.is_dir()} == {alive, another}
    assert list(tmp_path.iterdir()) == []


def test_temporary_folders_of_running_processes_are_kept_on_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(fcntl, "flock", fail)
    with scratch_folder() as alive:
        scratch._delete_left_over.cache_clear()
        with scratch_folder():
            assert alive.is_dir()


def test_a_missing_bucket_is_named_without_waiting(
    bucket: str, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_places, "_WAITS", (600,))
    outputs = Outputs(f"{bucket}-of-nobody/out", "a.command", {}, SUFFIXES)
    with pytest.raises(UserError, match="no such file; check that the bucket exists and that"):
        run(shards, outputs, Maker())


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, message in {
        "https://example.org/out": "a web server cannot be written to",
        "strange://out": "Protocol not known: strange",
        "simplecache::s3://out": "expected one URL, found several joined by ::",
        f"{tmp_path}/file": "cannot make the folder",
    }.items():
        with pytest.raises(UserError, match=message):
            output_place(place)
