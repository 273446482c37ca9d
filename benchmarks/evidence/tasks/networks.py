"""The small networks of the tasks, and how well they do."""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from benchmarks.evidence.problem import Examples

__all__ = [
    "accuracy",
    "class_losses",
    "guessing",
    "log_loss",
    "perceptron",
    "squared_error",
    "squared_losses",
    "yes_losses",
]


def perceptron(inputs: int, hidden: int, outputs: int, *, layers: int = 1) -> nn.Sequential:
    """Stack hidden layers of rectified linear units and a linear head."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


def guessing(network: nn.Sequential, logit: float) -> nn.Sequential:
    """Let a network begin at a guess, as one does whose base rate was known before."""
    head = network[-1]
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, logit)
    return network


def class_losses(network: nn.Module, rows: Examples) -> Tensor:
    """Give the cross entropy of each row, in nats."""
    return cross_entropy(network(rows["x"]), rows["y"], reduction="none")


def squared_losses(network: nn.Module, rows: Examples) -> Tensor:
    """Give the squared error of each row."""
    outputs: Tensor = network(rows["x"])
    return (outputs[:, 0] - rows["y"]).square()


def yes_losses(network: nn.Module, rows: Examples) -> Tensor:
    """Give the log loss of each row, whose target is 0 or 1."""
    logits: Tensor = network(rows["x"])
    return binary_cross_entropy_with_logits(logits[:, 0], rows["y"], reduction="none")


def accuracy(network: nn.Module, rows: Examples) -> dict[str, float]:
    """Give the share of right answers in percent, and the mean cross entropy."""
    outputs = network(rows["x"])
    right = (outputs.argmax(1) == rows["y"]).float().mean()
    return {"accuracy": 100 * float(right), "loss": float(cross_entropy(outputs, rows["y"]))}


def squared_error(network: nn.Module, rows: Examples) -> dict[str, float]:
    """Give the mean squared error."""
    return {"mse": float(squared_losses(network, rows).mean())}


def log_loss(network: nn.Module, rows: Examples) -> dict[str, float]:
    """Give the mean log loss, and how much is predicted in all for what there is."""
    logits: Tensor = network(rows["x"])
    losses = binary_cross_entropy_with_logits(logits[:, 0], rows["y"])
    return {
        "log loss": float(losses),
        "predicted": float(torch.sigmoid(logits).sum()),
        "actual": float(rows["y"].sum()),
    }
