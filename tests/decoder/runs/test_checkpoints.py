"""Files of weights that cannot be read."""

import errno
import os
from pathlib import Path

import pytest
import torch

from decoder.runs import checkpoints
from features.errors import AccessError


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_now_is_not_called_incomplete(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.safetensors"
    checkpoints.save(path, {"a": torch.zeros(2)})

    def fail(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(AccessError, match=os.strerror(number)) as raised:
            checkpoints.load(path, torch.device("cpu"))
    assert "safetensors file" not in str(raised.value)
    path.unlink()
    for make in (path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(AccessError, match="not a file but a folder or a device"):
            checkpoints.load(path, torch.device("cpu"))
        path.rmdir() if path.is_dir() else path.unlink()
