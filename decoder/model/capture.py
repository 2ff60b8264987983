"""Functions of fixed shapes as CUDA graphs, which a GPU replays without the host.

A graph is used only if its first replay gives what the function gives. Where it does not, or where
nothing can be captured, the function itself runs from then on, and the log says so once.

A function can be captured if its shapes depend on no data, nothing in it waits for the host, and
the tensors that it reads or changes besides its arguments stay where they are in memory.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from decoder.data.layout import without_waiting
from features.errors import first_line

log = logging.getLogger(__name__)

Function = Callable[..., tuple[Tensor, ...]]
Work = Callable[[], None]
Record = Callable[[Work], Work]
"""Records work without doing it; what it returns does the work."""

# Compilers and libraries prepare themselves in the first runs of a function.
_WARM_UPS = 3
# A replay may be rounded otherwise, since libraries choose algorithms by the memory they find. This
# is the largest relative difference of a tensor's norm, or share of integers that may differ.
_TOLERANCE = 0.01


class _Graph(NamedTuple):
    """A captured function, and the tensors that it reads and writes."""

    replay: Work
    inputs: list[Tensor]
    outputs: tuple[Tensor, ...]


class Graphs:
    """Runs functions as CUDA graphs, one for each name and shapes, where they can be captured.

    Args:
        device: where the functions compute.
        wanted: whether to capture any.
        record: used instead of CUDA's, in tests.
    """

    def __init__(
        self, device: torch.device, wanted: bool = True, record: Record | None = None
    ) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if wanted and device.type == "cuda" and record is None:
            self._stream = torch.cuda.Stream(device)
            record = _CudaGraphs(self._stream)
        self._record = record if wanted else None
        self._graphs: dict[tuple[object, ...], _Graph] = {}

    def run(
        self,
        name: str,
        function: Function,
        inputs: Sequence[Tensor] = (),
        changed: Sequence[Tensor] = (),
    ) -> tuple[Tensor, ...]:
        """Return `function(*inputs)`; the next call of the same name may overwrite it.

        Args:
            name: of the function; a graph belongs to a name and the shapes of the inputs.
            function: draws its random numbers from the device's own generator.
            inputs: its arguments; their values are copied to where the graph reads them.
            changed: all other tensors that the function changes.
        """
        if self._record is None:
            return function(*inputs)
        key = (name, *((tensor.shape, tensor.dtype) for tensor in inputs))
        graph = self._graphs.get(key)
        if graph is not None:
            for fixed, given in zip(graph.inputs, inputs, strict=True):
                fixed.copy_(given)
            graph.replay()
            return graph.outputs
        before, random = [tensor.clone() for tensor in changed], self._random_state()

        def start_again() -> None:
            for tensor, old in zip(changed, before, strict=True):
                tensor.copy_(old)
            self._set_random_state(random)

        try:
            with self._own_stream(), _of_any_mode():
                graph = self._captured(function, inputs, changed, start_again)
        except RuntimeError as error:  # torch's and CUDA's errors of any kind
            log.warning(
                "continuing without CUDA graphs, which is slower but changes no result: %s: %s",
                name,
                first_line(error),
            )
            self._record = None
        else:
            self._graphs[key] = graph
            return graph.outputs
        # After the error, whose traceback keeps the tensors of the attempt, and without the graphs
        # that were captured before: perhaps memory was what lacked.
        self._graphs.clear()
        start_again()
        return function(*inputs)

    def _captured(
        self,
        function: Function,
        inputs: Sequence[Tensor],
        changed: Sequence[Tensor],
        start_again: Work,
    ) -> _Graph:
        """Capture the function and replay it once.

        Raises:
            RuntimeError: it cannot be captured, or the replay gives something else.
        """
        assert self._record is not None
        fixed = [tensor.clone() for tensor in inputs]

        def computed() -> tuple[Tensor, ...]:
            with without_waiting():
                return function(*fixed)

        for turn in range(_WARM_UPS):
            start_again()
            with self._no_waiting(turn == _WARM_UPS - 1):
                results = computed()
        expected = [tensor.clone() for tensor in (*results, *changed)]
        # Graphs share their memory, but their results must outlast the replay of another.
        outputs = tuple(torch.empty_like(tensor) for tensor in results)
        del results

        def work() -> None:
            for output, result in zip(outputs, computed(), strict=True):
                output.copy_(result)

        start_again()
        replay = self._record(work)
        start_again()
        replay()
        for number, (found, wanted) in enumerate(zip((*outputs, *changed), expected, strict=True)):
            if _differ(found, wanted):
                raise RuntimeError(f"tensor {number} of the first replay is not the function's")
        return _Graph(replay, fixed, outputs)

    @contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Compute in the stream that is captured, so that libraries prepare themselves for it."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @contextmanager
    def _no_waiting(self, forbidden: bool) -> Iterator[None]:
        """Raise RuntimeError where the host waits for a GPU.

        A capture would fail there too, but leave torch's random generator unusable.
        """
        if not forbidden or self._device.type != "cuda":
            yield
            return
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(action="ignore"):  # it is a prototype of torch
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def _random_state(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


@contextmanager
def _of_any_mode() -> Iterator[None]:
    """Create tensors that may be changed in any mode, though gradients stay off where they are.

    The first graph creates tensors of torch's random generator, which later graphs change. Created
    in inference mode, they could not be changed outside of it.
    """
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


class _CudaGraphs:
    """Records work as CUDA graphs, which share their memory.

    Args:
        stream: in which the work was done before.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that read features, may go on allocating memory.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay


def _differ(found: Tensor, wanted: Tensor) -> bool:
    """Return whether two tensors differ by more than rounding explains."""
    if not found.is_floating_point():
        return bool((found != wanted).float().mean() > _TOLERANCE)
    found, wanted = found.float().nan_to_num(), wanted.float().nan_to_num()
    size = wanted.norm()
    if wanted.ndim == 0:  # a mean of figures of both signs may be as small as its rounding
        size = size.clamp(min=1)
    return not bool((found - wanted).norm() <= _TOLERANCE * size)
