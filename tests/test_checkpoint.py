"""A state goes into a checkpoint file and comes back equal, bit for bit, or is refused."""

import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
from adasel_stream.checkpoint.encode import MAX_DEPTH, TENSOR_DTYPES
from adasel_stream.errors import CheckpointError


def bits(value: Any) -> Any:
    """Reduce a state to what `==` compares bit for bit, types included."""
    match value:
        case dict():
            items = [(bits(k), bits(v)) for k, v in value.items()]
            return (
                type(value),
                items,
                bits(value.__dict__ if type(value) is OrderedDict else None),
            )
        case list() | tuple():
            return (type(value), [bits(v) for v in value])
        case torch.Tensor():
            raw = torch.empty(value.numel(), dtype=value.dtype).copy_(value.detach().reshape(-1))
            return ("tensor", value.dtype, value.shape, raw.view(torch.uint8).numpy().tobytes())
        case np.ndarray() | np.generic():
            return (type(value), value.dtype, value.shape, value.tobytes())
        case float():
            return (float, struct.pack("<d", value))
        case _:
            return (type(value), value)


def tensors() -> st.SearchStrategy[torch.Tensor]:
    """Tensors of every dtype, some 0-d, empty, transposed, strided or requiring gradients."""

    @st.composite
    def draw_tensor(draw: st.DrawFn) -> torch.Tensor:
        dtype = TENSOR_DTYPES[draw(st.sampled_from(sorted(TENSOR_DTYPES)))]
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        nbytes = int(np.prod(shape)) * dtype.itemsize
        raw = draw(st.binary(min_size=nbytes, max_size=nbytes))
        tensor = torch.empty(shape, dtype=dtype)
        if dtype is torch.bool:
            raw = bytes(b & 1 for b in raw)
        tensor.reshape(-1).view(torch.uint8).copy_(torch.tensor(list(raw), dtype=torch.uint8))
        views = [
            tensor,
            tensor.T if tensor.ndim == 2 else tensor,
            tensor[..., ::2] if tensor.ndim else tensor,
        ]
        return draw(st.sampled_from(views))

    return draw_tensor()


array_dtypes = st.one_of(
    *(hnp.boolean_dtypes(), hnp.integer_dtypes(endianness="?"), hnp.unsigned_integer_dtypes()),
    *(hnp.floating_dtypes(endianness="?"), hnp.complex_number_dtypes(), hnp.datetime64_dtypes()),
    *(hnp.timedelta64_dtypes(), hnp.unicode_string_dtypes(), hnp.byte_string_dtypes()),
)
arrays = hnp.arrays(array_dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
anything_in_str = st.text(st.characters(exclude_categories=()))
leaves = st.one_of(
    *(st.none(), st.booleans(), anything_in_str, st.binary(), st.integers(), st.floats()),
    *(st.integers(-(2**2000), 2**2000), arrays, arrays.map(lambda a: a.T), tensors()),
    arrays.filter(lambda a: a.size > 0).map(lambda a: a.reshape(-1)[0]),
)
states = st.dictionaries(
    anything_in_str | st.integers(),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            *(st.lists(inner), st.lists(inner).map(tuple)),
            st.dictionaries(anything_in_str | st.integers(), inner),
            st.dictionaries(anything_in_str, inner).map(OrderedDict),
        ),
        max_leaves=12,
    ),
    max_size=4,
)


def small_model(seed: int) -> nn.Module:
    """A model with dropout, running statistics and a parameter without dimensions."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.5)))
    return model


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Take some steps on data that depends on the step's number only."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 5, generator=generator)
        loss = (model(x) * model.scale - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.slow
@settings(deadline=None)
@given(state=states)
def test_a_state_comes_back_bit_for_bit(
    state: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Types, values, dtypes, shapes and the order of keys survive the file."""
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    save_checkpoint(path, state, durable=False)
    assert bits(load_checkpoint(path)) == bits(state)


