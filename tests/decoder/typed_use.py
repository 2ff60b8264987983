"""Code of a user of the Python API. It is type-checked by tests/run.sh, and never run."""

from pathlib import Path

from PIL import Image

import decoder
from decoder.captioning.writer import Caption
from decoder.generation.options import GenerateOptions
from decoder.train import new_trainer, train
from decoder.training.options import TrainOptions
from features.store import FeatureStore
from pipeline import captions

c = decoder.load()
one: Caption = c.caption("photo.jpg")
text: str | None = one.caption
confidence: float | None = one.confidence
many: list[Caption] = c.caption([Path("a.jpg"), Path("b.jpg")])
errors: list[str | None] = [found.error for found in many]
mixed: list[Caption] = c.caption(["a.jpg", b"...", Image.new("RGB", (99, 99))])
three = decoder.load("work/runs/first", GenerateOptions(captions=3)).caption(b"...").alternatives

table = captions.load(Path("work/captions.json"))
store = FeatureStore(Path("work/features.h5"))
shape: tuple[int, ...] = store.grid(store.rows([image.id for image in table.split("val")])).shape
options = TrainOptions(work=Path("work"), run="first")
status: int = train(options)
new_trainer(options).train()

# An error is expected here: the result is no `Any`, which would be everything.
wrong: int = one.caption  # type: ignore[assignment]
