"""A job on a Ray cluster ends with every shard right, whatever dies on the way."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from features import ray_engine
from features.errors import UserError
from features.ray_engine import make_shards_on_ray
from features.shard_outputs import Outputs, make_shards
from features.shards import Shard, find_shards

ray = pytest.importorskip("ray", reason="needs Ray, the extra ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster on this machine: a head node with two CPUs and a GPU that is not there."""
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": memory}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def make(shard: Shard, folder: Path, attempts: Path) -> Mapping[str, Any]:
    """Write a shard, after what its name says: die always, die once, hang once, and so on.

    The one that hangs is published by another task meanwhile; it deletes that output at once, as a
    task does that begins to publish its own.
    """
    with (attempts / shard.name).open("a") as log:
        log.write(f"{os.getpid()}\n")
    first = len((attempts / shard.name).read_text().splitlines()) == 1
    if shard.name == "dies" or (shard.name == "dies once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if shard.name == "hangs once" and first:
        other = attempts.parent / "out" / f"{shard.name}.h5"
        while not other.exists():
            pass
        other.unlink()
        time.sleep(600)
    if shard.name == "second dies":
        if not first:
            os.kill(os.getpid(), signal.SIGKILL)
        while len((attempts / shard.name).read_text().splitlines()) == 1:
            time.sleep(0.1)
        time.sleep(0.5)  # until the driver knows
    if shard.name == "refuses":
        raise UserError("the disk is full")
    time.sleep(0.4)
    (folder / f"{shard.name}.h5").write_text(shard.name)
    return {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "end": time.time()}


def job(tmp_path: Path, *names: str) -> tuple[list[Shard], Outputs, Any]:
    attempts = tmp_path / "attempts"
    attempts.mkdir()
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
    outputs = Outputs(str(tmp_path / "out"), "a.command", {"backbone": "small"}, (".h5",))
    return find_shards([f"{tmp_path}/in/*"]), outputs, partial(make, attempts=attempts)


def test_a_job_survives_dead_workers_a_dead_node_and_a_hanging_task(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "STRAGGLER_SECONDS", 3.0)
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    numbers = [f"{number:02}" for number in range(16)]
    shards, outputs, attempt = job(tmp_path, *numbers, "dies", "dies once", "hangs once")
    out = tmp_path / "out"

    def kill_the_node() -> None:
        while len(list(out.glob("*.h5"))) < 6:
            time.sleep(0.1)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill_the_node)
    killer.start()
    outcomes = {o.shard.name: o for o in make_shards_on_ray(shards, outputs, attempt, "test")}
    killer.join()
    assert outcomes.keys() == {shard.name for shard in shards}
    broken = outcomes.pop("dies")
    assert (broken.state, broken.reason[:22]) == ("broken", "its worker died 4 time")
    assert {outcome.state for outcome in outcomes.values()} <= {"made", "done"}
    assert {path.stem: path.read_text() for path in out.glob("*.h5")} == {n: n for n in outcomes}
    assert [outputs.wrong(shard) for shard in shards if shard.name != "dies"] == [""] * 18
    tried = {path.name: path.read_text() for path in (tmp_path / "attempts").iterdir()}
    # If the one that hangs dies with the node, it deletes nothing; or the node ends another try.
    assert all(2 <= tried[name].count("\n") <= 3 for name in ("hangs once", "dies once"))
    assert 4 <= tried["dies"].count("\n") <= 8  # a second task may have been started for it
    # Few shards were made twice, and only where a worker or the node died.
    assert sum(tried[name].count("\n") for name in numbers) <= len(numbers) + 3
    assert [o.state for o in make_shards(shards[:4], outputs, attempt, "test")] == ["done"] * 4


def test_a_second_task_that_dies_does_not_end_the_first(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_RETRIES": 0, "STRAGGLER_SECONDS": 0.3, "_STRAGGLER_RATIO": 0.1}.items():
        monkeypatch.setattr(ray_engine, name, value)
    shards, outputs, attempt = job(tmp_path, "a", "second dies")
    outcomes = make_shards_on_ray(shards, outputs, attempt, "test")
    assert [(o.shard.name, o.state) for o in outcomes] == [("a", "made"), ("second dies", "made")]
    assert (tmp_path / "attempts" / "second dies").read_text().count("\n") == 2


def test_what_no_node_can_run_is_noticed(cluster: Any) -> None:
    assert not ray_engine._lack(ray.nodes(), cpus=2, gpus=0.5)
    for cpus, gpus in ((3, 0), (1, 2)):
        found = ray_engine._lack(ray.nodes(), cpus, gpus)
        assert (
            found
            == f"each shard needs a node of Ray with {cpus} CPUs and {gpus} GPUs, found 2 and 1"
        )


def test_tasks_share_a_gpu_by_fractions(cluster: Any, tmp_path: Path) -> None:
    shards, outputs, attempt = job(tmp_path, "a", "b")
    outcomes = make_shards_on_ray(shards, outputs, attempt, "test", gpus=0.5)
    assert [outcome.facts["gpus"] for outcome in outcomes] == ["0", "0"]


def test_an_error_of_all_shards_ends_the_job(cluster: Any, tmp_path: Path) -> None:
    shards, outputs, attempt = job(tmp_path, "a", "refuses")
    with pytest.raises(UserError, match="the disk is full"):
        make_shards_on_ray(shards, outputs, attempt, "test")
