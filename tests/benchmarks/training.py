"""How fast decoders train and write, as shares of what the machine's matrix products reach.

    .venv/bin/python -m tests.benchmarks.training [--work WORK] [--models updown] [--phases xe rl]
        [--compile] [--profile]

Every row counts the operations that the model itself needs (no padding, no repetition) and compares
their rate with that of a large float32 product, measured between the steps. The decoder is
untrained, so that no caption it writes ends before the longest: a trained one, whose captions are
half as long, samples and searches twice as fast. Memory is what a step needs besides the weights
and the optimizer's state. All ways take turns, so that what else the machine does disturbs all of
them alike.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from decoder.data.readers import TrainingReader
from decoder.generation.generate import beam_search
from decoder.model import decoders
from decoder.model.decoders import Decoder, ModelOptions
from decoder.model.operations import compiled
from decoder.training.options import ReinforceOptions, TrainOptions
from decoder.training.phases import ReinforcePhase
from decoder.training.trainer import Trainer
from evaluation.validation import Validator
from features.parts import PartWriter
from features.row_format import RowFormat
from features.store import FeatureStore
from features.store_writing import begin, merge
from pipeline import captions, vocabulary
from pipeline.vocabulary import PAD, SPECIAL, Vocabulary
from pipeline.work import RunFolder
from tests.decoder.model.reference import PlainUpDown

Phase = Literal["xe", "rl", "beam", "start"]
BEAM, LONGEST, WORDS = 5, 20, 2600
GRID, CHANNELS = [7, 7], 1280
CPU = torch.device("cpu")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::addmv", "aten::addmv_", "aten::bmm")
SIDE = 1024  # of the square matrices whose product is the machine's peak


@dataclass
class Way:
    """One thing measured, and what was found."""

    phase: str
    model: str
    images: int
    run: Callable[[], None]
    """Does it once."""
    work: Callable[[], dict[str, float]]
    """Of the last time: "operations", "count" of captions or images, "outside" seconds."""
    trainer: Trainer
    """What trains, or has the decoder that writes."""
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    memory: float = 0.0

    def line(self) -> dict[str, Any]:
        """Return the figures, medians over the rounds."""
        seconds = median(self.seconds)
        return {
            "phase": self.phase,
            "model": self.model,
            "images": self.images,
            "per_second": self.work()["count"] / seconds,
            "of_peak": median(self.shares) if self.work()["operations"] else None,
            "outside": median(self.outside) / seconds,
            "memory_mb": self.memory,
            "seconds": seconds,
        }


def main(
    work: Path | None = None,
    models: tuple[str, ...] = ("show_tell", "att2in", "updown"),
    cells: tuple[str, ...] = ("lstm", "gru"),
    phases: tuple[Phase, ...] = ("xe", "rl", "beam", "start"),
    images: tuple[int, ...] = (10, 50),
    rounds: int = 5,
    hidden: int = 512,
    device: str = "cpu",
    compile: bool = False,
    cpu_time: bool = False,
    json: bool = False,
    profile: bool = False,
    first_step: Path | None = None,
) -> None:
    """Print a table of rates.

    Args:
        work: a work directory with features and captions; by default one of random numbers.
        models: which decoders.
        cells: which recurrent cells.
        phases: cross-entropy, REINFORCE, beam search, and the time from start to first step.
        images: how many in a batch.
        rounds: how often each way has its turn.
        hidden: size of the recurrent state and of the attention.
        device: where to run.
        compile: train with --compile too, which compiles for up to a minute before.
        cpu_time: measure the processor's time instead of the clock's, on a machine that others use;
            for one thread only.
        json: print JSON instead of the table.
        profile: say, too, which operations each spends its time in.
        first_step: train in this work directory up to the first step, as the phase "start" does.
    """
    if first_step is not None:
        _until_first_step(first_step)
    clock = time.process_time if cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as scratch:
        folder = work or made(Path(scratch), 4 * max(images))
        ways = [
            way
            for name in models
            for cell in cells
            for count in images
            for phase in phases
            if phase != "start"
            for way in ways_of(
                folder, Path(scratch), name, cell, count, phase, hidden, device, clock, compile
            )
        ]
        peak = take_turns(ways, rounds, clock, torch.device(device))
        found: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "peak_gflops": peak / 1e9,
            "start_to_first_step": [
                _start(folder, cpu_time) for _ in range(rounds if "start" in phases else 0)
            ],
            "ways": [way.line() for way in ways],
            "profiles": [_profile(way) for way in ways] if profile else [],
        }
    _print_json(found) if json else _print(found)


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(found, indent=1))


def _print(found: dict[str, Any]) -> None:
    print(
        f"{found['threads']} threads; a product of {SIDE} x {SIDE} matrices: "
        f"{found['peak_gflops']:.1f} GFLOP/s"
    )
    if found["start_to_first_step"]:
        print(f"start to first step: {median(found['start_to_first_step']):.1f} s")
    if not found["ways"]:
        return
    print("\n| what | model | images | captions/s or images/s | of the peak | outside | memory |")
    print("|---|---|---|---|---|---|---|")
    for line in found["ways"]:
        share = "" if line["of_peak"] is None else f"{line['of_peak']:.1%}"
        print(
            f"| {line['phase']} | {line['model']} | {line['images']} | {line['per_second']:.1f} | "
            f"{share} | {line['outside']:.2%} | {line['memory_mb']:.0f} MB |"
        )
    seconds = {(w["phase"], w["model"], w["images"]): w["seconds"] for w in found["ways"]}
    for (phase, model, images), taken in seconds.items():
        plain = seconds.get((f"{phase}, plain", model, images))
        if plain is not None:
            times = plain / taken
            print(f"\n{phase}, {model}, {images} images: {times:.2f} times the plain one", end="")
        fused = seconds.get((f"{phase}, compiled", model, images))
        if fused is not None:
            print(
                f"\n{phase}, {model}, {images} images: compiled {taken / fused:.3f} times", end=""
            )
    print()
    for line, shares in zip(found["ways"], found["profiles"], strict=False):
        told = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        print(f"\n{line['phase']}, {line['model']}, {line['images']} images: {told}")


def take_turns(
    ways: list[Way],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    device: torch.device = CPU,
) -> float:
    """Measure the ways, and return the median rate of the large product, operations a second."""
    matrix, product = torch.randn(SIDE, SIDE, device=device), torch.empty(SIDE, SIDE, device=device)

    def peak() -> float:
        _wait(device)
        started = clock()
        for _ in range(8):
            torch.mm(matrix, matrix, out=product)
        _wait(device)
        return 8 * 2 * SIDE**3 / (clock() - started)

    peaks = [peak(), peak()][1:]
    for turn in range(rounds + 1):  # the first one allocates memory and prepares the reward
        for way in ways:
            before = peak()
            resident = _forget_peak_memory()
            _wait(device)
            started = clock()
            way.run()
            _wait(device)
            seconds = clock() - started
            if turn:
                peaks.append(peak())
                done = way.work()
                way.seconds.append(seconds)
                way.outside.append(done["outside"])
                way.shares.append(done["operations"] / seconds / max(before, peaks[-1]))
                way.memory = max(way.memory, _peak_memory() - resident)
    return median(peaks)


def _profile(way: Way) -> dict[str, float]:
    """Do it once; return the share of its time that each of torch's operations takes by itself.

    Products are one operation, and those of less than a hundredth another one.
    """
    with torch.profiler.profile() as found:
        way.run()
    times: Counter[str] = Counter()
    for event in found.key_averages():
        name = "products" if event.key in PRODUCTS else event.key.removeprefix("aten::")
        times[name] += event.self_cpu_time_total
    total = times.total()
    shares = {name: time / total for name, time in times.most_common() if time >= total / 100}
    return {**shares, "others": 1 - sum(shares.values())}


def ways_of(
    folder: Path,
    scratch: Path,
    name: str,
    cell: str,
    images: int,
    phase: str,
    hidden: int = 512,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    compile: bool = False,
    attention: int | None = None,
) -> Iterator[Way]:
    """Yield the ways of doing a phase: REINFORCE has one for each baseline.

    With `compile` there is one more of each. Without `attention` it is as wide as the state.
    """
    label = f"{name} {cell}"
    for baseline in ("greedy", "mean") if phase == "rl" else ("mean",):
        options = TrainOptions(
            work=folder,
            run="benchmark",
            decoder=ModelOptions(
                model=name, cell=cell, hidden=hidden, attention=attention or hidden
            ),
            rl=ReinforceOptions(baseline=baseline),
            batch_size=images,
            device=device,
        )
        trainer = _trainer(options, scratch)
        if phase == "beam":
            yield _searching(trainer, label, images)
        else:
            title = f"rl, {baseline}" if phase == "rl" else phase
            yield _training(trainer, title, label, images, phase, clock)
            if compile:
                fused = _trainer(options, scratch)
                fused.model.use_operations(compiled(fused.device))
                torch._dynamo.config.recompile_limit = 99  # of all ways, not of one training
                yield _training(fused, f"{title}, compiled", label, images, phase, clock)
    if phase == "xe" and (name, cell) == ("updown", "lstm"):
        yield _plainly(trainer, label, images)


def _trainer(options: TrainOptions, scratch: Path) -> Trainer:
    table = captions.load(options.work / "captions.json")
    words = vocabulary.load(options.work / "vocabulary.json")
    store = FeatureStore(options.work / "features.h5")
    torch.manual_seed(options.seed)
    model = decoders.build(options.decoder, len(words), store.description["channels"])
    model = model.to(options.device)
    training = TrainingReader(
        store, table, words, options.batch_size, options.seed, grid=model.attends
    )
    validator = Validator.__new__(Validator)  # no validation takes place, so no Java is started
    run = RunFolder(scratch / "run")
    return Trainer(options, run, {}, model, words, training, training, validator)


def _training(
    trainer: Trainer,
    title: str,
    label: str,
    images: int,
    phase: str,
    clock: Callable[[], float],
) -> Way:
    """Train by one batch, and count apart what reading it, the reward and reporting take."""
    places = np.random.default_rng(0).permutation(len(trainer.training))[:images].tolist()
    sampled: list[Tensor] = []
    outside: list[float] = [0.0]
    last: dict[str, float] = {}
    trained = next(one for one in trainer.phases if one.name == phase)
    trained.steps = 10**6
    if isinstance(trained, ReinforcePhase):
        reward = trained.reward

        def timed(image_ids: Tensor, samples: Tensor, eos: int) -> Tensor:
            started = clock()
            found = reward(image_ids, samples, eos)
            outside[0] += clock() - started
            sampled.append(samples)
            return found

        trained.reward = timed

    def run() -> None:
        sampled.clear()
        started = clock()
        batch = trainer.training.batch(places).to(trainer.device)
        outside[0] = clock() - started
        trainer.step(trained, batch)
        started = clock()
        text = trainer.running_means(trained)
        assert text
        outside[0] += clock() - started
        words = [int((tokens != PAD).sum()) for tokens in (sampled or [batch.tokens_BT])]
        model, count = trainer.model, len((sampled or [batch.tokens_BT])[0])
        # Twice as much backward as forward; the greedy captions are written, but not learned.
        done = 3 * _of_words(model, words[0], count, phase == "rl")
        done += _of_images(model, images, True)
        if len(sampled) > 1:
            done += _of_words(model, words[1], len(sampled[1]), True)
        last.update(operations=done, count=count if phase == "xe" else images)

    def done() -> dict[str, float]:
        return {**last, "outside": outside[0]}

    return Way(title, label, images, run, done, trainer)


def _searching(trainer: Trainer, label: str, images: int) -> Way:
    model, longest = trainer.model.eval(), trainer.vocabulary.max_length
    places = list(range(min(images, len(trainer.training))))
    features = trainer.training.features(places).to(trainer.device)
    words = len(places) * BEAM * (longest + 1)
    done = _of_words(model, words, len(places) * BEAM, True) + _of_images(model, images, False)

    @torch.inference_mode()
    def run() -> None:
        beam_search(model, model.encode(features), BEAM, longest)

    found = {"operations": done, "count": len(places), "outside": 0.0}
    return Way(f"beam {BEAM}", label, images, run, lambda: found, trainer)


def _plainly(trainer: Trainer, label: str, images: int) -> Way:
    """Take the same step with the plainly written Up-Down and torch's defaults."""
    model = trainer.model
    assert isinstance(model, decoders.UpDown)
    plain = PlainUpDown(model).to(trainer.device)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.0)
    batch = trainer.training.batch(list(range(images))).to(trainer.device)

    def run() -> None:
        loss = plain(*batch.features, batch.tokens_BT, batch.image_B)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()

    found = {"operations": 0.0, "count": len(batch.tokens_BT), "outside": 0.0}
    return Way("xe, plain", label, images, run, lambda: found, trainer)


