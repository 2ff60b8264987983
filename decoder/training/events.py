"""Scalars in event files that TensorBoard reads."""

import io
import time
from collections.abc import Mapping
from pathlib import Path

from features.files import write_atomically


def write(folder: Path, step: int, scalars: Mapping[str, float]) -> None:
    """Write the scalars of one step to its own file in `folder`, atomically.

    A step that is repeated after a kill replaces its file, so no event appears twice. The names
    sort by step, so TensorBoard reads the steps in order even if the clock went back.

    Raises:
        UserError: it cannot be written.
    """
    # Imported here because it takes a while, and a training should start at once.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
    content = io.BytesIO()
    records = RecordWriter(content)
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        Event(wall_time=now, step=step, summary=Summary(value=values)),
    ):
        records.write(event.SerializeToString())
    write_atomically(folder / f"events.out.tfevents.{step:010}", content.getvalue())
