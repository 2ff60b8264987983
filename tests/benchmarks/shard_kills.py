"""Kill extractions by shards at random moments, and check that every shard ends right.

    .venv/bin/python -m tests.benchmarks.shard_kills [--ray 30]

Small shards of drawn pictures go through the real CNN. What is killed with SIGKILL: the command
itself, alone or beside a second one, with a folder or a server that speaks S3 as the output; the
process through which this server is reached; on a Ray cluster of two nodes the workers, a node, and
the command that drives it. After each kill all that counts as done is compared with the outputs of
an uninterrupted run, byte for byte, and nothing that was done once may be made again. The exit
status is 1 if anything differs.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import tyro

from features import output_places
from pipeline.extract import main as extract
from tests.object_store import object_store
from tests.tar_shards import shard

BACKBONE = ["--backbone", "efficientnet_lite0", "--backend", "eager", "--batch-size", "4"]
SHARDS, PICTURES = 12, 4
BROKEN = "07"  # the name of a shard that is cut off
SUFFIXES = (".jsonl", ".h5")
LEASE_SECONDS = 4.0  # instead of ten minutes


def _command(arguments: list[str], environment: dict[str, str], output: Path) -> None:
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(environment)
    output_places._LEASE_SECONDS, output_places._RENEW_SECONDS = LEASE_SECONDS, 0.5
    sys.exit(extract(arguments))


def _forward(port: int, target: int) -> None:
    """Pass on connections to another port of this machine, until killed."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    server = socket.create_server(("127.0.0.1", port), reuse_port=True)
    while True:
        client, _ = server.accept()
        there = socket.create_connection(("127.0.0.1", target))
        for pair in ((client, there), (there, client)):
            threading.Thread(target=pump, args=pair, daemon=True).start()


