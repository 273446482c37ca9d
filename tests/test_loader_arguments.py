from typing import Any

import pytest
import torch
from torch import nn

from adasel_stream import LossRecord, Proxy, SelectingLoader, aligned, unbiased
from adasel_stream.metrics import Metrics
from tests.streams import loss

MODEL = nn.Linear(4, 1)
OTHER = Metrics(["mine"], sampling_rate=0.5, batch_size=1, policy="unbiased")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": 3}, TypeError, "source must be an iterable of batches, got int$"),
        ({"source": list}, TypeError, "iterable of batches, got type; call it, and pass what it"),
        ({"sampling_rate": 0.0}, ValueError, r"sampling_rate must be in \(0, 1\], got 0.0"),
        ({"sampling_rate": 1.5}, ValueError, r"sampling_rate must be in \(0, 1\], got 1.5"),
        ({"sampling_rate": "0.3"}, TypeError, "sampling_rate must be a number, got str"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": 8.0}, TypeError, "batch_size must be a whole number, got float"),
        ({"score": None}, ValueError, "losses must come from somewhere: pass score=, record=, or"),
        ({"score": "loss"}, TypeError, "score must be a function of a batch, got str"),
        (
            {"score": "loss", "model": MODEL},
            TypeError,
            "score must be a function of a batch, got s",
        ),
        ({"model": loss}, TypeError, "model must be a torch.nn.Module, got function"),
        ({"score": None, "model": MODEL}, ValueError, "model= needs score="),
        ({"autocast": torch.bfloat16}, ValueError, "autocast= needs model="),
        ({"autocast": "bf16", "model": MODEL}, TypeError, "autocast must be a dtype such as torch"),
        ({"record": LossRecord(capacity=16)}, ValueError, "record= needs ids=: the key of a batch"),
        ({"record": {}, "ids": "id"}, TypeError, "record must be a LossRecord, got dict"),
        ({"policy": "best"}, ValueError, "unknown policy 'best'; known are aligned, auto, paper"),
        (
            {"stop": print},
            TypeError,
            r"stop must be such as StopIndicator\(callback\), got builtin",
        ),
        ({"guards": {"cap": 1}}, TypeError, r"guards must be such as Guards\(cap=0.2\), got dict"),
        ({"reference": loss}, ValueError, "reference= is given, and none of the methods"),
        ({"policy": 3}, TypeError, "policy must be a name or a Policy, got int"),
        ({"policy": aligned}, TypeError, r"got function, .* has to be called, as in aligned\(\)"),
        ({"methods": ["worst"]}, ValueError, "unknown method 'worst'; known are uniform, "),
        (
            {"methods": ["uniform", "loss_history"]},
            ValueError,
            r"methods \['loss_history'\] compare losses with recorded ones, .*; pass record= and",
        ),
        ({"methods": []}, ValueError, "methods must name at least one method, got none"),
        (
            {"methods": "uniform"},
            TypeError,
            "methods must be a list of names or functions, got the",
        ),
        ({"methods": [3]}, TypeError, "a method must be a name or a function, got int"),
        (
            {"policy": unbiased(floor=0.3)},
            ValueError,
            "floor 0.3 for each of 5 methods is more than",
        ),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\*\*63\), got -1"),
        (
            {"device": "gpu"},
            ValueError,
            "device='gpu' cannot be used here, where torch has 'cpu'",
        ),
        ({"metrics": {}}, TypeError, "metrics must be a Metrics, got dict"),
        ({"metrics": OTHER}, ValueError, r"count the methods \['mine'\], the loader has \['unif"),
        ({"sampling_rate": True}, TypeError, "sampling_rate must be a number, got bool"),
        ({"sampling_rate": 1e-13}, ValueError, "sampling_rate must be at least 1e-12, got 1e-13"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number, got float"),
        (
            {"methods": ["gradient_norm"], "record": LossRecord(capacity=16), "ids": "id"},
            ValueError,
            "'gradient_norm' .* layer of the model for every row, and record= skips it for known",
        ),
        (
            {"policy": "aligned", "score": Proxy(loss)},
            ValueError,
            "'aligned' need the last layer of the model for every row, and a Proxy is another",
        ),
    ],
)
def test_wrong_arguments_fail_at_construction(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With what was expected, what came, and what to do."""
    given: dict[str, Any] = {"source": [], "score": loss, "sampling_rate": 0.5, **options}
    with pytest.raises(error, match=message):
        SelectingLoader(given.pop("source"), **given)
