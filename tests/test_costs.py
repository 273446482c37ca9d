import pytest

from adasel_stream.costs import cost_of, tell


@pytest.mark.parametrize(
    ("rate", "scored", "saved"), [(0.1, True, 0.57), (0.2, True, 0.47), (0.5, True, 0.17)]
)
def test_the_saving_is_that_of_the_design(rate: float, scored: bool, saved: float) -> None:
    """A forward on every candidate and three of them on each chosen row, against three on all."""
    assert cost_of(rate, forward=scored, record=False).saved == pytest.approx(saved, abs=0.005)
    assert cost_of(rate, forward=False, record=True).saved == pytest.approx(1 - rate)


@pytest.mark.parametrize("rate", [2 / 3, 0.7, 1.0])
def test_from_two_thirds_on_scoring_cannot_pay(rate: float) -> None:
    """The warning names the rate and what to do."""
    with pytest.warns(RuntimeWarning, match=r"cannot pay at sampling_rate=.*; lower the rate, or"):
        tell(cost_of(rate, forward=True, record=False), stacklevel=1)


@pytest.mark.parametrize(("forward", "record"), [(True, True), (False, True)])
def test_known_losses_pay_at_any_rate_below_one(forward: bool, record: bool) -> None:
    """What is known costs no forward pass."""
    assert cost_of(0.9, forward=forward, record=record).pays
    assert not cost_of(1.0, forward=forward, record=record).pays


@pytest.mark.filterwarnings("ignore:selection cannot pay:RuntimeWarning")
@pytest.mark.parametrize(
    ("rate", "forward", "record", "line"),
    [
        (
            0.3,
            True,
            False,
            "adasel_stream: training on 30% of the stream, scoring all of it at 33.3% of the cost "
            "of training, can save 36.7% of full training's compute (a backward pass taken as 2 "
            "forward passes)\n",
        ),
        (0.001, False, True, "adasel_stream: training on 0.1% of the stream can save 99.9% of"),
        (0.5, True, True, "can save 16.7% of full training's compute, up to 50% where losses are"),
        (0.9, True, False, "costs 23.3% more than full training (a backward pass taken as"),
    ],
)
def test_the_line_says_what_can_be_saved(
    rate: float, forward: bool, record: bool, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, so that it is in no pipe's way."""
    tell(cost_of(rate, forward=forward, record=record), stacklevel=1)
    out, err = capsys.readouterr()
    assert line in err
    assert out == ""


def test_the_line_says_what_an_even_draw_saves() -> None:
    """Which is all where scoring cannot pay, and a policy knows."""
    cost = cost_of(0.75, forward=True, record=False, gives_up=True)
    assert "drawn evenly and not scored, can save 25% of full training's" in cost.line
    assert not cost.pays
    assert "scoring all of it" in cost_of(0.2, forward=True, record=False, gives_up=True).line


def test_the_line_says_that_a_proxy_is_not_counted() -> None:
    """What a proxy costs nobody has said."""
    cost = cost_of(0.2, forward=False, record=False, proxy=True)
    assert "scoring all of it by a proxy that is not counted here, can save 80%" in cost.line


def test_the_line_says_each_thing_once() -> None:
    """What is drawn evenly is not scored, by whatever means."""
    line = cost_of(1.0, forward=False, record=False, proxy=True, gives_up=True).line
    assert "of the stream, drawn evenly and not scored, can save 0% of" in line
    assert "up to" not in cost_of(1.0, forward=True, record=True, gives_up=True).line