class Bench:
    """Processes to start and kill, and what the outputs must be."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        self.rounds = 0
        self._outputs: dict[int, Path] = {}
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["pipeline.extract", "pipeline.extract_shards"])
        (folder / "in").mkdir()
        for number in range(SHARDS):
            name = f"{number:02}"
            keys = [f"{name}{picture}" for picture in range(PICTURES)]
            path = shard(folder / "in" / f"{name}.tar", keys, broken=keys[:1])
            if name == BROKEN:
                path.write_bytes(path.read_bytes()[:5000])
        assert extract([*self.arguments(str(folder / "expected")), "-q"]) == 1
        self.expected = {
            path.name: path.read_bytes()
            for path in (folder / "expected").iterdir()
            if path.suffix in SUFFIXES
        }
        assert len(self.expected) == len(SUFFIXES) * (SHARDS - 1)

    def mistake(self, what: str) -> None:
        """Print a mistake, and keep it for the end."""
        print(what, flush=True)
        self.wrong.append(what)

    def arguments(self, out: str) -> list[str]:
        pattern = f"{self.folder}/in/{{00..{SHARDS - 1:02}}}.tar"
        return ["--shards", pattern, "--out", out, *BACKBONE]

    def start(
        self, out: str, *options: str, environment: dict[str, str] | None = None
    ) -> ForkServerProcess:
        output = self.folder / f"output {len(self._outputs)}"
        arguments = [*self.arguments(out), *options]
        process = self._context.Process(
            target=_command, args=(arguments, environment or {}, output)
        )
        process.start()
        assert process.pid is not None
        self._outputs[process.pid] = output
        return process

    def wait(self, process: ForkServerProcess, seconds: float) -> None:
        """Wait until a command ends, or a random moment after it has begun its first shard."""
        output = self._outputs[process.pid or 0]
        early = self.chance.random() < 0.1
        while not early and process.exitcode is None:
            if output.exists() and "to do" in output.read_text():
                break
            time.sleep(0.05)
        process.join(self.chance.uniform(0, seconds))

    def start_forwarding(self, port: int, target: int) -> ForkServerProcess:
        process = self._context.Process(target=_forward, args=(port, target))
        process.start()
        return process

    def kill(self, pid: int | None, what: str) -> bool:
        """Kill a process, unless it has ended; count it."""
        try:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.counts[what] += 1
        return True

    def check(self, where: str, read: Callable[[str], bytes | None], seen: dict[str, str]) -> int:
        """Compare all that is done in an output; return the number of shards.

        `seen` says which run made each shard that was done before.
        """
        done = 0
        for name in (f"{number:02}" for number in range(SHARDS)):
            record = read(f"{name}.json")
            outputs = {f"{name}{suffix}": read(f"{name}{suffix}") for suffix in SUFFIXES}
            if record is None or read(f"{name}.json") != record:  # just being published
                continue
            if None in outputs.values():
                if name in seen:
                    self.mistake(f"{where}: {name} is gone")
                continue
            done += 1
            if any(self.expected[file] != content for file, content in outputs.items()):
                self.mistake(f"{where}: {name} differs")
            owner = json.loads(record)["owner"]
            if seen.setdefault(name, owner) != owner:
                self.mistake(f"{where}: {name} was made twice")
        return done

    def finish(
        self,
        where: str,
        process: ForkServerProcess,
        read: Callable[[str], bytes | None],
        seen: dict[str, str],
    ) -> None:
        """Check how a job ended."""
        self.rounds += 1
        done = self.check(where, read, seen)
        print(f"{where}: {self.counts.total()} kills so far", flush=True)
        if process.exitcode != 1:  # because of the shard that is broken
            text = self._outputs[process.pid or 0].read_text()[-500:]
            self.mistake(f"{where}: exit status {process.exitcode}: {text}")
        if done != SHARDS - 1:
            self.mistake(f"{where}: {done} shards are done at the end")


def in_folder(folder: Path) -> Callable[[str], bytes | None]:
    """Return what reads the files of a folder."""

    def read(name: str) -> bytes | None:
        path = folder / name
        return path.read_bytes() if path.exists() else None

    return read


def kill_commands(bench: Bench, kills: int, seconds: float, both: bool) -> None:
    """Kill the command, or one of two on the same output, again and again."""
    what = "one of two commands" if both else "the command"
    while bench.counts[what] < kills:
        out = bench.folder / "out"
        seen: dict[str, str] = {}
        processes = [bench.start(str(out)) for _ in range(1 + both)]
        while processes:
            victim = bench.chance.choice(processes)
            bench.wait(victim, seconds)
            if victim.exitcode is None and bench.counts[what] < kills:
                bench.kill(victim.pid, what)
                victim.join()
                processes[processes.index(victim)] = bench.start(str(out))
            bench.check(what, in_folder(out), seen)
            for process in [p for p in processes if p.exitcode is not None]:
                processes.remove(process)
                if not processes:
                    bench.finish(what, process, in_folder(out), seen)
        shutil.rmtree(out)


@contextmanager
def forwarded(bench: Bench) -> Iterator[tuple[int, list[ForkServerProcess]]]:
    """Reach the object store of this process through a process that can be killed."""
    target = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    proxies = [bench.start_forwarding(port, target)]
    try:
        yield port, proxies
    finally:
        proxies[-1].kill()
        proxies[-1].join()


def kill_object_store(bench: Bench, kills: int, seconds: float) -> None:
    """Kill the command, or the process through which its object store is reached."""
    with object_store() as bucket, forwarded(bench) as (port, proxies):
        import s3fs

        system = s3fs.S3FileSystem()
        target = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        names = [f"AWS_{name}" for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION")]
        environment = {name: os.environ[name] for name in (*names, "NO_PROXY")}
        environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        first = bench.counts.total()
        while bench.counts.total() < first + kills:
            out = f"{bucket}/{bench.rounds}"
            seen: dict[str, str] = {}

            def read(name: str, out: str = out) -> bytes | None:
                path = f"{out}/{name}"
                return system.cat_file(path) if system.exists(path) else None

            process = bench.start(out, environment=environment)
            while True:
                bench.wait(process, seconds)
                bench.check("S3", read, seen)
                if process.exitcode not in (None, 2):  # 2: the store could not be reached
                    break
                if process.exitcode is not None or bench.counts.total() >= first + kills:
                    if process.exitcode is not None:
                        process = bench.start(out, environment=environment)
                    continue
                if bench.chance.random() < 0.5:
                    if bench.kill(process.pid, "the command, with S3"):
                        process.join()
                        process = bench.start(out, environment=environment)
                elif bench.kill(proxies[-1].pid, "the way to S3"):
                    proxies[-1].join()
                    time.sleep(bench.chance.choice((0, 1)))
                    proxies.append(bench.start_forwarding(port, target))
            bench.finish("S3", process, read, seen)


def kill_ray(bench: Bench, kills: int, seconds: float) -> None:
    """Kill workers, a node and the driver of jobs on a Ray cluster of two nodes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        node = cluster.add_node(**size)
        environment = {"RAY_ADDRESS": cluster.address}
        options = ("--engine", "ray")
        first = bench.counts.total()
        while bench.counts.total() < first + kills:
            out = bench.folder / "out"
            seen: dict[str, str] = {}
            process = bench.start(str(out), *options, environment=environment)
            while process.exitcode is None:
                bench.wait(process, seconds)
                bench.check("Ray", in_folder(out), seen)
                if process.exitcode is not None or bench.counts.total() >= first + kills:
                    continue
                what = bench.chance.choice(["worker"] * 6 + ["node", "driver", "driver"])
                workers = _workers(cluster)
                if what == "worker" and workers:
                    bench.kill(bench.chance.choice(workers), "a Ray worker")
                elif what == "node":
                    cluster.remove_node(node, allow_graceful=False)
                    bench.counts["a Ray node"] += 1
                    node = cluster.add_node(**size)
                elif what == "driver" and bench.kill(process.pid, "the driver of a Ray job"):
                    process.join()
                    process = bench.start(str(out), *options, environment=environment)
            bench.finish("Ray", process, in_folder(out), seen)
            shutil.rmtree(out)
    finally:
        cluster.shutdown()