@pytest.mark.parametrize(
    "value",
    [
        *(10**5000, -(10**5000), 2**64, -(2**63), True, -0.0, 5e-324, float("-inf")),
        struct.unpack("<d", bytes.fromhex("010000000000f4ff"))[0],  # a signalling NaN
        *("\ud83d\ude00", "\udcff", "\x00", np.str_(""), np.float64("nan"), np.bool_(True)),
        *(
            np.array([0.1], np.longdouble),
            np.zeros((0, 3), "M8[ns]"),
            np.arange(6).reshape(2, 3).T[::-1],
        ),
        *(torch.zeros((0, 3)), torch.tensor([1 + 2j]).conj(), torch.tensor([1 + 2j]).conj().imag),
        *(torch.ones(3).expand(4, 3), nn.Parameter(torch.ones(2)), torch.tensor(7)),
        {0: {1: (), "1": []}, -(2**70): (1, (2, [3]))},
    ],
    ids=lambda value: f"{type(value).__name__}-{str(type(value))[-8:]}",
)
def test_awkward_values_come_back(value: Any, tmp_path: Path) -> None:
    """Values at the edges of JSON, of numpy and of torch survive the file."""
    save_checkpoint(tmp_path / "c", {"value": value})
    assert bits(load_checkpoint(tmp_path / "c")) == bits({"value": value})


def test_restored_arrays_are_writable_and_apart(tmp_path: Path) -> None:
    """Writing to one restored array or tensor changes no other one."""
    save_checkpoint(tmp_path / "c", {k: np.zeros(3) for k in "ab"} | {"t": torch.zeros(3)})
    state = load_checkpoint(tmp_path / "c")
    state["a"] += 1
    state["t"].add_(2)
    assert [state[k].sum() for k in "abt"] == [3, 0, 6]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    """A model and its optimizer, restored into fresh ones, take the undisturbed run's steps."""
    model = small_model(seed=0)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer, range(5))
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    save_checkpoint(tmp_path / "c", state)
    train(model, optimizer, range(5, 12))

    restored = load_checkpoint(tmp_path / "c")
    again = small_model(seed=1)
    optimizer_again = OPTIMIZERS[name](again.parameters())
    again.load_state_dict(restored["model"])
    optimizer_again.load_state_dict(restored["optimizer"])
    torch.set_rng_state(restored["random"])
    train(again, optimizer_again, range(5, 12))

    assert vars(restored["model"]) == vars(model.state_dict())
    assert bits(again.state_dict()) == bits(model.state_dict())
    assert bits(optimizer_again.state_dict()) == bits(optimizer.state_dict())


class _Renamed(dict[str, int]):
    """A subclass that would come back as a plain dict."""


@pytest.mark.parametrize(
    "value",
    [
        *({1}, object(), 1j, bytearray(b"x"), _Renamed(), np.array([None]), range(3)),
        *(np.zeros(2, "i4,i4"), np.ma.masked_array([1.0], [True]), torch.Size([2])),
        *(torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.float32, lambda: None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused_by_place(value: Any, tmp_path: Path) -> None:
    """A value that would not come back as it was is named by its place; nothing is written."""
    with pytest.raises(
        TypeError, match=r"^state\['loader'\]\[1\]\['x'\] is of type .*; expected dict"
    ):
        save_checkpoint(tmp_path / "c", {"loader": [0, {"x": value}]})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("key", [None, True, 1.5, ("a",), b"a"], ids=repr)
def test_other_keys_are_refused(key: Any, tmp_path: Path) -> None:
    """A key that is neither str nor int is refused by the place of its dict."""
    with pytest.raises(TypeError, match=r"^state\['a'\] has a key of type"):
        save_checkpoint(tmp_path / "c", {"a": {key: 1}})


def test_a_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    """A cycle is refused, the deepest allowed nesting is not."""
    cycle: dict[str, Any] = {}
    cycle["again"] = [cycle]
    with pytest.raises(ValueError, match=f"nested deeper than {MAX_DEPTH} levels"):
        save_checkpoint(tmp_path / "c", cycle)
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    save_checkpoint(tmp_path / "c", {"deep": deep})
    assert load_checkpoint(tmp_path / "c") == {"deep": deep}


def test_a_header_over_the_cap_is_refused(tmp_path: Path) -> None:
    """Millions of numbers in a list are refused with the advice to hold them as an array."""
    with pytest.raises(ValueError, match="hold long lists as arrays"):
        save_checkpoint(tmp_path / "c", {"ids": ["x" * 2**20] * 33})


@pytest.mark.parametrize("state", [[1], None, "state"], ids=repr)
def test_a_state_that_is_no_mapping_is_refused(state: Any, tmp_path: Path) -> None:
    """The caller learns what was expected and what came."""
    with pytest.raises(TypeError, match="state must be a mapping of names to values, got"):
        save_checkpoint(tmp_path / "c", state)


def test_a_missing_file_is_not_a_checkpoint_error(tmp_path: Path) -> None:
    """Starting afresh where there is no file cannot be confused with one that is damaged."""
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "none")
    assert not issubclass(FileNotFoundError, CheckpointError)
