"""Validation writes the same captions in batches of any size, also when it is continued."""

from pathlib import Path

import pytest

from decoder.data import layout
from decoder.train import new_trainer
from decoder.training.options import TrainOptions
from decoder.training.trainer import Trainer


@pytest.fixture(scope="module")
def trainer(extracted_shapes: Path) -> Trainer:
    return new_trainer(TrainOptions(work=extracted_shapes, run="validation", beam=3))


def written(trainer: Trainer, before: list[list[str]], images: int) -> list[list[str]]:
    """Return the captions of all validation images, in batches of `images`, after `before`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_IMAGES", images)
        trainer.state.progress.written = list(before)
        return list(trainer.validation._write_all(lambda: None))


def test_captions_do_not_depend_on_the_size_of_batches(trainer: Trainer) -> None:
    expected = written(trainer, [], 50)
    assert len(expected) == len(trainer.validation.images) == 4
    assert written(trainer, [], 3) == expected
    with layout.static_on_cpu():
        assert written(trainer, [], 3) == expected


def test_a_state_that_ends_within_a_batch_is_continued(trainer: Trainer) -> None:
    expected = written(trainer, [], 50)
    for done in (1, 3, 4):
        assert written(trainer, expected[:done], 3) == expected


def test_a_gpu_captions_hundreds_of_images_at_once_and_a_cpu_fifty(trainer: Trainer) -> None:
    device = trainer.device
    assert [layout.images_at_once(device, captions) for captions in (5, 50)] == [50, 50]
    with layout.static_on_cpu():
        assert [layout.images_at_once(device, captions) for captions in (5, 50)] == [400, 50]
