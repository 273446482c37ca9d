"""The trainer's side of serving: starts the server, asks it, and starts it again if it dies."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adasel_stream.checkpoint import save_checkpoint
from adasel_stream.demo.settings import Format
from adasel_stream.demo.shards import Prepared
from adasel_stream.errors import AdaselError, ShardError

__all__ = ["Serving"]

_COMMAND = [sys.executable, "-m", "adasel_stream.demo.server"]
_LONGEST_ANSWER_BYTES = 1 << 20
_END_S = 5.0
_DYING_S = 1.0


class Serving:
    """A second process that serves the stream, and the files between it and the trainer.

    Nothing is started before the first `ask`. A server that ends or does not answer is started
    again where it was asked last; a second time for the same request is an error.

    Args:
        folder: for the published model, segments and the server's log; emptied.
        prepared: the stream.
        kind: of shard to serve from.
        batch_size: flights of one forward pass.
        most_rows: most flights that are asked for at once.
        tell: called with a sentence when a server is started or did not answer.
        timeout_s: longest wait for an answer, in seconds, positive.

    Attributes:
        losses: folder where segments of losses appear, for a `LossFeed`.
        served: flights served of the stream, as far as their losses were taken over.
        rows: losses taken over.
        seconds: processor time that the server's forward passes took for those.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        prepared: Prepared,
        kind: Format,
        *,
        batch_size: int,
        most_rows: int,
        tell: Callable[[str], None],
        timeout_s: float = 60.0,
    ) -> None:
        """Make the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        # a server whose trainer was killed just now may still write to the folder before
        self.losses = Path(tempfile.mkdtemp(prefix="losses-", dir=folder))
        self._model = folder / "model.ckpt"
        self._log = folder / "server.log"
        self._start = {
            "shards": str(prepared.shards(kind)),
            "kind": kind,
            "batch_size": batch_size,
            "sizes": list(prepared.sizes),
            "model": str(self._model),
            "losses": str(self.losses),
            "segment_rows": most_rows,
        }
        self._tell = tell
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: dict[str, Any] | None = None
        self._position: Mapping[str, Any] | None = None
        self.served = 0
        self.rows = 0
        self.seconds = 0.0

    def ask(self, version: int, network: Mapping[str, Any], until: int) -> None:
        """Publish a model and have the server serve with it, meanwhile.

        Args:
            version: of the model, at least 0.
            network: its weights.
            until: serve up to this flight of the stream, or to its end.

        Raises:
            CheckpointError: the model cannot be written.
        """
        # read at once and worthless after a power cut
        save_checkpoint(self._model, {"version": version, "network": network}, durable=False)
        self._asked = {"until": until}
        if self._process is None:
            self._launch()
        else:
            self._send(self._asked)

    def collect(self) -> int:
        """Wait until what was asked is served, and have the losses published.

        Returns:
            how many losses wait in `losses` now; 0 where nothing was asked since.

        Raises:
            AdaselError: the server failed, or ended twice; the message says what to do.
            ShardError: the server found a shard damaged.
        """
        if self._asked is None:
            return 0
        answer = self._answer() or self._answer_of_another()
        self._asked = None
        self.served, self._position = int(answer["served"]), answer["position"]
        self.rows += int(answer["rows"])
        self.seconds += float(answer["seconds"])
        return int(answer["rows"])

    def state_dict(self) -> dict[str, Any]:
        """Describe how far the stream is served; after `collect`."""
        return {
            "served": self.served,
            "position": None if self._position is None else dict(self._position),
            "rows": self.rows,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; before the first `ask`."""
        self.served, self._position = int(state["served"]), state["position"]
        self.rows, self.seconds = int(state["rows"]), float(state["seconds"])

    def close(self) -> None:
        """End the server, if it runs."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()  # the server ends when nobody can ask any more
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the server; what it wrote stays where an error has to be looked into."""
        started = self._process is not None
        self.close()
        if error is None or not started:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self) -> None:
        """Start a server, and send it what is asked."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                _COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C at the terminal is for the trainer
            )
        self._tell(f"flights are served by process {self._process.pid}")
        self._send({**self._start, "position": self._position, "served": self.served})
        self._send(self._asked or {})

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # whoever waits for the answer finds it dead
            self._process.stdin.write(json.dumps(request).encode() + b"\n")

    def _answer_of_another(self) -> dict[str, Any]:
        """Start the server again and repeat what was asked."""
        self._tell(f"the serving process {self._stopped()}; another takes its place")
        for segment in self.losses.glob("*.seg"):
            segment.unlink()  # what is served again must not count twice
        self._launch()
        answer = self._answer()
        if answer is None:
            raise AdaselError(
                f"the serving process {self._stopped()}, for the second time at the same flights; "
                f"{self._log} holds what it said. Run the same command again to go on from the "
                "snapshot, or with --losses scoring to do without serving"
            )
        return answer

    def _stopped(self) -> str:
        """End the server that did not answer, and say what became of it."""
        assert self._process is not None
        try:
            became = f"ended with code {self._process.wait(_DYING_S)}"
        except subprocess.TimeoutExpired:
            self._process.kill()
            became = f"did not answer within {self._timeout_s:g} seconds"
        self.close()
        return became

    def _answer(self) -> dict[str, Any] | None:
        """Have the losses handed over; None where the server is dead or silent."""
        self._send({})
        line = self._line()
        if line is None:
            return None
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            kind = ShardError if answer["failed"] == ShardError.__name__ else AdaselError
            raise kind(f"the serving process failed: {answer['why']}")
        return answer

    def _line(self) -> bytes | None:
        """Read what the server says; None where it ends or takes too long."""
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, line = self._process.stdout.fileno(), b""
        due = time.monotonic() + self._timeout_s
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, due - time.monotonic()))
            part = os.read(pipe, _LONGEST_ANSWER_BYTES) if ready else b""
            if not part or len(line) > _LONGEST_ANSWER_BYTES:
                return None
            line += part
        return line
