"""`adasel-stream record`: its tasks on real folders, sound, damaged, locked or not there."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adasel_stream.cli import main
from adasel_stream.keys import instance_ids
from adasel_stream.record import PendingLabels
from adasel_stream.record.snapshots import manifest as manifests
from adasel_stream.record.snapshots.files import read_manifest
from tests.demo_command import Ended, run_here
from tests.kept_records import (
    damage,
    files_of,
    flip_middle,
    kept,
    learn,
    rank_folder,
    saved_content,
)
from tests.record_command import SCRIPT, run_script, trainer, without_permission
from tests.record_model import Clock

Run = Callable[..., Ended]

SLOTS = 40_000
TASKS: dict[str, list[str]] = {
    "inspect": [],
    "top": [],
    "export": ["--out", "/nowhere/out.csv"],
    "verify": [],
    "compact": [],
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `adasel-stream record` in this process, which has loaded everything already."""
    return lambda *arguments: run_here(["record", *map(str, arguments)], capsys)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep a record with a base and two deltas; nobody may change it."""
    path = tmp_path_factory.mktemp("records") / "record"
    clock = Clock()
    with kept(path, SLOTS, clock=clock) as record:
        rng = np.random.default_rng(0)
        for start, stop in ((0, 1000), (700, 1100), (1000, 1500)):
            learn(record, rng, np.arange(start, stop))
            record.update(["cat.jpg"], np.array([50.0]))
            clock.now_s += 7200
            record.save()
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """Copy the record, for a test to damage."""
    return shutil.copytree(made, tmp_path / "record")


@pytest.mark.slow
def test_every_task_works_as_a_process_of_its_own(path: Path, tmp_path: Path) -> None:
    """The installed command inspects, lists, exports, imports, verifies and compacts."""
    told = run_script("inspect", path)
    assert (told.code, told.told) == (0, "")
    assert "1,501 in 40,000 slots (3.8%)" in told.out
    told = run_script("top", path, "--rows", 1)
    assert told.out.splitlines()[1].split()[:2] == [str(instance_ids(["cat.jpg"])[0]), "50"]
    out, copy = tmp_path / "out.parquet", tmp_path / "copy"
    assert run_script("export", path, "--out", out).out.startswith("wrote 1,501 instances to ")
    told = run_script("import", copy, "--from", out, "--capacity", SLOTS)
    assert told.out == "took 1,501 rows in; the record holds 1,501 instances in 40,000 slots\n"
    told = run_script("verify", path)
    assert (told.code, told.out.splitlines()[-1]) == (0, "sound: all 4 files")
    assert " KiB became 1,501 in " in run_script("compact", path).out
    assert saved_content(path, capacity=SLOTS).keys() == saved_content(copy, capacity=SLOTS).keys()


def test_numbers_for_machines_are_json(path: Path, run: Run) -> None:
    """`inspect --json` prints one document and nothing else."""
    assert json.loads(run("inspect", path, "--json").out)["entries"] == 1501


def test_top_orders_by_what_is_asked(path: Path, run: Run) -> None:
    """The stalest come first by age, and the freshest at the other end."""
    oldest = run("top", path, "--by", "age", "--rows", 3).out.splitlines()
    assert all(" 6 h " in line for line in oldest[1:4])
    youngest = run("top", path, "--by", "age", "--rows", 3, "--lowest").out.splitlines()
    assert all(" 2 h " in line for line in youngest[1:4])


def test_top_looks_single_instances_up(path: Path, run: Run) -> None:
    """Integer and string ids are told under the name that was asked for, unknown ones as such."""
    told = run("top", path, "--id", 7, "--id", -5, "--name", "cat.jpg", "--name", "7")
    lines = {tuple(line.split()[:3]) for line in told.out.splitlines()[1:]}
    cat, seven = map(str, instance_ids(["cat.jpg", "7"]))
    with kept(path, SLOTS, clock=lambda: 1e6) as record:
        loss = float(record.lookup(np.array([7])).losses[0])
    assert ("-5", "-5", "unknown") in lines
    assert ("cat.jpg", cat, "50") in lines
    assert ("7", seven, "unknown") in lines
    assert ("7", "7", f"{loss:.3g}") in lines


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_export_and_import_move_a_record(path: Path, tmp_path: Path, run: Run, suffix: str) -> None:
    """What was exported, taken in elsewhere, has the same losses, averages, counts, versions."""
    out, copy = tmp_path / f"out{suffix}", tmp_path / "copy"
    assert run("export", path, "--out", out).code == 0
    assert run("import", copy, "--from", out, "--capacity", SLOTS).code == 0
    rows, copied = (saved_content(folder, capacity=SLOTS) for folder in (path, copy))
    assert [(k, v[0], v[1], v[3], v[4]) for k, v in sorted(rows.items())] == [
        (k, v[0], v[1], v[3], v[4]) for k, v in sorted(copied.items())
    ]


def test_import_adds_to_a_record_with_its_own_settings(
    path: Path, tmp_path: Path, run: Run
) -> None:
    """Without --capacity a record keeps its slots; what it knew stays, what is new is added."""
    table = tmp_path / "new.csv"
    table.write_text("id,loss\n5000,2.5\n5001,3.5\n")
    told = run("import", path, "--from", table)
    assert told.out == "took 2 rows in; the record holds 1,503 instances in 40,000 slots\n"
    manifest = read_manifest(rank_folder(path))
    assert (manifest.capacity, manifest.decay) == (SLOTS, 0.9)
    assert "2.5" in run("top", path, "--id", 5000).out


def test_import_never_makes_a_record_smaller(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Run
) -> None:
    """A capacity below the record's is a wrong argument, and its deltas stay as they are."""
    table = tmp_path / "one.csv"
    table.write_text("id,loss\n5000,2.5\n")
    before = {file: file.read_bytes() for file in files_of(path)}
    with pytest.raises(SystemExit) as ended:
        main(["record", "import", str(path), "--from", str(table), "--capacity", "1000"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"at least the 40,000 slots of the record '{path}', got 1,000: leave it out" in told
    assert {file: file.read_bytes() for file in files_of(path)} == before
    assert run("import", path, "--from", table, "--capacity", SLOTS - 7).code == 0
    assert run("import", path, "--from", table, "--capacity", 2 * SLOTS).code == 0
    assert "1,502 in 80,000 slots" in run("inspect", path).out


def test_import_says_that_ranks_share_anew(tmp_path: Path, run: Run) -> None:
    """A record of two ranks takes a file in as one, and nothing of either is lost."""
    path, table = tmp_path / "record", tmp_path / "new.csv"
    for rank in (0, 1):
        with kept(path, 800, rank=rank, world_size=2) as record:
            learn(record, np.random.default_rng(0), np.arange(rank * 100, rank * 100 + 100))
            record.save()
    table.write_text("id,loss\n5000,2.5\n")
    told = run("import", path, "--from", table)
    assert "holds 201 instances in 1,600 slots" in told.out
    assert "shared by 2 ranks" in told.out
    assert "201 in 1,600 slots" in run("inspect", path).out


def test_import_keeps_predictions_that_wait(tmp_path: Path, run: Run) -> None:
    """Labels that come after an import still meet their predictions."""
    path, table = tmp_path / "record", tmp_path / "new.csv"
    table.write_text("id,loss\n5000,2.5\n")

    def labels() -> PendingLabels:
        return PendingLabels(800, lambda predictions, labels: predictions - labels, ttl_s=None)

    with kept(path, pending=labels()) as record:
        record.expect(np.arange(300), np.full(300, 4.0))
        record.save()
    assert "300 predictions wait for their labels" in run("inspect", path).out
    assert run("import", path, "--from", table).code == 0
    assert "300 predictions wait for their labels" in run("inspect", path).out
    assert run("verify", path).code == 0
    with kept(path, pending=labels()) as record:
        assert record.join(np.arange(301), np.ones(301)).tolist() == [True] * 300 + [False]
        assert record.lookup(np.array([0, 5000])).losses.tolist() == [3.0, 2.5]
        assert record.pending is not None
        assert record.pending.counts["expected"] == 300


@pytest.mark.parametrize("clock", [Clock(), time.time])
def test_import_leaves_ages_as_they_are(
    tmp_path: Path, run: Run, clock: Callable[[], float]
) -> None:
    """A record whose clock counts steps is not made older by the time of the day."""
    path, table = tmp_path / "record", tmp_path / "new.csv"
    table.write_text("id,loss,age_s\n5000,2.5,30\n")
    with kept(path, clock=clock) as record:
        record.update(np.arange(3), np.ones(3))
        record.save()
    assert run("import", path, "--from", table).code == 0
    with kept(path, clock=clock) as record:
        record.update(np.array([9]), np.ones(1))
        ages_s = record.lookup(np.array([0, 1, 2, 9])).age_s
    assert (ages_s < 600).all()


def test_import_into_a_damaged_record_is_refused(path: Path, tmp_path: Path, run: Run) -> None:
    """What a damaged delta holds is not given up because somebody adds to the record."""
    table = tmp_path / "new.csv"
    table.write_text("id,loss\n5000,2.5\n")
    damage(files_of(path, "delta")[0], flip_middle)
    before = {file: file.read_bytes() for file in files_of(path)}
    told = run("import", path, "--from", table)
    assert told.code == 1
    assert told.told.endswith(f"adasel-stream record verify {path}\n")
    assert {file: file.read_bytes() for file in files_of(path)} == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,loss\n1,inf\n", "has a loss that is not finite"),
        ("id,loss\n1,\n", "has a null in column 'loss'"),
        ("id,other\n1,2\n", "has no column loss; a table of losses has"),
        ("id,loss\nx,2\n", "cannot read"),
    ],
)
def test_import_of_a_bad_file_changes_nothing(
    path: Path, tmp_path: Path, run: Run, content: str, sentence: str
) -> None:
    """It is told what is wrong with the file; the record is as it was, and free."""
    before = {file: file.read_bytes() for file in files_of(path)}
    table = tmp_path / "bad.csv"
    table.write_text(content)
    told = run("import", path, "--from", table)
    assert (told.code, told.out) == (1, "")
    assert sentence in told.told
    assert {file: file.read_bytes() for file in files_of(path)} == before
    assert run("import", tmp_path / "new", "--from", table, "--capacity", 100).code == 1
    assert run("inspect", tmp_path / "new").code == 1
    assert run("compact", path).code == 0


