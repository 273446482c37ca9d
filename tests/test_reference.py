import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from tests.reference import Array, Candidates
from tests.strategies import RTOL, VECTORS, Case, array, ours, proposals

ELSEWHERE = {
    "bad_rate": "arguments are checked where a loader is built",
    "selective_backprop_prob": "a candidate method beyond the paper's seven",
    "evolved_score": "a candidate method beyond the paper's seven",
    "stale_shrink": "how old recorded losses are trusted",
    "soft_prune_stream": "a policy beyond the paper's",
    "exp3_update": "a weight update beyond the paper's",
}
HEADLINE = ("alpha_softmax", "alpha_vote", "alpha_rank")
REWARDS = tuple(f"cl_{kind}_t{step}" for kind in ("literal", "prose") for step in (1, 10, 1000))
EQ3 = ("eq3_beta_1.0", "eq3_beta_-0.5", "eq3_beta_0.0", "eq3_literal_batch_loss")
SINGLE = (
    *("k_half_up", "cl_zero_losses", "zero_losses", "huge_losses", "empty_batch", "rate_one"),
    *("batch_of_one", "eq1_on_unit_interval", "eq1_max_normalised", "constant_uniform_is_inert"),
    *("scale_behaviour", "unbiased_inclusion", "variance_switch", "alpha_proportional"),
    *("variance_feedback_update", "hedge_fixed_share", "reducible_loss"),
)


def close(got: object, want: object) -> None:
    """Equal to the vectors' float64 tolerance; zeros must be zeros up to underflow."""
    np.testing.assert_allclose(array(got), array(want), rtol=RTOL["float64"], atol=1e-300)


def candidates(inputs: Case) -> Candidates:
    """A vector's batch; columns that it does not give are not used by its methods."""
    losses = array(inputs["losses"])
    unused = np.full_like(losses, np.nan)
    norms = array(inputs["grad_norms"]) if "grad_norms" in inputs else unused
    return Candidates(losses, norms, array(inputs["noise"]) if "noise" in inputs else unused)


def alphas(reading: str, methods: list[str], batch: Candidates, k: int) -> Array:
    """Importances of the methods, one row each."""
    return array([reference.importances(reading, ours(name), batch, k) for name in methods])


def test_every_vector_is_run_or_named_as_elsewhere() -> None:
    """A vector that is added cannot be overlooked."""
    assert {*HEADLINE, *REWARDS, *EQ3, *SINGLE, *ELSEWHERE} == set(VECTORS)


@pytest.mark.parametrize("name", HEADLINE)
def test_importances_picks_losses_and_scores_follow_the_vectors(name: str) -> None:
    """Eq. (2), (5), (6) and both readings of a method's loss, seven methods, three readings."""
    inputs, expect = VECTORS[name]["inputs"], VECTORS[name]["expect"]
    batch = candidates(inputs)
    k = reference.number_selected(len(batch.losses), inputs["rate"])
    rows = alphas(name.removeprefix("alpha_"), inputs["methods"], batch, k)
    chosen = [reference.picks(ours(method), batch, k) for method in inputs["methods"]]
    assert k == expect["k"]
    for method, row, picks in zip(inputs["methods"], rows, chosen, strict=True):
        close(row, expect["alpha"][method])
        assert sorted(picks) == expect["hard_pick"][method]
        subset = reference.method_loss_of_picks(batch.losses, picks)
        close(subset, expect["method_loss_subset"][method])
        weighted = reference.method_loss_weighted(batch.losses, row)
        close(weighted, expect["method_loss_alpha"][method])
    even = np.full(len(rows), 1 / len(rows))
    log_scores = reference.eq5(np.zeros(len(batch.losses)), even, rows)
    close(np.exp(log_scores), expect["score"])
    # rows that are equal but for rounding may change places
    best = array(expect["score"])[reference.top_k(log_scores, k)]
    close(best, array(expect["score"])[expect["chosen"]])


