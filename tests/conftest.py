"""What tests of several files share, made once."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adasel_stream.serving import LossFeed
from tests.serving_feeds import NOW_S, Clock

if TYPE_CHECKING:  # tests without the demo shall not load it
    from adasel_stream.demo.shards import Prepared
    from tests.demo_command import Ended


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> "Prepared":
    """Give shards of the year's first flights; nobody may change them."""
    from adasel_stream.demo.shards import prepare

    return prepare(tmp_path_factory.mktemp("data"), 4000, lambda _: None)


@pytest.fixture(scope="session")
def undisturbed(
    prepared: "Prepared", tmp_path_factory: pytest.TempPathFactory
) -> "tuple[Ended, Path]":
    """Give a demo that ran to its end, and its folder."""
    from tests.demo_command import demo, run

    out = tmp_path_factory.mktemp("undisturbed")
    return run(*demo(prepared, out)), out


@pytest.fixture
def clock() -> Clock:
    """Make a clock."""
    return Clock()


@pytest.fixture
def feed(tmp_path: Path, clock: Clock) -> LossFeed:
    """Make a feed of the test's folder that looks into it every second."""
    return LossFeed(tmp_path, poll_every_s=1.0, clock=clock, wall_clock=lambda: NOW_S)
