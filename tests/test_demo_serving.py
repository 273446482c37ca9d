"""The demo by losses from serving: a trainer and a server that are stopped, killed and silent."""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adasel_stream.demo import serving as serving_module
from adasel_stream.demo.learner import BATCH_SIZE
from adasel_stream.demo.model import DelayNet, inputs, losses_of
from adasel_stream.demo.plan import SERVING, ahead_rows, make_arms, turn_rows, turns
from adasel_stream.demo.serving import Serving
from adasel_stream.demo.shards import Prepared, open_shards
from adasel_stream.errors import AdaselError
from adasel_stream.record import LossRecord
from adasel_stream.runlog import read_run_log
from adasel_stream.serving import LossFeed
from tests.demo_command import SERVED_ARMS, Command, Ended, demo, numbers, run, run_here

pytestmark = pytest.mark.slow

RATE = 0.2
BATCH = round(BATCH_SIZE / RATE)


def _demo(prepared: Prepared, out: Path, *more: str) -> list[str]:
    return demo(prepared, out, "--losses", "serving", *more)


def _server_of(command: Command) -> int:
    """Read which process serves."""
    return int(command.until("flights are served by process").split()[-1])


def _await_end(process: int) -> None:
    """Wait until a process runs no more; one that nobody reaps has ended, too."""
    due = time.monotonic() + 20
    state = Path(f"/proc/{process}/stat")
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        while time.monotonic() < due:
            os.kill(process, 0)
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.01)
        raise AssertionError(f"process {process} still runs after 20 seconds")


