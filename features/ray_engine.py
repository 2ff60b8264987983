"""Making the outputs of shards on a Ray cluster, a task for each shard."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from features import progress
from features.errors import UserError, first_line
from features.extras import need
from features.shard_outputs import Make, Outcome, Outputs, make_shard
from features.shards import Shard

log = logging.getLogger(__name__)

_RETRIES = 3  # of a task whose worker or node died
_AHEAD = 4  # tasks submitted for each that can run, so that no worker waits for the driver
_SHARDS_OF_A_GPU_WORKER = 50  # after that it ends, and its successor may get another GPU
STRAGGLER_SECONDS = 60.0
_STRAGGLER_RATIO = 4.0


def make_shards_on_ray(
    shards: Iterable[Shard],
    outputs: Outputs,
    make: Make,
    what: str,
    force: bool = False,
    cpus: float = 1,
    gpus: float = 0,
) -> list[Outcome]:
    """Make the outputs of shards as `features.shard_outputs.make_shards` does, by tasks of Ray.

    A task whose worker or node dies is started again elsewhere, three times; then its shard is
    broken. If at the end a shard takes four times as long as any before, a second task is started
    for it, and the first to finish counts. The cluster is the one this process is connected to,
    the one in RAY_ADDRESS or the one running on this machine; else one is started here.

    Args:
        shards: the shards.
        outputs: where the outputs go; all nodes must reach it.
        make: see `make_shard`; all nodes must be able to import it.
        what: the name of the task for its progress.
        force: make them even if they are there.
        cpus: CPUs that a task needs.
        gpus: GPUs that a task needs, perhaps a fraction of one.

    Raises:
        UserError: Ray is not installed, or see `make_shard`; what was published is kept.
    """
    need("ray")
    import ray

    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot reach the Ray cluster: {first_line(error)}") from error
    task = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=_RETRIES,
        max_calls=_SHARDS_OF_A_GPU_WORKER if gpus else 0,
        scheduling_strategy="SPREAD",
    )(_task)
    job = _Job(lambda shard: task.remote(shard, outputs, make, force), outputs.place.poll_seconds)
    try:
        return job.run(list(shards), what, cpus, gpus)
    finally:
        for ref in job.running:
            ray.cancel(ref, force=True)
        if started:
            ray.shutdown()


def _task(shard: Shard, outputs: Outputs, make: Make, force: bool) -> Outcome | str:
    """Make a shard on a worker; return the message of a UserError, which must end the job."""
    progress.set_quiet(True)
    try:
        return make_shard(shard, outputs, make, force)
    except UserError as error:
        return str(error)


class _Job:
    """The tasks of one call of `make_shards_on_ray`.

    Args:
        submit: starts the task of a shard and returns its reference.
        poll_seconds: how long to wait before a busy shard is tried again.
    """

    def __init__(self, submit: Any, poll_seconds: float) -> None:
        self._submit = submit
        self._poll_seconds = poll_seconds
        self.running: dict[Any, Shard] = {}
        self._doubled: set[str] = set()

    def run(self, shards: list[Shard], what: str, cpus: float, gpus: float) -> list[Outcome]:
        import ray

        queue, busy = deque(shards), deque[tuple[float, Shard]]()
        outcomes: list[Outcome] = []
        longest, last = 0.0, time.monotonic()
        with progress.Progress(what, len(shards), "shard") as shown:
            while queue or self.running or busy:
                while busy and busy[0][0] < time.monotonic():
                    queue.append(busy.popleft()[1])
                most = _AHEAD * _slots(ray.cluster_resources(), cpus, gpus)
                while queue and len(self.running) < most:
                    shard = queue.popleft()
                    self.running[self._submit(shard)] = shard
                if not self.running:
                    time.sleep(min(1.0, self._poll_seconds))
                    continue
                ready, _ = ray.wait(list(self.running), timeout=1.0)
                for ref in ready:
                    outcome = self._result(ref)
                    if outcome.state == "busy":
                        busy.append((time.monotonic() + self._poll_seconds, outcome.shard))
                        continue
                    outcomes.append(outcome)
                    shown.update()
                    last = time.monotonic()
                    longest = max(longest, outcome.facts.get("seconds", 0.0))
                limit = max(STRAGGLER_SECONDS, _STRAGGLER_RATIO * longest)
                if longest and not queue and time.monotonic() - last > limit:
                    self._double()
        return outcomes

    def _result(self, ref: Any) -> Outcome:
        """Return what became of a shard, and cancel another task for it."""
        import ray

        shard = self.running.pop(ref)
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            why = f"its worker died {_RETRIES + 1} times ({first_line(error)})"
            result = Outcome(shard, "broken", reason=why)
        if isinstance(result, str):
            raise UserError(result)
        for other in [other for other, same in self.running.items() if same == shard]:
            if result.state != "busy":
                ray.cancel(other, force=True)
                del self.running[other]
        return result

    def _double(self) -> None:
        """Start a second task for each shard that has only one."""
        for shard in [s for s in self.running.values() if s.name not in self._doubled]:
            log.info(f"{shard} takes long: a second task is started for it")
            self._doubled.add(shard.name)
            self.running[self._submit(shard)] = shard


def _slots(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many tasks a cluster with these resources can run at once, at least 1."""
    by_cpus = resources.get("CPU", 0.0) / cpus
    by_gpus = resources.get("GPU", 0.0) / gpus if gpus else by_cpus
    return max(1, int(min(by_cpus, by_gpus)))
