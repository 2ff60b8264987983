"""The processes of one distributed training, forked from one that has already imported torch."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from decoder.data.batches import Batch
from decoder.data.layout import captions_in_slots, static_on_cpu
from decoder.training import distributed
from decoder.training.objectives import cross_entropy
from features.distributed import own_device, process_group, world_size
from tests.decoder.model.test_decoders import build
from tests.decoder.training.processes import _run

Work = Callable[..., None]


def start(work: Work, count: int, *arguments: Any) -> list[ForkServerProcess]:
    """Start `count` ranks that each call `work` with `arguments` and its rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.decoder.training.processes", "tests.pipeline.processes"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(count):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = context.Process(target=_placed, args=(place, work, *arguments, rank))
        process.start()
        processes.append(process)
    return processes


def end(processes: list[ForkServerProcess]) -> list[int | None]:
    """Wait for processes and return their exit codes."""
    for process in processes:
        process.join(150)
    return [process.exitcode for process in processes]


def _placed(place: dict[str, str], work: Work, *arguments: Any) -> None:
    os.environ.update(place)
    work(*arguments)


def train(arguments: list[str], output: Path, rank: int) -> None:
    """Run decoder.train; append its output to OUTPUT.rank<n>."""
    _run(arguments, output.with_suffix(f".rank{rank}"), None, False, None, "", None)


def gradients(name: str, batch: Batch, file: Path, where: str, rank: int) -> None:
    """Save the gradients and figures of this rank after a step on the batch's images.

    Args:
        name: of the model.
        batch: of all ranks.
        file: FILE.rank<n> is written.
        where: "cpu"; "static", in fixed shapes on the CPU; or "cuda".
        rank: of this process.
    """
    torch.set_num_threads(1)
    static = where != "cpu"
    with process_group(), static_on_cpu(static):
        device = own_device(torch.device("cuda" if where == "cuda" else "cpu"))
        model = build(name).to(device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += rank  # as if it had been fitted on another machine
        distributed.take_from_first(model.parameters())
        own = share_of(batch, rank, world_size()).to(device)
        if static:
            own = captions_in_slots(own, images=2, each=2, longest=9)
        result = cross_entropy(model, own)
        if own.idle and not static:
            result = result.uncounted()
        distributed.share(result).backward()
        parameters = list(model.parameters())
        result, stops = distributed.sum_over_processes(result, parameters, stop=rank == 1)
        found = {name: p.grad for name, p in model.named_parameters()}
        found |= {"loss": result.loss, "captions": result.captions, "stops": stops}
        saved = {name: None if value is None else value.cpu() for name, value in found.items()}
    torch.save(saved, file.with_suffix(f".rank{rank}"))


def share_of(batch: Batch, rank: int, world: int) -> Batch:
    """Return a rank's part of a batch, as `SingleStoreReader.epoch` divides it."""
    places = torch.arange(rank, len(batch.image_ids), world)
    idle = len(places) == 0
    places = torch.tensor([0]) if idle else places
    mine = (batch.image_B[:, None] == places).any(1)
    return Batch(
        batch.image_ids[places],
        batch.features.each(lambda tensor: tensor[places]),
        batch.tokens_BT[mine],
        torch.searchsorted(places, batch.image_B[mine]),
        idle,
    )