def _of_words(model: Decoder, words: int, captions: int, looked_up: bool) -> float:
    """Return the operations of reading words forward; the state before a first word is zero.

    Without dropout what the gates get of a word is `looked_up`, and needs none.
    """
    recurrent = {"first_cell.recurrent", "second_cell.recurrent", "written_gates"}
    each = later = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        once = ("word_embedding", "pooled_embedding", "image_gates", "region_", "attention_key")
        if weight is None or name.startswith(once) or (looked_up and name == "word_gates"):
            continue
        later += weight.numel() * (name in recurrent)
        each += weight.numel() * (name not in recurrent)
    if model.attends:
        regions = GRID[0] * GRID[1]
        each += regions * (model.attention_score.numel() + model.output.in_features)
    return 2.0 * (each * words + later * (words - captions))


def _of_images(model: Decoder, images: int, learns: bool) -> float:
    """Return the operations of encoding images; stored features themselves need no gradient."""
    total = 0.0
    for name, times in (
        ("pooled_embedding", 1),
        ("image_gates", 1),
        ("region_embedding", GRID[0] * GRID[1]),
        ("attention_key", GRID[0] * GRID[1]),
    ):
        if hasattr(model, name):
            passes = 1 if not learns else 2 if name.endswith("embedding") else 3
            total += 2.0 * passes * times * getattr(model, name).weight.numel()
    return total * images


