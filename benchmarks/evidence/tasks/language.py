"""Wikitext-2: a tiny transformer predicts the next word."""

from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.evidence.problem import DataError, Examples, Problem, Task, file_of, generator

__all__ = ["WIKITEXT"]

WORDS = 800
LENGTH = 16
WIDTH = 32
SEQUENCES = 12_000


@lru_cache(maxsize=2)
def words_of(data: Path | None, part: str) -> list[str]:
    """Read the words of a split.

    Raises:
        DataError: it is no text, or a short one.
    """
    path = file_of(data, "wikitext2", f"{part}.txt")
    try:
        words = path.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from error
    if len(words) < SEQUENCES * (LENGTH + 1):
        raise DataError(f"{path} has {len(words)} words, Wikitext-2's splits have over 217,000")
    return words


def sequences(data: Path | None, part: str) -> Tensor:
    """Number a split's words, 0 for rare ones, in sequences, (n, LENGTH + 1), int64."""
    common = Counter(words_of(data, "test")).most_common(WORDS - 1)
    known = {word: place for place, (word, _) in enumerate(common, 1)}
    numbers = torch.tensor([known.get(word, 0) for word in words_of(data, part)])
    whole = len(numbers) // (LENGTH + 1)
    return numbers[: whole * (LENGTH + 1)].reshape(whole, LENGTH + 1)


class Transformer(nn.Module):
    """One layer of causal attention between an embedding and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(WIDTH, WORDS)
        self.mask = nn.Buffer(nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, words: Tensor) -> Tensor:
        """Give logits of the next word, (b, LENGTH, WORDS)."""
        inner = self.layer(self.words(words) + self.places, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(inner)
        return logits


def losses(network: nn.Module, rows: Examples) -> Tensor:
    """Average the cross entropy over the words of each sequence, in nats."""
    logits = network(rows["x"][:, :-1])
    return cross_entropy(logits.transpose(1, 2), rows["x"][:, 1:], reduction="none").mean(1)


def quality(network: nn.Module, rows: Examples) -> dict[str, float]:
    """Give the mean loss of a word, in nats."""
    return {"loss": float(losses(network, rows).mean())}


def wikitext(data: Path | None, seed: int) -> Problem:
    """Train on the test split, as the train split is not shipped with it, and test on the other."""
    order = torch.randperm(SEQUENCES, generator=generator(seed))
    train = sequences(data, "test")[order]
    test = sequences(data, "valid")[:2_000]
    return Problem({"x": train}, {"x": test}, {}, Transformer, losses, quality)


WIKITEXT = Task(
    name="wikitext",
    make=wikitext,
    measure="loss",
    better="lower",
    kind="epochs",
    batch_size=32,
    updates=800,
    learning_rate=0.3,
    published={
        **{"full": 5.45, "paper": 5.52, "uniform": 5.53, "big_loss": 5.58},
        **{"small_loss": 5.85, "adaboost": 5.85, "coresets_1": 5.61, "coresets_2": 5.60},
    },
    note="the train split could not be had: trained on the test split, tested on the validation "
    "split, with 800 words and one layer",
)
