"""Time that a run took, by phase, from its metrics.jsonl and the records of earlier stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

_TITLES = {"xe": "Cross-entropy", "rl": "REINFORCE"}


@dataclass(frozen=True)
class Cost:
    """One stage of a run."""

    name: str
    seconds: float
    amount: str
    """How much work that was, such as "9 epochs"."""
    rate: str
    """How fast it went, "" if that was not recorded."""
    best: str
    """The best validation CIDEr and its epoch, "" for a stage without validation."""


def costs(extraction: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> list[Cost]:
    """Return the stages whose time was recorded, in their order.

    Args:
        extraction: the content of extract.json, empty if there is none.
        epochs: the lines of metrics.jsonl. Their times are those of the training steps, without
            validation.
    """
    stages = []
    seconds, rate = extraction.get("seconds"), extraction.get("images_per_second")
    if is_number(seconds) and seconds > 0:
        tried = extraction.get("tried_in_this_run")
        amount = f"{tried:,} pictures" if isinstance(tried, int) else ""
        speed = f"{rate:,.1f} pictures/s" if is_number(rate) else ""
        stages.append(Cost("Extraction of features", seconds, amount, speed, ""))
    for phase, title in _TITLES.items():
        own = [epoch for epoch in epochs if epoch["phase"] == phase]
        timed = [epoch for epoch in own if is_number(epoch.get("seconds"))]
        if not timed:
            continue
        seconds = sum(epoch["seconds"] for epoch in timed)
        captions = sum(
            epoch["seconds"] * epoch["captions_per_second"]
            for epoch in timed
            if is_number(epoch.get("captions_per_second"))
        )
        speed = f"{captions / seconds:,.0f} captions/s" if captions and seconds else ""
        count = f"{len(own)} epoch{'s' if len(own) != 1 else ''}"
        stages.append(Cost(title, seconds, count, speed, _best(own)))
    return stages


def duration(seconds: float) -> str:
    """Return a time in words, such as "2 h 5 min"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def machine(config: Mapping[str, Any]) -> str:
    """Return the machine of a training in a few words, "" if config.json does not record it."""
    recorded = config.get("machine")
    if not isinstance(recorded, Mapping) or not recorded:
        return ""
    device, processor = recorded.get("device", ""), recorded.get("processor", "")
    words = [str(processor if device == "cpu" and processor else device)]
    for name, one in (("threads", "thread"), ("processes", "process")):
        if isinstance(count := recorded.get(name), int):
            words.append(f"{count} {one if count == 1 else name}")
    return ", ".join(word for word in words if word)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value can be shown in a chart or table, which infinity and NaN cannot."""
    return isinstance(value, int | float) and abs(value) < 1e12


def _best(epochs: Sequence[Mapping[str, Any]]) -> str:
    ciders = [
        (epoch["val"]["CIDEr"], number)
        for number, epoch in enumerate(epochs, 1)
        if is_number(epoch["val"].get("CIDEr"))
    ]
    if not ciders:
        return ""
    value, number = max(ciders)
    return f"{value:.3f} after epoch {number}"
