"""Real processes that train one model together, and fall back each on its own."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adasel_stream import SelectingLoader
from tests.candidates import generator
from tests.streams import Rows

STEPS = 60


def rank_of_two(rank: int, folder: str) -> None:
    """Train a replica whose score runs it, and leave the number of steps in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def batches() -> Iterator[Rows]:
        random = generator(rank)
        while True:
            x = torch.randn(16, 4, generator=random)
            yield {"x": x, "y": x.sum(1) + torch.randn(16, generator=random)}

    def losses(batch: Rows) -> Tensor:
        squares: Tensor = (model(batch["x"]).squeeze(1) - batch["y"]).square()
        return squares

    loader = SelectingLoader(
        batches(), score=lambda batch: losses(batch).detach(), sampling_rate=0.25
    )
    steps = 0
    for batch in islice(loader, STEPS):
        if rank and steps == 20:  # no longer scores each window
            chooser = loader._selector._chooser
            chooser._watch = replace(
                chooser.watch, reason="no_gain", sums=(100.0, 10.0, 100.0, 10.0, 1.0)
            )
        loader.mean(losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    weights = [parameter.detach() for parameter in model.parameters()]
    torch.save({"steps": steps, "weights": weights}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_score_unequally_often_wait_for_nobody(tmp_path: Path) -> None:
    """One that has fallen back scores one window in eight; their models stay the same."""
    spawn = get_context("spawn")
    ranks = [spawn.Process(target=rank_of_two, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert one["steps"] == other["steps"] == STEPS
    for own, its in zip(one["weights"], other["weights"], strict=True):
        torch.testing.assert_close(own, its)