def test_number_selected_rounds_half_up_and_is_at_least_one() -> None:
    """Neither banker's rounding nor flooring."""
    case = VECTORS["k_half_up"]
    got = [reference.number_selected(rows, rate) for rows, rate in case["inputs"]["pairs"]]
    assert got == case["expect"]["k"]


@pytest.mark.parametrize("name", EQ3)
def test_eq3_multiplies_weights_by_the_relative_fall(name: str) -> None:
    """Eq. (3) as printed, with per-method losses, before and after normalising."""
    inputs, expect = VECTORS[name]["inputs"], VECTORS[name]["expect"]
    before, now, beta = array(inputs["prev"]), array(inputs["now"]), inputs["beta"]
    delta = reference.relative_change(before, now, beta)
    close(delta, expect["delta"])
    close(
        np.exp(reference.eq3(np.log(inputs["w_prev"]), before, now, beta)), expect["w_normalised"]
    )
    if "w_raw" in expect:
        close(array(inputs["w_prev"]) * np.exp(delta), expect["w_raw"])


@pytest.mark.parametrize("name", REWARDS)
def test_eq4_rewards_and_log_scores_follow_the_vectors(name: str) -> None:
    """Eq. (4) in the log domain, under the literal and the prose exponent."""
    inputs, expect = VECTORS[name]["inputs"], VECTORS[name]["expect"]
    batch = candidates(inputs)
    k = reference.number_selected(len(batch.losses), inputs["rate"])
    log_reward = reference.eq4(batch.losses, inputs["t"], inputs["cl_exponent"])
    rows = alphas("softmax", inputs["methods"], batch, k)
    log_scores = reference.eq5(log_reward, array(inputs["w"]), rows)
    close(log_reward, expect["log_reward"])
    close(np.exp(log_reward), expect["reward"])
    close(array(inputs["w"]) @ rows, expect["mix"])
    close(log_scores, expect["log_score"])
    assert reference.top_k(log_scores, k).tolist() == expect["chosen"]


def test_zero_losses_give_even_importances_and_reward_one() -> None:
    """Nothing divides by zero, and the lower index wins."""
    inputs, expect = VECTORS["zero_losses"]["inputs"], VECTORS["zero_losses"]["expect"]
    batch = candidates(inputs)
    rows = alphas("softmax", inputs["methods"], batch, 2)
    close(rows, [expect["alpha_row"]] * len(rows))
    log_reward = reference.eq4(batch.losses, inputs["t"], inputs["cl_exponent"])
    log_scores = reference.eq5(log_reward, np.full(len(rows), 1 / len(rows)), rows)
    close(np.exp(log_scores), expect["score"])
    assert reference.top_k(log_scores, 2).tolist() == expect["chosen"]
    zero = VECTORS["cl_zero_losses"]
    got = reference.eq4(array(zero["inputs"]["losses"]), zero["inputs"]["t"], 0.25)
    close(got, zero["expect"]["log_reward"])


def test_huge_losses_overflow_nothing() -> None:
    """The largest value is subtracted before the exponential."""
    inputs, expect = VECTORS["huge_losses"]["inputs"], VECTORS["huge_losses"]["expect"]
    rows = alphas("softmax", inputs["methods"], candidates(inputs), 2)
    close(rows, [expect["alpha"][method] for method in inputs["methods"]])
    scores = reference.eq5(np.zeros(4), array([0.5, 0.5]), rows)
    assert reference.top_k(scores, 2).tolist() == expect["chosen"]


def test_empty_batch_chooses_nothing() -> None:
    """No row, no choice, in every reading."""
    expect = VECTORS["empty_batch"]["expect"]
    batch = Candidates(array([]), array([]), array([]))
    assert reference.number_selected(0, 0.5) == expect["k"]
    for reading in reference.READINGS:
        assert alphas(reading, ["big_loss", "coreset1", "coreset2"], batch, 0).shape == (3, 0)
    assert reference.top_k(batch.losses, 0).tolist() == expect["chosen"]


