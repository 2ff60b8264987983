"""Extract 200 shards of Flickr8k on a Ray cluster of two nodes, one of which is killed.

    .venv/bin/python -m tests.benchmarks.shard_job --flickr8k ../shared/flickr8k [--shards 200]

The pictures are repeated, and each repetition has a key of its own. The set of stores is compared,
row for row, with one store that one process makes of all the pictures; then a work directory is
prepared from them and a small decoder trained. The exit status is 1 if a row differs or a command
fails.
"""

import io
import os
import sys
import tarfile
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import tyro

from decoder.train import main as train
from features.store import STORED, FeatureStore
from features.store_set import StoreSet
from pipeline.extract import main as extract
from pipeline.prepare import main as prepare

TRAINING = ["--run", "small", "--hidden", "64", "--attention", "32", "--rl.epochs", "0"]


def write_shards(flickr8k: Path, folder: Path, shards: int, pictures: int) -> None:
    """Write tar shards of pictures and their captions, in the way of img2dataset."""
    captions: dict[str, list[str]] = {}
    token = flickr8k / "Flickr8k_text" / "Flickr8k.token.txt"
    for line in token.read_text(encoding="utf-8").splitlines():
        name, _, caption = line.partition("\t")
        captions.setdefault(name.partition("#")[0], []).append(caption)
    photographs = sorted((flickr8k / "Flicker8k_Dataset").glob("*.jpg"))
    paths = cycle(path for path in photographs if path.name in captions)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for number, path in enumerate(islice(paths, pictures)):
                key = f"{shard:05}{number:04}"
                texts = "\n".join(captions[path.name]).encode()
                for suffix, content in ((".jpg", path.read_bytes()), (".txt", texts)):
                    member = tarfile.TarInfo(f"{key}{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def extract_on_ray(arguments: list[str], out: Path, kill_after: int) -> int:
    """Run pipeline.extract on a cluster of two nodes; kill one when some shards are done."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        node = cluster.add_node(**size)
        ray.init(address=cluster.address, log_to_driver=False)

        def kill() -> None:
            while (done := len(list(out.glob("*.h5")))) < kill_after:
                time.sleep(0.2)
            cluster.remove_node(node, allow_graceful=False)
            print(f"a node was killed when {done} shards were done", flush=True)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        status = extract([*arguments, "--out", str(out), "--engine", "ray"])
        killer.join(1)
        return status
    finally:
        ray.shutdown()
        cluster.shutdown()


def differing(out: Path, whole: FeatureStore) -> tuple[int, int]:
    """Compare the rows of the set of stores in `out` with one store's; return (wrong, rows)."""
    stores = StoreSet(out)
    ids = whole.image_ids
    wrong = int((whole.status != STORED).sum())
    for start in range(0, len(ids), 100):
        others = np.arange(start, min(start + 100, len(ids)))
        rows = stores.rows(ids[others].tolist())
        same = (stores.grid(rows) == whole.grid(others)).all((1, 2))
        same &= (stores.pooled(rows) == whole.pooled(others)).all(1)
        wrong += int((~same).sum())
    return wrong, sum(len(FeatureStore(path)) for path in out.glob("*.h5"))


def main(
    flickr8k: Path, shards: int = 200, pictures: int = 10, backbone: str = "efficientnet_lite0"
) -> int:
    """Run the job, and print how long it took and what differs.

    Args:
        flickr8k: the folder of Flickr8k.
        shards: number of shards.
        pictures: number of pictures of a shard.
        backbone: the CNN.
    """
    # One runtime on all processes: the last digits of features depend on it.
    options = ["--backbone", backbone, "--backend", "onnxruntime", "--workers", "1"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("in", "one"):
            (folder / name).mkdir()
        write_shards(flickr8k, folder / "in", shards, pictures)
        every = {s.name: s.read_bytes() for s in sorted((folder / "in").iterdir())}
        with tarfile.open(folder / "one" / "all.tar", "w") as archive:
            for content in every.values():
                with tarfile.open(fileobj=io.BytesIO(content)) as part:
                    for member in part:
                        archive.addfile(member, part.extractfile(member))

        start = time.monotonic()
        pattern = f"{folder}/in/{{00000..{shards - 1:05}}}.tar"
        out = folder / "out"
        if extract_on_ray(["--shards", pattern, *options], out, shards // 3):
            return 1
        seconds = time.monotonic() - start
        one = ["--shards", f"{folder}/one/all.tar", "--out", f"{folder}/whole", *options]
        if extract([*one, "-q"]):
            return 1
        wrong, rows = differing(out, FeatureStore(folder / "whole" / "all.h5"))
        print(
            f"{len(list(out.glob('*.h5')))} of {shards} stores in {seconds:.0f} s, one node of two "
            f"killed; {rows:,} rows, {wrong} of which differ from those of one process"
        )
        work = ["--work", str(folder / "work")]
        failed = prepare(["--dataset", "shards", "--root", str(out), *work]) or train(
            [*work, *TRAINING, "--xe.epochs", "1"]
        )
        return 1 if failed or wrong or rows != shards * pictures else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
