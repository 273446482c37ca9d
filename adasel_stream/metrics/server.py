"""The page that a Prometheus server reads."""

import os
import warnings
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from adasel_stream.metrics.collector import RunCollector
from adasel_stream.metrics.slots import Metrics

__all__ = ["Server", "serve"]

_open: weakref.WeakSet[WSGIServer] = weakref.WeakSet()


class Server:
    """A page of metrics that is being served, or that could not be.

    Attributes:
        port: the port it listens on; None if it could not be opened.
    """

    def __init__(
        self,
        collector: RunCollector,
        registry: CollectorRegistry,
        listening: tuple[WSGIServer, Thread] | None,
    ) -> None:
        """Hold what `serve` has opened."""
        self._collector = collector
        self._registry = registry
        self._listening = listening
        self.port: int | None = listening[0].server_port if listening else None

    def add(self, metrics: Metrics) -> None:
        """Show one more run on the same page.

        Raises:
            TypeError: if it is something else than `Metrics`.
            ValueError: if a run with this name and rank is shown already.
        """
        _check_metrics(metrics)
        self._collector.add(metrics)

    def __enter__(self) -> "Server":
        """Return the server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.close()

    def close(self) -> None:
        """Stop serving and free the port; a second call does nothing."""
        if self._listening is None:
            return
        listening, self._listening = self._listening, None
        _stop(*listening)
        self._registry.unregister(self._collector)


def serve(
    metrics: Metrics | Sequence[Metrics],
    *,
    host: str = "127.0.0.1",
    port: int = 9400,
    registry: CollectorRegistry | None = None,
) -> Server:
    """Serve the metrics of one or several runs over HTTP, in a thread of its own.

    One page serves a whole process; several ranks on a machine take several ports, by
    convention 9400 + local rank. A port that cannot be opened is no reason not to train:
    it warns and returns a server whose `port` is None.

    Args:
        metrics: runs with different names or ranks.
        host: address to listen on. Everyone who reaches it can read the metrics, so it is
            the loopback address unless told otherwise.
        port: 0 to 65535; 0 takes a free one.
        registry: where to register; a new one by default, so that neither the host
            application's metrics nor ours appear on the other's page.

    Raises:
        TypeError: if `metrics` is something else than `Metrics` and sequences of them, such as
            the loader, or the port no integer.
        ValueError: if the port is out of range, two runs have the same name and rank, or
            `registry` shows metrics of these names already; use `Server.add` there.

    >>> metrics = Metrics(["uniform"], sampling_rate=1, batch_size=8, policy="paper")
    >>> with serve(metrics, port=0) as server:
    ...     server.port > 0
    True
    """
    if not isinstance(port, int) or isinstance(port, bool):
        raise TypeError(f"port must be an integer, got {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be in 0..65535, got {port}")
    runs = metrics if isinstance(metrics, Sequence) else [metrics]
    for run in runs:
        _check_metrics(run)
    collector = RunCollector(runs)
    registry = registry if registry is not None else CollectorRegistry(auto_describe=True)
    try:
        listening = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        warnings.warn(
            f"metrics are not served: {host}:{port} could not be opened "
            f"({error.strerror}); training goes on without them",
            RuntimeWarning,
            stacklevel=2,
        )
        return Server(collector, registry, None)
    with ExitStack() as undo:
        undo.callback(_stop, *listening)
        registry.register(collector)
        undo.pop_all()
    _open.add(listening[0])
    _close_in_children()
    return Server(collector, registry, listening)


def _check_metrics(run: object) -> None:
    if not isinstance(run, Metrics):
        raise TypeError(
            "serve expects the Metrics of a run, such as loader.metrics, or a list of them, "
            f"got {type(run).__name__}"
        )


def _stop(httpd: WSGIServer, thread: Thread) -> None:
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@cache  # a hook cannot be taken back, so there is one for all pages
def _close_in_children() -> None:
    """Keep forked loader workers from holding ports after the trainer has died."""

    def close() -> None:
        for inherited in list(_open):
            inherited.socket.close()

    os.register_at_fork(after_in_child=close)
