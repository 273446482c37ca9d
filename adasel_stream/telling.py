"""What a log says when rows come to be drawn otherwise: why, with the numbers behind it."""

import math

from adasel_stream.paying import Rules, Watch, gain_of

__all__ = ["switch"]


def switch(before: Watch, now: Watch, rules: Rules, *, mean_loss: float = math.nan) -> str:
    """Say why rows are drawn evenly from now on, or by their losses again.

    Args:
        before: what was seen before the switch.
        now: what was seen since.
        rules: of the policy.
        mean_loss: the mean loss that it came with, NaN if unknown.

    >>> switch(Watch(), Watch(reason="drift"), Rules(hold=20), mean_loss=5.0)[:64]
    'rows are drawn evenly from now on, because of drift: the mean lo'
    """
    if now.reason:
        why = _why(before, now, rules, mean_loss)
        return f"rows are drawn evenly from now on, because of {now.reason}: {why}"
    over = {
        "no_gain": _measured(now, rules),
        "nonfinite_loss": f"only {_broken(now)}",
        "unseen": "gradients of trained rows are seen",
        "drift": f"the mean loss of now, {now.stream_loss:.4g}, counts as usual",
    }
    return (
        f"rows are drawn by their losses again, {before.reason} is over: "
        f"{over.get(before.reason, '')}"
    )


def _why(before: Watch, now: Watch, rules: Rules, mean_loss: float) -> str:
    if now.reason == "no_gain":
        return (
            f"{_measured(now, rules)}; one window in {rules.probe_every} is scored to see whether "
            "that changes"
        )
    if now.reason == "nonfinite_loss":
        return f"{_broken(now)}, more than {rules.nonfinite:.0%}"
    if now.reason == "drift":
        return (
            f"the mean loss is {mean_loss:.4g}, where {before.stream_loss:.4g} was usual; for "
            f"{rules.hold} windows, then the level of now is the usual one"
        )
    if now.reason == "unseen":
        return (
            "nobody can tell whether selection pays, as losses alone are known of candidates and "
            "gradients of trained rows are not seen. Give losses to loader.mean, one for each row, "
            "made of the last layer's output for that row alone; call backward on what it gives, "
            "and compile the model without its loss; or choose by losses all the same, by "
            "policy='unbiased'"
        )
    return "at this sampling rate scoring costs at least as much as it spares"


def _measured(watch: Watch, rules: Rules) -> str:
    gain = gain_of(watch, rules)
    return (
        f"the gain over uniform sampling, by {rules.judged_by}, is {gain.mean:.2g}, from "
        f"{gain.low:.2g} to {gain.high:.2g}"
    )


def _broken(watch: Watch) -> str:
    return f"{watch.nonfinite:.1%} of losses, in a running mean over windows, are not finite"
