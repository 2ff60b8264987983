"""Making the outputs of shards on a Ray cluster, a task for each shard."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from features import progress
from features.errors import UserError, first_few, first_line
from features.extras import need
from features.shard_outputs import Make, Outcome, Outputs, make_shard
from features.shards import Shard

log = logging.getLogger(__name__)

_RETRIES = 3  # of a task whose worker or node died
_AHEAD = 4  # tasks submitted for each that can run, so that no worker waits for the driver
_SHARDS_OF_A_GPU_WORKER = 50  # after that it ends, and its successor may get another GPU
STRAGGLER_SECONDS = 60.0
_STRAGGLER_RATIO = 4.0
_KILL_SECONDS = 10.0  # in which a cancelled task ends, unless its node cannot be reached


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
    broken. Once all shards that are left have a slot of the cluster, a second task is started for
    each that goes on for four times as long as any before took, and for a minute at least; the
    first of the two to finish counts. The cluster is the one this process is connected to,
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
        UserError: Ray is not installed, the cluster that was started here cannot run a task, or see
            `make_shard`; what was published is kept.
    """
    need("ray")
    import ray

    connected, ours = not ray.is_initialized(), False
    if connected:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            context = ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"cannot reach the Ray cluster: {first_line(error)}") from error
        session = getattr(context, "address_info", {}).get("session_dir") or ""
        ours = session.endswith(f"_{os.getpid()}")  # the process that started Ray
    task = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_retries=_RETRIES,
        max_calls=_SHARDS_OF_A_GPU_WORKER if gpus else 0,
        scheduling_strategy="SPREAD",
    )(_task)
    job = _Job(lambda shard: task.remote(shard, outputs, make, force), outputs, force)
    try:
        if lack := _lack(ray.nodes(), cpus, gpus):
            if ours:
                raise UserError(f"{lack}; lower --workers or --gpus")
            log.warning(f"{lack}; waiting for such a node")
        return job.run(list(shards), what, cpus, gpus)
    finally:
        for ref in job.running:
            ray.cancel(ref, force=True)
        if connected:
            ray.shutdown()


class Abort(NamedTuple):
    """Why no shard can be made, such as a full disk."""

    message: str


def _task(shard: Shard, outputs: Outputs, make: Make, force: bool) -> Outcome | Abort:
    """Make a shard on a worker."""
    progress.set_quiet(True)
    try:
        return make_shard(shard, outputs, make, force)
    except (UserError, OSError) as error:
        return Abort(str(error))


class _Job:
    """The tasks of one call of `make_shards_on_ray`.

    Args:
        submit: starts the task of a shard and returns its reference.
        outputs: of the shards.
        force: whether shards are made even if their outputs are there.

    Attributes:
        running: the shard of each task that was submitted and has not ended.
    """

    def __init__(self, submit: Callable[[Shard], Any], outputs: Outputs, force: bool) -> None:
        self._submit = submit
        self._outputs = outputs
        self._force = force
        self._poll_seconds = outputs.place.poll_seconds
        self.running: dict[Any, Shard] = {}
        self._submitted: dict[Any, float] = {}
        self._doubled: set[str] = set()

    def run(self, shards: list[Shard], what: str, cpus: float, gpus: float) -> list[Outcome]:
        import ray

        queue, busy = deque(shards), deque[tuple[float, Shard]]()
        outcomes: list[Outcome] = []
        longest, waited = 0.0, time.monotonic()
        with progress.Progress(what, len(shards), "shard") as bar:
            while queue or self.running or busy:
                while busy and busy[0][0] < time.monotonic():
                    queue.append(busy.popleft()[1])
                slots = _slots(ray.cluster_resources(), cpus, gpus)
                while queue and len(self.running) < _AHEAD * slots:
                    self._start(queue.popleft())
                if not self.running:
                    time.sleep(min(1.0, self._poll_seconds))
                    continue
                ready, _ = ray.wait(list(self.running), timeout=1.0)
                for ref in ready:
                    outcome = self._result(ref)
                    if outcome.state == "busy":
                        if outcome.shard not in self.running.values():
                            busy.append((time.monotonic() + self._poll_seconds, outcome.shard))
                        continue
                    outcomes.append(outcome)
                    bar.update()
                    longest = max(longest, outcome.facts.get("seconds", 0.0))
                if len(self.running) > slots:  # some wait for a slot
                    waited = time.monotonic()
                elif longest:
                    limit = max(STRAGGLER_SECONDS, _STRAGGLER_RATIO * longest)
                    self._double(waited, time.monotonic() - limit)
        return outcomes

    def _start(self, shard: Shard) -> None:
        ref = self._submit(shard)
        self.running[ref], self._submitted[ref] = shard, time.monotonic()

    def _result(self, ref: Any) -> Outcome:
        """Return what became of a shard, and cancel another task for it."""
        import ray

        shard = self._forget(ref)
        try:
            result = ray.get(ref)
        except ray.exceptions.RayTaskError:  # a defect of ours
            raise
        except ray.exceptions.RayError as error:
            if shard in self.running.values():  # the other task for it may succeed
                return Outcome(shard, "busy")
            why = f"its worker died {_RETRIES + 1} times ({first_line(error)})"
            result = Outcome(shard, "broken", reason=why)
        if isinstance(result, Abort):
            raise UserError(result.message)
        others = [other for other, same in self.running.items() if same == shard]
        if result.state == "busy" or not others:
            return result
        for other in others:
            ray.cancel(other, force=True)
            self._forget(other)
        # One that was killed while it published may have removed an output of the other.
        ray.wait(others, num_returns=len(others), timeout=_KILL_SECONDS)
        lost = result.state == "made" and self._outputs.done(shard, self._force) is None
        return Outcome(shard, "busy") if lost else result

    def _forget(self, ref: Any) -> Shard:
        del self._submitted[ref]
        return self.running.pop(ref)

    def _double(self, waited: float, limit: float) -> None:
        """Start a second task for each shard whose only one has run since before `limit`.

        All tasks have run since they were submitted, or since a task last waited for a slot.
        """
        for ref, shard in list(self.running.items()):
            if max(waited, self._submitted[ref]) < limit and shard.name not in self._doubled:
                log.info(f"{shard} takes long: a second task is started for it")
                self._doubled.add(shard.name)
                self._start(shard)


def _lack(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> str:
    """Return what a task needs and every node lacks; "" if one has it."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    found = [(one.get("CPU", 0.0), one.get("GPU", 0.0)) for one in resources]
    if any(own_cpus >= cpus and own_gpus >= gpus for own_cpus, own_gpus in found):
        return ""
    return (
        f"each shard needs a node of Ray with {cpus:g} CPUs and {gpus:g} GPUs, found "
        f"{first_few(f'{own_cpus:g} and {own_gpus:g}' for own_cpus, own_gpus in found) or 'none'}"
    )


def _slots(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many tasks a cluster with these resources can run at once, at least 1."""
    by_cpus = resources.get("CPU", 0.0) / cpus
    by_gpus = resources.get("GPU", 0.0) / gpus if gpus else by_cpus
    return max(1, int(min(by_cpus, by_gpus)))