def test_compact_folds_deltas_in_and_keeps_all(path: Path, run: Run) -> None:
    """All that the record held is in one base, and a second time there is nothing to do."""
    before = saved_content(path, capacity=SLOTS)
    assert "1,903 rows in " in run("compact", path).out
    assert len(files_of(path)) == 1
    assert saved_content(path, capacity=SLOTS) == before
    assert run("compact", path).out.startswith("nothing to fold: 1,501 rows in ")


@pytest.mark.slow
def test_record_in_use_is_read_but_not_changed(path: Path, tmp_path: Path, run: Run) -> None:
    """A trainer in another process lets others look; who would change files is told its number."""
    table = tmp_path / "new.csv"
    table.write_text("id,loss\n5000,2.5\n")
    with trainer(path) as number:
        for arguments in (["compact", path], ["import", path, "--from", table]):
            told = run(*arguments)
            assert (told.code, told.out) == (1, "")
            assert f"has an owner already, process {number} on " in told.told
        assert "instances in 100 slots" not in run("inspect", path).out
        assert run("verify", path).code == run("top", path).code == 0
        assert run("export", path, "--out", tmp_path / "out.csv").code == 0
    assert run("compact", path).code == 0


def test_sound_record_is_told_file_by_file(path: Path, run: Run) -> None:
    """Every file has a line of its own, manifests included, and the code is 0."""
    told = run("verify", path)
    assert (told.code, told.told) == (0, "")
    names = [f"{file.parent.name}/{file.name}" for file in files_of(path)]
    assert told.out.splitlines() == [
        *(f"sound    '{name}'" for name in names),
        f"sound    '{rank_folder(path).name}/manifest.json'",
        "sound: all 4 files",
    ]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("base", "pass salvage=True to LossRecord.open"),
        ("delta", "opens the record without a damaged delta and those after it"),
    ],
)
def test_damaged_file_is_named_with_what_to_do(
    path: Path, run: Run, kind: str, advice: str
) -> None:
    """`verify` names it and goes on to the others; all else refuses, and says how to learn more."""
    file = files_of(path, kind)[0]
    damage(file, flip_middle)
    told = run("verify", path)
    name = f"{file.parent.name}/{file.name}"
    assert told.code == 1
    assert f"damaged  '{name}': its sha256 is not the manifest's" in told.out.splitlines()
    assert told.out.count("sound    ") == 3
    assert "damaged: 1 of 4 files" in told.out
    assert advice in " ".join(told.out.split())
    for task in ("inspect", "top", "compact"):
        refused = run(task, path)
        assert (refused.code, refused.out) == (1, "")
        assert f"{file.name}' is damaged: its sha256 is not the manifest's. " in refused.told
        assert refused.told.endswith(f"adasel-stream record verify {path}\n")


