"""The confidence says how often captions are good, for each data set, and is checked honestly."""

import json

import numpy as np
import pytest

from decoder.captioning.confidence import load
from decoder.sharing.calibration import LEAST, check, fit


def drawn(count: int, seed: int = 0) -> tuple[list[dict[str, float]], list[float]]:
    """Draw signals and CIDEr, which is good with probability logistic(2 x - y + 1)."""
    generator = np.random.default_rng(seed)
    x, y = generator.uniform(-3, 1, count), generator.normal(size=count)
    good = generator.uniform(size=count) < 1 / (1 + np.exp(-(2 * x - y + 1)))
    signals = [{"log_probability": a, "novelty": b} for a, b in zip(x, y, strict=True)]
    return signals, np.where(good, 0.9, 0.1).tolist()


def test_it_is_the_share_of_good_captions():
    learnt = fit(*drawn(4000))
    assert learnt is not None
    assert learnt.weights["log_probability"] == pytest.approx(2, abs=0.25)
    assert learnt.weights["novelty"] == pytest.approx(-1, abs=0.15)
    assert learnt.intercept == pytest.approx(1, abs=0.25)


def test_it_needs_enough_captions_good_ones_and_others():
    signals, ciders = drawn(LEAST)
    assert fit(signals[1:], ciders[1:]) is None
    assert fit(signals, [1.0] * LEAST) is None


def test_it_stays_finite_if_one_signal_separates_good_from_bad():
    signals = [{"log_probability": float(x)} for x in range(-100, 0)]
    separable = fit(signals, [0.0] * 50 + [1.0] * 50)
    assert separable is not None
    assert 0 < separable.of({"log_probability": -100}) < separable.of({"log_probability": -1}) < 1


def test_the_check_knows_a_calibrated_captioner_and_a_boastful_one():
    signals, ciders = drawn(2000)
    checked = check(signals, ciders, ["a"] * 1500 + ["b"] * 500)
    assert [of["captions"] for of in checked.values()] == [1500, 500]
    for of in checked.values():
        assert abs(of["error"] - of["perfect"]) < 0.02
        assert sum(row["captions"] for row in of["table"]) == of["captions"]
    # The second data set has the same signals, but all its captions are bad.
    foreign, _ = drawn(500, seed=1)
    boastful = check(signals + foreign, ciders + [0.0] * 500, ["a"] * 2000 + ["b"] * 500)
    assert boastful["b"]["error"] > boastful["b"]["perfect"] + 0.1


def test_each_data_set_has_the_same_influence():
    signals, ciders = drawn(1000)
    one = fit(signals + signals[:100], ciders + [0.1] * 100, ["a"] * 1000 + ["b"] * 100)
    whole = fit(signals + signals[:100], ciders + [0.1] * 100)
    assert one is not None
    assert whole is not None
    assert one.of(signals[0]) < whole.of(signals[0]) - 0.1


def test_few_photographs_of_any_data_set_are_unfamiliar():
    signals, ciders = drawn(1000)
    others = [{**of, "novelty": of["novelty"] + 5} for of in signals]
    learnt = fit(signals + others, ciders * 2, ["a"] * 1000 + ["b"] * 1000)
    assert learnt is not None
    assert sum(map(learnt.unfamiliar, others)) <= 25
    assert sum(map(learnt.unfamiliar, signals)) == 0


def test_the_confidence_of_version_0_2_is_read(tmp_path):
    values = {"slope": 3.0, "intercept": 2.0, "good": 0.3, "images": 100, "table": []}
    (tmp_path / "captioner.json").write_text(json.dumps({"confidence": values}))
    old = load(tmp_path)
    assert old is not None
    assert old.of({"log_probability": -1.0, "novelty": 9.0}) == pytest.approx(1 / (1 + np.e))
    assert not old.unfamiliar({"novelty": 9.0})