@pytest.fixture(scope="module")
def served(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    """Give a demo by losses from serving that ran to its end, and its folder."""
    out = tmp_path_factory.mktemp("served")
    return run(*_demo(prepared, out)), out


def test_run_ends_with_all_five_contestants_and_leaves_no_server(
    served: tuple[Ended, Path],
) -> None:
    """Table, charts and logs have a line for each, and files between the processes are gone."""
    ended, out = served
    assert ended.code == 0, ended.told
    page = (out / "report.html").read_text()
    for arm, label in SERVED_ARMS.items():
        assert re.search(rf"^{label} +0\.\d{{4}} ", ended.out, re.MULTILINE)
        assert label.replace("'", "&#x27;") in page or label in page
        assert (out / f"{arm}.jsonl").exists()
    assert not (out / "serving").exists()
    _await_end(int(re.findall(r"served by process (\d+)", ended.told)[0]))


def test_verdict_and_costs_are_those_of_the_contestant_that_is_served(
    served: tuple[Ended, Path],
) -> None:
    """Its passes are a fifth of full training's, and nothing is claimed after a few updates."""
    ended, out = served
    result = json.loads((out / "summary.json").read_text())
    assert result["verdict"] in ended.out
    assert result["verdict"].startswith(
        "With losses from serving, AdaSelection needs 20% of full training's passes; with scoring, "
        "53%. Too few updates to compare AdaSelection with uniform selection: "
    )
    passes = {name: one["passes"] for name, one in result["arms"].items()}
    assert passes[SERVING] == passes["uniform"] == pytest.approx(RATE * passes["full"], abs=3)
    assert set(result["adaselection_serving_minus"]) == set(SERVED_ARMS) - {SERVING}
    assert "took 20% of full training's passes by arithmetic (80% saved)" in result["cost"]


def test_every_loss_comes_from_serving_and_none_from_a_scoring_pass(
    served: tuple[Ended, Path], prepared: Prepared
) -> None:
    """All flights are served once, known when they are chosen from, and never scored to choose."""
    out = served[1]
    last = read_run_log(out / f"{SERVING}.jsonl").records[-1]
    rows = prepared.rows
    assert last["score_rows_total"] == {
        "forward": 0,
        "proxy": 0,
        "record": rows,
        "unknown": 0,
    }
    assert last["record_lookups_total"]["hit"] == rows
    told = json.loads((out / "summary.json").read_text())["served"]
    assert (told["rows"], told["unknown"]) == (rows, 0)


def test_tar_shards_are_served_to_the_same_numbers(
    prepared: Prepared,
    served: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server reads the kind of shard that the trainer reads."""
    ended = run_here(_demo(prepared, tmp_path, "--format", "tar"), capsys)
    assert ended.code == 0, ended.told
    ours, theirs = numbers(tmp_path), numbers(served[1])
    del ours["settings"]["format"], theirs["settings"]["format"]
    assert ours == theirs


def test_killed_trainer_takes_its_server_along_and_comes_to_the_same_numbers(
    prepared: Prepared,
    served: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`kill -9` leaves no process behind, and the run goes on exactly from its snapshot."""
    with Command(_demo(prepared, tmp_path, "--save-every", "0")) as command:
        server = _server_of(command)
        command.until("loss so far")
        while not (tmp_path / "snapshot.ckpt").exists():
            time.sleep(0.01)
        command.signal(signal.SIGKILL)
        assert command.end().code == -signal.SIGKILL
    _await_end(server)
    resumed = run_here(_demo(prepared, tmp_path), capsys)
    assert resumed.code == 0, resumed.told
    assert "going on from" in resumed.told
    assert numbers(tmp_path) == numbers(served[1])


def test_killed_server_is_replaced_and_the_numbers_stay_the_same(
    prepared: Prepared, served: tuple[Ended, Path], tmp_path: Path
) -> None:
    """The trainer says what happened and goes on from where the server was asked last."""
    with Command(_demo(prepared, tmp_path)) as command:
        server = _server_of(command)
        command.until("loss so far")
        os.kill(server, signal.SIGKILL)
        command.until("the serving process ended with code -9; another takes its place")
        ended = command.end()
    assert ended.code == 0, ended.told
    assert numbers(tmp_path) == numbers(served[1])


def test_ctrl_c_at_the_terminal_stops_trainer_and_server_in_order(
    prepared: Prepared,
    served: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole group gets the signal; a snapshot is left, and going on is exact."""
    with Command(_demo(prepared, tmp_path), leads=True) as command:
        server = _server_of(command)
        command.until("loss so far")
        command.signal_group(signal.SIGINT)
        ended = command.end()
    assert ended.code == 130, ended.told
    assert "Traceback" not in ended.told
    assert "another takes its place" not in ended.told
    _await_end(server)
    assert not (tmp_path / "serving").exists()
    resumed = run_here(_demo(prepared, tmp_path), capsys)
    assert resumed.code == 0, resumed.told
    assert numbers(tmp_path) == numbers(served[1])


def test_snapshot_of_a_run_by_scoring_is_refused(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal names where losses came from, and no server is left or started."""
    with Command(demo(prepared, tmp_path)) as command:
        command.until("loss so far")
        command.signal(signal.SIGTERM)
        command.end()
    refused = run_here(_demo(prepared, tmp_path), capsys)
    assert refused.code == 1
    assert "losses was 'scoring' and is 'serving'" in refused.told
    assert not (tmp_path / "serving").exists()


def test_shard_that_the_server_finds_damaged_is_named_with_what_to_do(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server meets damage first, as it is ahead; the trainer tells it in a sentence."""
    folder = tmp_path / "data" / prepared.folder.name
    shutil.copytree(prepared.folder, folder)
    shard = folder / "parquet" / "flights-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    harmed = Prepared(folder, prepared.rows, prepared.sizes, prepared.facts, written=False)
    ended = run_here(_demo(harmed, tmp_path), capsys)
    assert ended.code == 1
    assert "the serving process failed: shard" in ended.told
    assert f"Remove {folder} and run again" in ended.told


@pytest.fixture
def told() -> list[str]:
    """Collect what is told."""
    return []


@pytest.fixture
def serving(prepared: Prepared, tmp_path: Path, told: list[str]) -> Iterator[Serving]:
    """Give a server of the stream that was not started yet."""
    most = turn_rows(prepared.rows, RATE) + ahead_rows(RATE)
    with Serving(
        tmp_path / "serving",
        prepared,
        "parquet",
        batch_size=BATCH,
        most_rows=most,
        tell=told.append,
        timeout_s=20.0,
    ) as made:
        yield made


def test_served_losses_are_those_of_the_published_model(
    prepared: Prepared, serving: Serving
) -> None:
    """Each flight is predicted with the model of its request, and its version travels along."""
    networks = [DelayNet(prepared.sizes, seed=seed) for seed in (3, 4)]
    for network in networks:
        torch.nn.init.normal_(network.out.weight, std=0.1)
    record = LossRecord(10_000, seed=0)
    feed = LossFeed(serving.losses, poll_every_s=0)
    batches = iter(open_shards(prepared.shards("parquet"), "parquet", BATCH))
    for version, network in enumerate(networks, start=7):
        serving.ask(version, network.state_dict(), serving.served + 2 * BATCH)
        assert serving.collect() == 2 * BATCH
        assert feed.poll(record) == 2 * BATCH
        for batch in (next(batches), next(batches)):
            with torch.no_grad():
                expected = losses_of(network(inputs(batch)), inputs(batch))
            losses = record.lookup(batch["id"].numpy()).losses
            np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-6)
    assert sorted(set(record.items().versions.tolist())) == [7, 8]


def test_served_contestant_is_judged_by_the_model_as_it_is_and_not_as_it_served(
    prepared: Prepared, serving: Serving
) -> None:
    """Progressive losses are of every flight, in order, before training, by the newest model."""
    shards = prepared.shards("parquet")
    arm = make_arms(
        lambda batch_size: open_shards(shards, "parquet", batch_size),
        prepared.sizes,
        prepared.rows,
        sampling_rate=RATE,
        seed=0,
        serving=serving,
    )[0]
    batches = iter(open_shards(shards, "parquet", BATCH))
    kept = 0.0
    for until in turns(prepared.rows, RATE):
        with torch.no_grad():
            now = inputs(next(batches))
            expected = losses_of(arm.learner.network(now), now).double().sum().item()
        arm.advance(until)
        seen, loss = arm.learner.progressive.seen, arm.learner.progressive.loss
        if until != float("inf"):
            assert loss * seen - kept == pytest.approx(expected, rel=1e-6)
        kept = loss * seen
    assert arm.learner.progressive.seen == prepared.rows


@pytest.mark.parametrize(
    ("server", "became"),
    [
        ("raise SystemExit(3)", "ended with code 3"),
        ("import time; time.sleep(600)", "did not answer within 0.5 seconds"),
    ],
)
def test_server_that_fails_twice_at_the_same_flights_stops_the_run_with_a_sentence(
    prepared: Prepared,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    became: str,
) -> None:
    """It is started once more, and the error says what happened and what to do."""
    monkeypatch.setattr(serving_module, "_COMMAND", [sys.executable, "-c", server])
    network = DelayNet(prepared.sizes)
    with Serving(
        tmp_path / "serving",
        prepared,
        "parquet",
        batch_size=BATCH,
        most_rows=BATCH,
        tell=told.append,
        timeout_s=0.5,
    ) as serving:
        serving.ask(0, network.state_dict(), BATCH)
        with pytest.raises(AdaselError, match=rf"{became}, for the second time.*--losses scoring"):
            serving.collect()
    processes = [int(line.split()[-1]) for line in told if "by process" in line]
    assert len(processes) == 2
    for process in processes:
        _await_end(process)


_DIES_ONCE_PUBLISHED = """
import os, pathlib, sys
from adasel_stream.demo import server
died = pathlib.Path(sys.argv[1])
if not died.exists():
    died.touch()
    server._answer = lambda told: os._exit(9)
sys.exit(server.main())
"""


def test_losses_that_a_server_published_before_it_died_count_once(
    prepared: Prepared,
    serving: Serving,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever takes its place serves the same flights again, and the trainer gets them once."""
    command = [sys.executable, "-c", _DIES_ONCE_PUBLISHED, str(tmp_path / "died")]
    monkeypatch.setattr(serving_module, "_COMMAND", command)
    serving.ask(0, DelayNet(prepared.sizes).state_dict(), BATCH)
    record = LossRecord(10_000)
    assert serving.collect() == LossFeed(serving.losses).poll(record) == BATCH
    assert "the serving process ended with code 9; another takes its place" in told
    assert record.items().counts.tolist() == [1] * BATCH


def test_server_without_room_for_losses_says_so(prepared: Prepared, serving: Serving) -> None:
    """A segment that cannot be published is an error, not a smaller number of losses."""
    shutil.rmtree(serving.losses)
    serving.losses.write_text("a file where the folder was")
    serving.ask(0, DelayNet(prepared.sizes).state_dict(), BATCH)
    with pytest.raises(AdaselError, match="the serving process failed"):
        serving.collect()
