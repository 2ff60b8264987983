import pytest
import torch

from features.container import available_cores, core_limit, memory_limit
from features.devices import choose_device
from features.errors import UserError


def test_auto_takes_a_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_refused_with_what_to_take_instead(name):
    with pytest.raises(UserError, match="use cpu, or auto"):
        choose_device(name)


def test_a_device_on_which_nothing_has_been_tried_is_refused():
    with pytest.raises(UserError, match="expected cpu, cuda or auto"):
        choose_device("meta")


def test_the_limits_of_a_container_count(tmp_path):
    assert (core_limit(tmp_path), memory_limit(tmp_path)) == (None, None)
    for name, content in {
        "cpu.max": "max 100000",
        "memory.max": "max",
        "memory.current": "700",
        "memory.stat": "anon 300\ninactive_file 250\n",
    }.items():
        (tmp_path / name).write_text(content)
    assert (core_limit(tmp_path), memory_limit(tmp_path)) == (None, None)
    (tmp_path / "cpu.max").write_text("50000 100000")
    (tmp_path / "memory.max").write_text("1000")
    if available_cores() > 1:
        assert core_limit(tmp_path) == 1
    assert memory_limit(tmp_path) == (1000, 550), "cached files can be given up"