def test_missing_file_is_damage(path: Path, run: Run) -> None:
    """A file that the manifest names and that is not there is told as missing."""
    files_of(path, "delta")[1].unlink()
    told = run("verify", path)
    assert told.code == 1
    assert "': it is missing" in told.out


@pytest.mark.parametrize("lose", [Path.unlink, lambda file: damage(file, flip_middle)])
def test_damaged_or_lost_manifest_is_told(
    path: Path, run: Run, lose: Callable[[Path], None]
) -> None:
    """A rank that lost its manifest is no rank that was never there."""
    lose(rank_folder(path) / "manifest.json")
    told = run("verify", path)
    assert told.code == 1
    assert "damaged  'rank-00000-of-00001/manifest.json': " in told.out
    assert "No trainer opens a record with a damaged manifest" in told.out
    for task in ("inspect", "top", "compact"):
        refused = run(task, path)
        assert (refused.code, refused.out) == (1, "")
        assert "manifest.json' is damaged: " in refused.told


def test_one_lost_manifest_of_two_is_told(tmp_path: Path, run: Run) -> None:
    """The ranks that are left are not taken for the whole record."""
    for rank in (0, 1):
        with kept(tmp_path, rank=rank, world_size=2) as record:
            record.save()
    (rank_folder(tmp_path, 1, 2) / "manifest.json").unlink()
    assert run("inspect", tmp_path).code == 1
    told = run("verify", tmp_path)
    assert told.code == 1
    assert "damaged  'rank-00001-of-00002/manifest.json': it is missing" in told.out
    assert "sound    'rank-00000-of-00002/manifest.json'" in told.out


