"""The process beside the trainer: it predicts every flight once and writes the loss down.

`adasel_stream.demo.serving` starts it as `python -m adasel_stream.demo.server`. It reads requests
from standard input, one JSON object a line: first what to serve, see `Server`, then what `serve`
takes, or `{}` to hand over the losses since; that is answered by a line on standard output. It
ends when its input does, and so with its trainer, whatever that died of.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adasel_stream.checkpoint import load_checkpoint
from adasel_stream.demo.flights import stream_seconds
from adasel_stream.demo.model import DelayNet, inputs, losses_of
from adasel_stream.demo.settings import Format
from adasel_stream.demo.shards import open_shards
from adasel_stream.errors import AdaselError
from adasel_stream.serving import LossWriter
from adasel_stream.types import Batch

__all__ = ["Server"]

_WHEN_ASKED_S = 86_400.0
"""Segments are published when the trainer asks, so that a run can be repeated exactly."""


class Server:
    """Serve a stream in order, each part with the model published last.

    Args:
        shards: folder of the stream's shards.
        kind: of shard.
        batch_size: flights of one forward pass.
        sizes: how many values each code can take.
        model: file of the published model, with `version` and the weights as `network`.
        losses: folder for segments of losses.
        segment_rows: most flights between two calls of `hand_over`.
        position: where in the stream to begin, as the source describes it; None for its start.
        served: flights before that.
    """

    def __init__(
        self,
        *,
        shards: str,
        kind: Format,
        batch_size: int,
        sizes: list[int],
        model: str,
        losses: str,
        segment_rows: int,
        position: Mapping[str, Any] | None,
        served: int,
    ) -> None:
        """Open the stream; nothing is read yet."""
        self._source = open_shards(Path(shards), kind, batch_size)
        if position is not None:
            self._source.load_state_dict(position)
        self._batches: Iterator[Batch] = iter(self._source)
        self._network = DelayNet(sizes)
        self._model = model
        self._second = 0.0
        self._writer = LossWriter(
            losses,
            segment_rows=segment_rows,
            publish_every_s=_WHEN_ASKED_S,
            clock=lambda: self._second,
        )
        self._served = served
        self._kept: list[tuple[float, npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
        self._spent_s = 0.0

    def serve(self, until: int) -> None:
        """Predict the flights up to the `until`th, or to the end of the stream.

        Raises:
            AdaselError: a shard or the model is damaged.
            FileNotFoundError: no model was published.
        """
        published = load_checkpoint(self._model)
        self._network.load_state_dict(published["network"])
        self._writer.version = published["version"]
        while self._served < until and (batch := next(self._batches, None)) is not None:
            began = time.thread_time()
            with torch.inference_mode():
                flights = inputs(batch)
                losses = losses_of(self._network(flights), flights)
            self._spent_s += time.thread_time() - began
            self._kept.append((stream_seconds(self._served), batch["id"].numpy(), losses.numpy()))
            self._served += len(losses)

    def hand_over(self) -> dict[str, Any]:
        """Publish the losses that were not yet, and tell how far the stream is served.

        Returns:
            `rows` and processor `seconds` since the call before, `served` flights of the stream
            and the `position` after them.

        Raises:
            AdaselError: the disk takes no segment.
        """
        before = self._writer.counts["rows_written"]
        for second, ids, losses in self._kept:
            self._second = second
            self._writer.write(ids, losses)
        if not self._writer.publish() or self._writer.counts["rows_dropped"]:
            raise AdaselError("losses cannot be published: is the disk full?")
        told = {
            "rows": self._writer.counts["rows_written"] - before,
            "seconds": self._spent_s,
            "served": self._served,
            "position": self._source.state_dict(),
        }
        self._kept, self._spent_s = [], 0.0
        return told


def main() -> int:
    """Serve as asked until nobody can ask any more."""
    torch.set_num_threads(1)
    try:
        server = Server(**json.loads(sys.stdin.readline()))
        for line in sys.stdin:
            if request := json.loads(line):
                server.serve(**request)
            else:
                _answer(server.hand_over())
    except BrokenPipeError:
        return 0  # the trainer is gone
    except (AdaselError, OSError) as error:
        _answer({"failed": type(error).__name__, "why": str(error)})
        return 1
    return 0


def _answer(told: Mapping[str, Any]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    sys.exit(main())
