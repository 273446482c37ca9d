from typing import Any

import numpy.typing as npt
import pytest
import torch

from adasel_stream.late import Late


def test_numbers_on_the_host_arrive_at_once_and_in_order() -> None:
    """Nothing is under way afterwards."""
    late, arrived = Late(), list[float]()
    for value in (1.0, 2.0):
        late.send((torch.tensor(value),), lambda number: arrived.append(float(number)))
    late.poll()
    late.drain()
    assert arrived == [1.0, 2.0]
    assert len(late) == 0


def test_several_tensors_arrive_together() -> None:
    """Each as an array of its own dtype, in the order sent, without its graph."""
    got: list[npt.NDArray[Any]] = []
    sent = (torch.ones(2, requires_grad=True), torch.tensor([3]), torch.tensor([True]))
    Late().send(sent, lambda *arrays: got.extend(arrays))
    assert [str(array.dtype) for array in got] == ["float32", "int64", "bool"]


@pytest.mark.gpu
def test_numbers_of_a_device_arrive_later_without_waiting() -> None:
    """`send` and `poll` return while the device is still busy; `drain` waits."""
    late, arrived = Late(), list[float]()
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy / 64
    late.send((busy.sum(), torch.tensor(5.0)), lambda _, host: arrived.append(float(host)))
    late.poll()
    assert arrived == []
    late.drain()
    assert arrived == [5.0]