def test_rate_one_chooses_every_row_with_weight_one() -> None:
    """Nothing is left out, so nothing is to be weighed up."""
    inputs, expect = VECTORS["rate_one"]["inputs"], VECTORS["rate_one"]["expect"]
    losses = array(inputs["losses"])
    k = reference.number_selected(len(losses), inputs["rate"])
    pi = reference.inclusion(reference.proposal(losses, 0.2), k)
    chosen = reference.systematic(pi, np.arange(k), 0.5)
    assert k == expect["k"]
    assert sorted(chosen) == expect["chosen_sorted"]
    close(reference.importance_weights(pi, chosen), expect["importance_weights"])


def test_batch_of_one_is_chosen() -> None:
    """A single row has importance one from every method."""
    inputs, expect = VECTORS["batch_of_one"]["inputs"], VECTORS["batch_of_one"]["expect"]
    one = array(inputs["losses"])
    batch = Candidates(one, one, one)
    assert reference.number_selected(1, inputs["rate"]) == expect["k"]
    for reading in reference.READINGS:
        for method in ("uniform", "big_loss", "gradient_norm", "adaboost", "coresets_1"):
            close(reference.importances(reading, method, batch, 1), expect["alpha_each"])
    assert reference.picks("coresets_1", batch, 1).tolist() == expect["chosen"]


def test_eq1_is_artanh_made_safe() -> None:
    """On the unit interval it is Eq. (1); beyond, the order of the losses is kept."""
    unit = VECTORS["eq1_on_unit_interval"]
    losses = array(unit["inputs"]["losses"])
    close(0.5 * np.log((1 + losses) / (1 - losses)), unit["expect"]["weight"])
    close(np.arctanh(losses), unit["expect"]["weight"])
    safe = VECTORS["eq1_max_normalised"]
    losses = array(safe["inputs"]["losses"])
    close(reference.eq1(losses), safe["expect"]["q"])
    for k in range(len(losses)):
        same = reference.top_k(reference.eq1(losses), k) == reference.top_k(losses, k)
        assert same.all()


def test_constant_uniform_importance_changes_no_order() -> None:
    """Why `uniform` must be fresh noise."""
    case = VECTORS["constant_uniform_is_inert"]
    rows = alphas("softmax", ["big_loss", "small_loss"], candidates(case["inputs"]), 2)
    mixed = rows.mean(axis=0)
    assert reference.top_k(mixed, 8).tolist() == case["expect"]["order_without"]
    assert reference.top_k(mixed / 2 + 1 / 16, 8).tolist() == case["expect"]["order_with"]


def test_rank_importances_are_free_of_scale() -> None:
    """The softmax reading is not."""
    inputs, expect = VECTORS["scale_behaviour"]["inputs"], VECTORS["scale_behaviour"]["expect"]
    losses = array(inputs["losses"])
    for factor, suffix in ((1.0, ""), (inputs["scale"], "_scaled")):
        close(reference.rank_softmax(losses * factor), expect[f"rank_alpha{suffix}"])
        close(reference.softmax(losses * factor), expect[f"softmax_alpha{suffix}"])


def test_unbiased_draw_follows_the_vector() -> None:
    """Exploration, water filling, the systematic walk and the weights."""
    inputs, expect = (
        VECTORS["unbiased_inclusion"]["inputs"],
        VECTORS["unbiased_inclusion"]["expect"],
    )
    p = reference.proposal(np.log(inputs["p"]), inputs["exploration"])
    pi = reference.inclusion(p, inputs["k"])
    chosen = reference.systematic(pi, np.array(inputs["perm"]), inputs["u"])
    close(p, expect["p_mixed"])
    close(pi, expect["pi"])
    close(pi.sum(), expect["pi_sum"])
    assert chosen.tolist() == expect["chosen_in_draw_order"]
    close(reference.importance_weights(pi, chosen), expect["importance_weights"])


def test_variance_ratio_and_effective_sample_size_follow_the_vector() -> None:
    """Both are of the distribution proportional to the gradient norms."""
    case = VECTORS["variance_switch"]
    tau, size = reference.variance_ratio(
        reference.proportional(array(case["inputs"]["grad_norms"]))
    )
    close([tau, size], [case["expect"]["tau"], case["expect"]["ess"]])


