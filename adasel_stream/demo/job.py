"""The main job: all arms through the stream, in turns, watched, logged, and safe to stop."""

import fcntl
import json
import math
import os
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adasel_stream.demo import snapshot
from adasel_stream.demo.arms import Arm
from adasel_stream.demo.plan import ahead_rows, candidates_for, make_arms, turn_rows, turns
from adasel_stream.demo.report import write_report
from adasel_stream.demo.screen import Screen
from adasel_stream.demo.serving import Serving
from adasel_stream.demo.settings import Settings
from adasel_stream.demo.shards import Prepared, open_shards, prepare
from adasel_stream.demo.snapshot import Spent
from adasel_stream.demo.stop import Stop
from adasel_stream.demo.summary import Summary, summarise
from adasel_stream.errors import AdaselError, CheckpointError, ShardError
from adasel_stream.metrics import serve
from adasel_stream.runlog import RunLog

__all__ = ["Outcome", "run"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        exit_code: 130 after Ctrl-C; else 0, also where SIGTERM stopped it in order.
        summary: the result, or None if it was stopped before the end of the stream.
    """

    exit_code: int
    summary: Summary | None


def run(settings: Settings, screen: Screen) -> Outcome:
    """Prepare the stream, train all arms on it, and write the report.

    A signal that asks to stop leaves a snapshot; the same call goes on from there and comes to
    the same numbers as a run that was never stopped. A snapshot that cannot be written is told
    and counted; only where a signal asked for it, it is an error.

    Raises:
        AdaselError: the data, a shard or the snapshot cannot be used; the message says what to do.
        CheckpointError: a signal asked to stop, and no snapshot could be written.
        OSError: a file cannot be written.
    """
    settings.out.mkdir(parents=True, exist_ok=True)
    with _alone(settings.out), _one_thread():
        prepared = prepare(settings.data or settings.out / "data", settings.rows, screen.busy)
        _tell_data(prepared, screen)
        with _serving(settings, prepared, screen) as serving:
            return _Job(settings, prepared, screen, serving).run()


class _Job:
    def __init__(
        self, settings: Settings, prepared: Prepared, screen: Screen, serving: Serving | None
    ) -> None:
        self._settings = settings
        self._prepared = prepared
        self._screen = screen
        self._path = settings.out / "snapshot.ckpt"
        shards = prepared.shards(settings.format)
        self._arms = make_arms(
            lambda batch_size: open_shards(shards, settings.format, batch_size),
            prepared.sizes,
            prepared.rows,
            sampling_rate=settings.sampling_rate,
            seed=settings.seed,
            serving=serving,
        )
        self._fixed = {
            "rows": prepared.rows,
            "rate": settings.sampling_rate,
            "losses": settings.losses,
            "seed": settings.seed,
            "format": settings.format,
            "data": prepared.facts["source"]["sha256"],
            "torch": str(torch.__version__),
        }
        self._spent = Spent(turns=0, elapsed_s=0.0)
        self._saved = time.monotonic()

    def run(self) -> Outcome:
        self._begin()
        started = time.monotonic() - self._spent.elapsed_s
        with ExitStack() as stack:
            logs = [stack.enter_context(RunLog(self._log(arm), every_s=0)) for arm in self._arms]
            server = serve([arm.metrics for arm in self._arms], port=self._settings.port)
            stack.callback(server.close)
            if server.port is not None:
                self._screen.say(f"live metrics: http://127.0.0.1:{server.port}/metrics")
            stop = stack.enter_context(Stop())
            rows, rate = self._prepared.rows, self._settings.sampling_rate
            for until in turns(rows, rate, self._spent.turns):
                self._turn(until, logs)
                self._spent = Spent(self._spent.turns + 1, time.monotonic() - started)
                if stop.asked and until < math.inf:
                    self._stopped()
                    return Outcome(stop.exit_code, None)
                if time.monotonic() - self._saved >= self._settings.save_every_s:
                    self._save()
        return Outcome(0, self._finish())

    def _begin(self) -> None:
        """Go on from the snapshot or start over."""
        if not self._settings.fresh:
            spent = snapshot.restore(self._path, self._fixed, self._arms)
            if spent is not None:
                self._spent = spent
                seen = self._arms[0].learner.progressive.seen
                self._screen.say(f"going on from {self._path}, after {seen:,} flights")
                return
        for name in ("report.html", "summary.json", self._path.name):
            (self._settings.out / name).unlink(missing_ok=True)
        for arm in self._arms:
            self._log(arm).unlink(missing_ok=True)

    def _turn(self, until: float, logs: Sequence[RunLog]) -> None:
        for arm, log in zip(self._arms, logs, strict=True):
            try:
                arm.advance(until)
            except AdaselError as error:
                raise _explained(error, self._prepared) from error
            log.write(arm.metrics.snapshot(), force=True)
        self._screen.show(self._arms[0].learner.progressive.seen, self._prepared.rows, self._arms)

    def _stopped(self) -> None:
        seen = self._arms[0].learner.progressive.seen
        stopped = f"stopped after {seen:,} of {self._prepared.rows:,} flights"
        try:
            snapshot.save(self._path, self._fixed, self._arms, self._spent)
        except CheckpointError as error:
            raise CheckpointError(
                f"{stopped}, and no snapshot could be written: {error}. Running the same command "
                f"again {self._goes_on()}"
            ) from error
        self._screen.say(
            f"{stopped}; everything is in {self._path}. Run the same command again to go on from "
            "there"
        )

    def _save(self) -> None:
        """Write a snapshot; where that fails, the run goes on and tries again later."""
        try:
            snapshot.save(self._path, self._fixed, self._arms, self._spent)
        except CheckpointError as error:
            self._screen.say(
                f"no snapshot could be written: {error}. Training goes on; killed now, the same "
                f"command {self._goes_on()}"
            )
        self._saved = time.monotonic()

    def _goes_on(self) -> str:
        """Say where another run begins while no new snapshot can be written."""
        if self._path.exists():
            return "goes on from the snapshot before, which is intact"
        return "starts over"

    def _finish(self) -> Summary:
        summary = summarise(self._arms, self._prepared.rows)
        out = self._settings.out
        numbers = {**summary.numbers(), "elapsed_s": self._spent.elapsed_s, "settings": self._fixed}
        (out / "summary.json").write_text(json.dumps(numbers, indent=1) + "\n", "utf-8")
        write_report(
            out / "report.html",
            summary,
            {arm.name: arm.learner.progressive for arm in self._arms},
            {arm.name: self._log(arm) for arm in self._arms},
            self._prepared.facts,
            self._spent.elapsed_s,
        )
        self._path.unlink(missing_ok=True)
        return summary

    def _log(self, arm: Arm) -> Path:
        return self._settings.out / f"{arm.name}.jsonl"


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """Keep a second run out of the folder."""
    lock = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AdaselError(
                f"another run is under way in {out}; wait for it, or choose another --out"
            ) from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _serving(settings: Settings, prepared: Prepared, screen: Screen) -> Generator[Serving | None]:
    """Make ready for the second process where losses come from serving."""
    if settings.losses == "scoring":
        yield None
        return
    rate = settings.sampling_rate
    with Serving(
        settings.out / "serving",
        prepared,
        settings.format,
        batch_size=candidates_for(rate),
        most_rows=min(turn_rows(prepared.rows, rate) + ahead_rows(rate), prepared.rows),
        tell=screen.say,
    ) as serving:
        yield serving


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute in one thread, so that arms are timed alike and sums come out alike anywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tell_data(prepared: Prepared, screen: Screen) -> None:
    facts: dict[str, Any] = prepared.facts
    screen.say(
        f"{prepared.rows:,} flights in order of departure, in {prepared.folder} "
        f"({facts['dropped']['never_arrived']:,} of {facts['flights_in_source']:,} never arrived "
        "and have no label)"
    )


def _explained(error: AdaselError, prepared: Prepared) -> AdaselError:
    """Say what to do about a damaged shard, which a loader wraps into its own error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ShardError):
        cause = cause.__cause__
    if cause is None:
        return error
    return ShardError(f"{cause}. Remove {prepared.folder} and run again: it is written anew")
