import os
import signal
import socket
import subprocess
import sys
import threading
import warnings
from typing import Any

import prometheus_client
import pytest
import torch

from adasel_stream.loader import SelectingLoader
from adasel_stream.metrics import serve
from tests.metric_pages import make, samples, scrape, select, value


def test_one_page_serves_several_runs() -> None:
    """Arms of one process share a page and differ by `run`; the same name twice is refused."""
    first, second = make(run="adaselection"), make(run="uniform")
    with serve([first], port=0) as server:
        server.add(second)
        second.steps += 7
        page = scrape(server.port)
        with pytest.raises(ValueError, match="own name"):
            server.add(make(run="uniform"))

    assert 'adasel_steps_total{rank="0",run="adaselection"} 0' in page
    assert 'adasel_steps_total{rank="0",run="uniform"} 7' in page
    assert page.count("# HELP adasel_steps_total") == 1


def test_only_loopback_is_served_by_default() -> None:
    """Another machine cannot read the metrics unless it was asked for."""
    with serve(make(), port=0) as server, socket.socket() as outside:
        outside.settimeout(5)
        assert outside.connect_ex(("127.0.0.2", server.port or 0)) != 0


def test_a_taken_port_warns_and_training_goes_on() -> None:
    """The second process on a port counts on without a page, and the first keeps its own."""
    first, second = make(run="first"), make(run="second")
    with serve(first, port=0) as server:
        with pytest.warns(RuntimeWarning, match="training goes on"):
            unserved = serve(second, port=server.port or 0)
        second.observe_step(0.1)
        page = scrape(server.port)

    assert unserved.port is None
    assert second.steps == 1
    assert 'run="first"' in page
    assert 'run="second"' not in page
    unserved.close()


def test_what_are_no_metrics_is_refused() -> None:
    """A loader is not read for runs; the message names what to pass instead."""
    batches = [{"x": torch.zeros(2)}]
    loader: Any = SelectingLoader(
        batches, score=lambda batch: batch["x"], sampling_rate=0.5, batch_size=1
    )
    with pytest.raises(TypeError, match=r"such as loader\.metrics, .* got SelectingLoader"):
        serve(loader, port=0)
    with pytest.raises(TypeError, match="got NoneType"):
        serve([make(), None], port=0)  # type: ignore[list-item]  # what is tested
    with serve(make(), port=0) as server, pytest.raises(TypeError, match="got SelectingLoader"):
        server.add(loader)


def test_a_port_is_a_number() -> None:
    """That of an environment variable is a text first."""
    text: Any = "9400"
    with pytest.raises(TypeError, match="port must be an integer, got str"):
        serve(make(), port=text)


def test_a_closed_page_frees_its_port_and_its_registry() -> None:
    """The port can be taken again at once, in the caller's own registry too."""
    registry = prometheus_client.CollectorRegistry()
    server = serve(make(), port=0, registry=registry)
    server.close()
    server.close()

    with serve(make(), port=server.port or 0, registry=registry) as again:
        assert "adasel_steps_total" in scrape(again.port)


def test_a_page_that_cannot_be_registered_leaves_no_port_open() -> None:
    """A second page in the same registry is refused, and its socket and thread are gone."""
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serve(make(), port=0, registry=registry):
        threads = threading.active_count()
        with pytest.raises(ValueError, match="Duplicated timeseries"):
            serve(make(), port=port, registry=registry)
        assert threading.active_count() == threads
        with serve(make(), port=port) as server:
            assert server.port == port


def test_pages_share_one_fork_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks cannot be taken back, so opening and closing pages must not pile them up."""
    hooks: list[Any] = []
    register = os.register_at_fork

    def count(**hook: Any) -> None:
        hooks.append(hook)
        register(**hook)

    monkeypatch.setattr(os, "register_at_fork", count)
    for _ in range(3):
        serve(make(), port=0).close()
    assert len(hooks) <= 1


def test_the_global_registry_stays_untouched() -> None:
    """Neither the host application's page shows our metrics nor ours shows its."""
    with serve(make(), port=0) as server:
        page = scrape(server.port)

    assert "python_info" not in page
    assert "adasel" not in prometheus_client.generate_latest().decode()


FORKER = """
import os, sys, time
from adasel_stream.metrics import Metrics, serve
metrics = Metrics(["uniform"], sampling_rate=1, batch_size=1, policy="paper")
servers = [serve(metrics, port=0) for _ in range(2)]
if os.fork() == 0:
    sys.stdin.buffer.read()  # a worker that reads on after its trainer has died
    os._exit(0)
print(*(server.port for server in servers), flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_forked_worker_does_not_keep_the_ports_of_a_killed_trainer() -> None:
    """After kill -9 the restarted trainer gets its ports although a worker still lives."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ports = [int(port) for port in process.stdout.readline().split()]
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for port in ports:
                with serve(make(), port=port) as server:
                    assert server.port == port
    finally:
        process.stdin.close()
        process.stdout.close()


@pytest.mark.slow
def test_scrapes_during_training_are_never_torn() -> None:
    """Pages read while another thread counts are whole: cumulative, consistent, monotone."""
    metrics = make()
    done = threading.Event()

    def train() -> None:
        while not done.is_set():
            metrics.samples_seen += 4
            with metrics.phase("train"):
                select(metrics, [0.5, 0.5, 0.5, 0.5], [0.5])
            metrics.observe_step(0.001)

    trainer = threading.Thread(target=train)
    before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    with serve(metrics, port=0) as server:
        trainer.start()
        try:
            for _ in range(25):
                page = scrape(server.port)
                now = samples(page)
                for (name, labels), held in before.items():
                    if name.endswith(("_total", "_bucket", "_count")):
                        assert now[(name, labels)] >= held
                count = value(page, "adasel_loss_count", set="seen")
                assert value(page, "adasel_loss_bucket", set="seen", le="+Inf") == count
                assert value(page, "adasel_loss_sum", set="seen") == 0.5 * count
                before = now
        finally:
            done.set()
            trainer.join()