@pytest.mark.parametrize("task", TASKS)
def test_newer_record_is_refused_by_name(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Both versions are told, and not a byte is changed."""
    file = rank_folder(path) / "manifest.json"
    manifest = read_manifest(file.parent)
    with monkeypatch.context() as newer:
        newer.setattr(manifests, "FORMAT_VERSION", 99)
        file.write_bytes(manifests.encode(manifest))
    before = file.read_bytes()
    told = run(task, path, *TASKS[task])
    assert (told.code, told.out) == (1, "")
    assert "has format version 99, this release reads up to 1" in told.told
    assert file.read_bytes() == before


@pytest.mark.parametrize("task", TASKS)
def test_what_is_no_record_is_told_apart(tmp_path: Path, run: Run, task: str) -> None:
    """No folder, a file in its place, an empty folder and a closed one have each a sentence."""
    path = tmp_path / "here"
    assert f"there is no folder '{path}'" in run(task, path, *TASKS[task]).told
    path.touch()
    assert f"'{path}' is no folder" in run(task, path, *TASKS[task]).told
    path.unlink()
    path.mkdir()
    assert f"'{path}' is no record" in run(task, path, *TASKS[task]).told
    with without_permission(path):
        told = run(task, path, *TASKS[task])
    assert told.code == 1
    assert f"cannot look into '{path}': Permission denied" in told.told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["top", "record", "--rows", "0"], "argument --rows: expected at least 1, got 0"),
        (["top", "record", "--rows", "x"], "argument --rows: expected a whole number, got 'x'"),
        (["top", "record", "--id", str(2**63)], "argument --id: expected an integer of 64 bits"),
        (["top", "record", "--by", "size"], "invalid choice: 'size'"),
        (["export", "record"], "--out"),
        (["import", "record", "--from", "a.csv", "--capacity", "-1"], "expected at least 1"),
        (["inspect"], "PATH"),
        ([], "TASK"),
    ],
)
def test_wrong_argument_is_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what was expected and what came, before anything is read."""
    with pytest.raises(SystemExit) as ended:
        main(["record", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_wrong_ending_and_missing_capacity_are_wrong_arguments(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are told like any other wrong argument."""
    table = tmp_path / "table.csv"
    table.write_text("id,loss\n1,2.5\n")
    for arguments, sentence in (
        (["export", path, "--out", tmp_path / "out.xls"], "ends in .parquet or .csv, got '.xls'"),
        (["import", tmp_path / "new", "--from", table], "a new one needs --capacity"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["record", *map(str, arguments)])
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_files_that_cannot_be_written_or_read_are_named(
    path: Path, tmp_path: Path, run: Run
) -> None:
    """An export into no folder and an import of no file fail with a sentence, and make nothing."""
    out = tmp_path / "absent" / "out.csv"
    assert run("export", path, "--out", out).told == (
        f"adasel-stream: cannot write '{out}': No such file or directory\n"
    )
    told = run("import", tmp_path / "new", "--from", out, "--capacity", 100)
    assert told.told == f"adasel-stream: there is no file '{out}' to import\n"
    assert not (tmp_path / "new").exists()
    told = run("import", rank_folder(path), "--from", __file__)
    assert f"is the folder of one rank: name the record's own, '{path}'" in told.told


@pytest.mark.slow
def test_reader_that_has_seen_enough_is_no_failure(path: Path) -> None:
    """A closed pipe, as after `head`, ends the command in silence."""
    command = [str(SCRIPT), "record", "inspect", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.mark.slow
def test_terminal_without_unicode_gets_other_bars(path: Path) -> None:
    """Where bars of text cannot be written, signs of ASCII are."""
    ended = subprocess.run(
        [SCRIPT, "record", "inspect", path],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert ended.returncode == 0
    assert b"####" in ended.stdout
    assert ended.stdout.isascii()
