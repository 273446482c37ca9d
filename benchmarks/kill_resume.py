"""Kill a training job with SIGKILL at random moments and compare it with one left alone.

    python benchmarks/kill_resume.py --kills 1000

A job trains a small model on selected samples of Parquet shards and saves all state in one file
every few steps. It is killed, started again from the file, killed again, and so on to its end.
The ids that it trained on, step by step, their importance weights, the method weights, and at
the end model, optimizer and policy must equal those of an undisturbed job, bit for bit. Then the
next job starts.
"""

import argparse
import contextlib
import hashlib
import io
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import torch
import torch._dynamo  # optimizers import it at their first step: loaded once, before any fork
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from adasel_connectors.parquet import ParquetSource
from adasel_stream import LossRecord, SelectingLoader
from adasel_stream.checkpoint import load_checkpoint, save_checkpoint

KILLS_PER_JOB = 7  # about; sets how long a job lives on average
ROWS, SHARDS, FEATURES, PASSES = 1500, 3, 8, 3
# Nothing divides anything: neither the buffer nor the fraction of a row is empty for long.
CANDIDATES, BATCH_SIZE, SAMPLING_RATE = 64, 24, 0.3
STEPS_PER_SAVE = 2


def write_shards(folder: Path) -> None:
    """Write the stream that all jobs read: some Parquet shards with small row groups."""
    rng = np.random.default_rng(5)
    for number, x in enumerate(np.split(rng.normal(size=(ROWS, FEATURES)).astype("f4"), SHARDS)):
        y = (x.sum(1) + rng.normal(size=len(x)) > 0).astype("f4")
        rows = pa.FixedSizeListArray.from_arrays(x.ravel(), FEATURES)
        path = folder / f"{number}.parquet"
        pq.write_table(pa.table({"x": rows, "y": y}), path, row_group_size=CANDIDATES + 1)


