import pytest
import torch

from features.devices import choose_device
from features.errors import UserError


def test_auto_takes_a_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_with_what_to_take_instead(name):
    with pytest.raises(UserError, match="use cpu, or auto"):
        choose_device(name)