def made(folder: Path, images: int) -> Path:
    """Make a work directory of random features, and captions as long as those of Flickr8k."""
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(WORDS - len(SPECIAL))]
    likely = 1 / np.arange(1, len(words) + 1)
    listed = []
    for number in range(1, images + 1):
        lengths = random.normal(10.8, 3.2, 5).round().clip(2, LONGEST).astype(int)
        tokens = [random.choice(words, n, p=likely / likely.sum()).tolist() for n in lengths]
        texts = tuple(captions.Caption(" ".join(several), tuple(several)) for several in tokens)
        split = "val" if number <= 2 else "train"
        listed.append(captions.Image(number, f"{number}.jpg", split, texts))
    captions.save(captions.CaptionTable("random", folder, tuple(listed)), folder / "captions.json")
    counts = (0,) * len(SPECIAL) + (5,) * len(words)
    made = Vocabulary((*SPECIAL, *words), counts, 5, LONGEST)
    vocabulary.save(made, folder / "vocabulary.json")

    description = {"backbone": "random", "grid": GRID, "channels": CHANNELS, "dtype": "float16"}
    kind, path = RowFormat(description), folder / "features.h5"
    writer = PartWriter(begin(path, kind, None), kind)
    for image in listed:
        # Three quarters of the values of real features are zero.
        grid = np.maximum(random.standard_normal((1, kind.regions, CHANNELS)) - 0.67, 0)
        grid = grid.astype(np.float32)
        writer.put([image.id], grid[None], grid.mean(1)[None])
    writer.close()
    merge(path, kind, None, [image.id for image in listed], {})
    return folder