class Job:
    """A training job that continues where its file says, or begins.

    Its history is a chain of digests over what each step was made of.

    Args:
        shards: folder of the stream.
        folder: where to keep the file.
    """

    def __init__(self, shards: Path, folder: Path) -> None:
        torch.manual_seed(0)
        self.path = folder / "job.ckpt"
        self.model = nn.Sequential(
            *(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU()),
            *(nn.Dropout(0.2), nn.Linear(16, 1)),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.loader = SelectingLoader(
            self.source(shards),
            score=self.losses,
            model=self.model,
            sampling_rate=SAMPLING_RATE,
            batch_size=BATCH_SIZE,
            # Too small for all rows, so that what is evicted counts; time decides that. Each child
            # would compile the other engine anew.
            record=LossRecord(capacity=ROWS // 2, clock=lambda: 0.0, engine="numpy"),
            ids="id",
            seed=1,
        )
        self.steps, self.passes = 0, 0
        self.ids: list[int] = []
        self.history = b""

    def source(self, shards: Path) -> ParquetSource:
        """Make the source of candidates."""
        return ParquetSource(shards, batch_size=CANDIDATES)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """Give one loss per row, shape (b,)."""
        logits = self.model(batch["x"]).squeeze(1)
        return binary_cross_entropy_with_logits(logits, batch["y"], reduction="none")

    def run(self) -> None:
        """Train to the end."""
        while self.passes < PASSES:
            for batch in self.loader:
                self.train_on(batch)
                if self.steps % STEPS_PER_SAVE == 0:
                    self.save()
            self.passes += 1

    def train_on(self, batch: dict[str, Tensor]) -> None:
        """Take one step and note what it was made of."""
        loss = self.loader.mean(self.losses(batch))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.optimizer.step()
        self.steps += 1
        self.ids += batch["id"].tolist()
        self.note(batch["id"], self.loader.weights, self.loader.metrics.method_weight_ratio)

    def note(self, *values: Any) -> None:
        """Add a link to the chain of digests."""
        link = hashlib.blake2b(self.history, digest_size=16)
        for value in values:
            link.update(np.ascontiguousarray(value).tobytes())
        self.history = link.digest()

    def state(self) -> dict[str, Any]:
        """Gather all state of the job: what a user would put into one file."""
        return {
            "loader": self.loader.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "progress": (self.steps, self.passes),
            "ids": np.array(self.ids, np.int64),
            "history": self.history,
        }

    def save(self) -> None:
        """Write the state to the job's file."""
        save_checkpoint(self.path, self.state())

    def load(self) -> None:
        """Continue from the job's file, if there is one."""
        if self.path.exists():
            self.restore(load_checkpoint(self.path))

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.loader.load_state_dict(state["loader"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.steps, self.passes = state["progress"]
        self.ids = state["ids"].tolist()
        self.history = state["history"]

    def result(self) -> dict[str, Any]:
        """Sum up the job: the ids trained on in order, and a digest of everything else."""
        policy = self.loader.state_dict()["selector"]["policy"]
        optimizer = self.optimizer.state_dict()["state"]
        self.note(*(tensor.numpy() for tensor in self.model.state_dict().values()))
        self.note(*(tensor.numpy() for one in optimizer.values() for tensor in one.values()))
        self.note(policy["log_weights"], policy["method_losses"])
        return {"ids": np.array(self.ids, np.int64), "digest": self.history.hex()}


@dataclass
class Counts:
    """What happened to the jobs.

    Attributes:
        kills: jobs killed before their end, each of them started again.
        completed: jobs that came to their end.
        mismatches: those of them whose result differs from the undisturbed job's.
        lost: samples that the undisturbed job trained on and these did not.
        repeated: samples that these trained on and the undisturbed job did not.
        unstartable: jobs that raised; there was nothing to resume from.
    """

    kills: int = 0
    completed: int = 0
    mismatches: int = 0
    lost: int = 0
    repeated: int = 0
    unstartable: int = 0

    @property
    def faults(self) -> int:
        """Jobs that did not end as the undisturbed one."""
        return self.mismatches + self.unstartable

    def compare(self, result: dict[str, Any], expected: dict[str, Any]) -> None:
        """Count a completed job."""
        trained, wanted = Counter(result["ids"].tolist()), Counter(expected["ids"].tolist())
        self.completed += 1
        self.lost += (wanted - trained).total()
        self.repeated += (trained - wanted).total()
        same_order = np.array_equal(result["ids"], expected["ids"])
        self.mismatches += not (same_order and result["digest"] == expected["digest"])


def fork(work: Callable[[], None]) -> int:
    """Do some work in a process that has everything loaded already; give its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where each loader says what it costs
            work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Harness:
    """Starts jobs of one kind, with a stream that it writes to an empty folder, and kills them."""

    def __init__(self, job: type[Job], root: Path) -> None:
        self._job = job
        self._root = root
        self._shards = root / "shards"
        self._shards.mkdir()
        # In a process of its own, as Arrow starts threads to write and threads must not be forked.
        os.waitpid(fork(lambda: write_shards(self._shards)), 0)
        self._undisturbed()  # what is slow once only must not set how long jobs live
        begin = time.perf_counter()
        self.expected = self._undisturbed()
        self.mean_life_s = (time.perf_counter() - begin) / KILLS_PER_JOB

    def kill_to_the_end(
        self, counts: Counts, kills: int, rng: random.Random
    ) -> dict[str, Any] | None:
        """Kill and restart one job until it ends; give its result, or None if it raised."""
        with tempfile.TemporaryDirectory(dir=self._root) as folder:
            while True:
                process = self._start(Path(folder))
                if counts.kills < kills:  # the last job of all may end in peace
                    time.sleep(rng.uniform(0.0, 2.0 * self.mean_life_s))
                    os.kill(process, signal.SIGKILL)  # not reaped yet: the id is still its own
                _, status = os.waitpid(process, 0)
                if os.WIFSIGNALED(status):
                    counts.kills += 1
                elif status:
                    counts.unstartable += 1
                    return None
                else:
                    return load_checkpoint(Path(folder, "result"))

    def _start(self, folder: Path) -> int:
        def work() -> None:
            job = self._job(self._shards, folder)
            job.load()
            job.run()
            save_checkpoint(folder / "result", job.result())

        return fork(work)

    def _undisturbed(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self._root) as folder:
            os.waitpid(self._start(Path(folder)), 0)
            return load_checkpoint(Path(folder, "result"))


def kill_jobs(job: type[Job], kills: int, *, seed: int = 0, faults: int = sys.maxsize) -> Counts:
    """Run jobs one after the other and kill them, until there were so many kills or faults."""
    torch.set_num_threads(1)  # also because a process with threads should not fork
    rng = random.Random(seed)
    counts = Counts()
    with tempfile.TemporaryDirectory() as root:
        harness = Harness(job, Path(root))
        while counts.kills < kills and counts.faults < faults:
            result = harness.kill_to_the_end(counts, kills, rng)
            if result is not None:
                counts.compare(result, harness.expected)
    return counts


def main() -> None:
    """Kill, resume, compare and print; exit with 1 if any job ended differently."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="how often to kill, default 100")
    parser.add_argument("--seed", type=int, default=0, help="seeds the moments, default 0")
    arguments = parser.parse_args()
    begin = time.perf_counter()
    counts = kill_jobs(Job, arguments.kills, seed=arguments.seed)
    rate = counts.kills / (time.perf_counter() - begin)
    for name, count in vars(counts).items():
        print(f"{name:<12}{count:>8}")
    print(f"{rate:.1f} kills/s; target: 0 mismatches, lost, repeated and unstartable")
    sys.exit(1 if counts.faults else 0)


if __name__ == "__main__":
    main()