def _workers(cluster: object) -> list[int]:
    """Return the process ids of the cluster's workers: children of its raylets."""
    raylets = {
        info.process.pid
        for node in cluster.list_all_nodes()  # type: ignore[attr-defined]
        for info in node.all_processes.get("raylet", [])
    }
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name = (stat.parent / "cmdline").read_bytes()
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent in raylets and name.startswith(b"ray::") and b"agent" not in name.lower():
            found.append(int(stat.parent.name))
    return found


def main(
    command: int = 30,
    pair: int = 30,
    s3: int = 30,
    ray: int = 30,
    seconds: float = 4.0,
    seed: int = 1,
) -> int:
    """Kill again and again; print a line for each kind of kill, and a total.

    Args:
        command: number of kills of the command, with a folder as the output.
        pair: of one of two commands that share a folder.
        s3: of the command or the way to its object store.
        ray: of workers, a node and the driver of a Ray cluster.
        seconds: longest time from the first work of a process to its kill.
        seed: of the random moments.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), seed)
        kill_commands(bench, command, seconds, both=False)
        kill_commands(bench, pair, seconds, both=True)
        kill_object_store(bench, s3, seconds)
        if ray:
            kill_ray(bench, ray, 2 * seconds)
    for what, count in bench.counts.items():
        print(f"{count:4} kills of {what}")
    print(
        f"{bench.counts.total()} kills in {bench.rounds} jobs of {SHARDS} shards in "
        f"{(time.monotonic() - started) / 60:.0f} min; {len(bench.wrong)} mistakes"
    )
    for mistake in bench.wrong:
        print(mistake)
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