def test_proportional_importances_follow_the_vector() -> None:
    """Negative losses are shifted, all-zero losses share alike."""
    case = VECTORS["alpha_proportional"]
    for losses, alpha in zip(case["inputs"]["losses"], case["expect"]["alpha"], strict=True):
        close(reference.proportional(array(losses)), alpha)


def test_variance_feedback_follows_the_vector() -> None:
    """The floor enters the weights that are used, not the log weights that are kept."""
    case = VECTORS["variance_feedback_update"]
    inputs, expect = case["inputs"], case["expect"]
    rows, log_weights = array(inputs["alpha"]), array(inputs["w_log"])
    mixture = np.log(np.exp(log_weights) @ rows)
    p = reference.proposal(mixture, inputs["exploration"])
    pi = reference.inclusion(p, inputs["k"])
    chosen = np.array(inputs["selected"])
    gain = reference.variance_gain(rows, p, pi, chosen, array(inputs["fresh_sq"]))
    updated = reference.variance_update(log_weights, gain)
    close(p, expect["p"])
    close(pi, expect["pi"])
    close(gain, expect["gain"])
    close(updated, expect["w_log"])
    close(reference.with_floor(updated, inputs["params"]["floor"]), expect["w"])


def test_floor_is_hedges_fixed_share() -> None:
    """Mixing in a share of 1/M each is the same mixing as a floor of share/M."""
    inputs, expect = VECTORS["hedge_fixed_share"]["inputs"], VECTORS["hedge_fixed_share"]["expect"]
    log_weights = np.log(inputs["w_prev"]) + inputs["eta"] * array(inputs["rewards"])
    close(reference.softmax(log_weights), expect["w_before_share"])
    close(reference.with_floor(log_weights, inputs["share"] / 4), expect["w"])


def test_a_reference_loss_ranks_noise_below_what_can_be_learned() -> None:
    """The user's own method of the vector: loss minus reference loss, then top-k."""
    inputs, expect = VECTORS["reducible_loss"]["inputs"], VECTORS["reducible_loss"]["expect"]
    reducible = array(inputs["losses"]) - array(inputs["ref_losses"])
    close(reducible, expect["q"])
    assert reference.top_k(reducible, inputs["k"]).tolist() == expect["hard_pick"]


def test_accumulation_emits_full_batches_first_in_first_out() -> None:
    """Algorithm 2, lines 8 to 11: nothing lost, nothing repeated, order kept."""
    emitted, waiting = reference.accumulate([[1, 2, 3], [], [4], [5, 6, 7, 8, 9]], 4)
    assert emitted == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert waiting == [9]


def test_progress_moves_no_weight_at_first_and_then_towards_falling_losses() -> None:
    """The method whose loss falls gains on the one whose loss rises."""
    unknown, zero = array([np.nan, np.nan]), np.zeros(2)
    log_weights, average, spread = reference.progress_update(zero, unknown, zero, array([2, 2]))
    close(log_weights, zero)
    log_weights, average, spread = reference.progress_update(
        log_weights, average, spread, array([1, 3])
    )
    close(average, [1.9, 2.1])
    close(log_weights, array([1, -1]) * 0.1 / 0.1**0.5)


@given(proposals(), st.data())
def test_water_filling_is_the_only_one_that_sums_to_k(p: Array, data: st.DataObject) -> None:
    """Inclusions are min(1, c p) for one c and sum to k."""
    k = data.draw(st.integers(1, len(p)))
    pi = reference.inclusion(p, k)
    close(pi.sum(), k)
    open_rows = pi < 1
    factors = pi[open_rows] / p[open_rows]
    np.testing.assert_allclose(factors, factors[:1].repeat(len(factors)), rtol=1e-9)
    if len(factors):
        assert (p[~open_rows] * factors[0] >= 1 - 1e-9).all()