def link(work: Path, folder: Path) -> None:
    """Make `folder` a work directory with the features and captions of `work`, and no runs."""
    for name in ("captions.json", "vocabulary.json", "features.h5"):
        (folder / name).symlink_to((work / name).resolve())


def train_apart(
    work: Path,
    options: Sequence[str],
    launch: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> tuple[list[dict[str, Any]], float]:
    """Train in a folder and a process of its own.

    Args:
        work: whose features and captions are taken.
        options: of decoder.train.
        launch: arguments of python before the module's name.
        environment: what differs from that of this process.

    Returns:
        The lines of metrics.jsonl, and the peak resident memory of the process, MB.
    """
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        link(work, Path(scratch))
        command = [
            sys.executable,
            "-m",
            *launch,
            "decoder.train",
            "--work",
            scratch,
            "--run",
            "run",
        ]
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(process.args)}: status {process.returncode}")
        lines = (Path(scratch) / "runs" / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], used.ru_maxrss / 1024


def _start(folder: Path, cpu_time: bool) -> float:
    """Return the seconds from the start of a training to the end of its first step."""

    def now() -> float:
        of_children = os.times()
        taken = of_children.children_user + of_children.children_system
        return taken if cpu_time else time.perf_counter()

    started = now()
    command = [sys.executable, "-m", __spec__.name, "--first-step", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return now() - started


def _until_first_step(work: Path) -> None:
    """Train as the command line does, and end this process after the first step."""
    from decoder import train

    step = Trainer.step

    def first(*arguments: Any) -> None:
        step(*arguments)
        os._exit(0)

    Trainer.step = first  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        link(work, Path(scratch))
        sys.exit(train.main(["--work", scratch, "--run", "first"]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak_memory() -> float:
    """Give free memory back, so that the peak is that of now, and return it, MB."""
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_memory()


def _peak_memory() -> float:
    """Return the peak resident memory, MB."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    return float("nan")


if __name__ == "__main__":
    tyro.cli(main)
