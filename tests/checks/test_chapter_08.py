import numpy as np
import pytest
import torch

from dmm.checks import CheckFailed, chapter_08


def masked(predicted, actions, mask):
    return (predicted - actions)[mask].square().mean()


def window_means(predicted, actions, mask):
    return torch.stack([masked(*one) for one in zip(predicted, actions, mask, strict=True)]).mean()


def rate(step, warmup, peak):
    return peak * min(1.0, (step + 1) / warmup)


def bootstrap(values, rng, tail=2.5, size=None, axis=1):
    means = rng.choice(values, size=(4000, size or len(values))).mean(axis=axis)
    return tuple(np.percentile(means, [tail, 100 - tail]))


def resampled(values, rng):
    return rng.choice(values, size=(4000, len(values))).mean(axis=1)


def legacy_bootstrap(values):
    state = np.random.RandomState(5)
    return np.percentile(resampled(values, state), [2.5, 97.5])


def symmetric(mean, error):
    return mean - 1.96 * error, mean + 1.96 * error


@pytest.mark.parametrize(
    ("check", "answer"),
    [(chapter_08.check_loss, masked), (chapter_08.check_warmup, rate), (chapter_08.check_interval, bootstrap)],
)
def test_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Correct")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda p, a, m: (p - a).square().mean(), "padded steps"),
        (
            lambda p, a, m: ((p - a).square() * m[..., None]).mean(),
            r"divided by all steps: count only the entries where mask is True$",
        ),
        (lambda p, a, m: (p - a)[m].square().sum() / m.sum(), "number of action entries"),
        (lambda p, a, m: (p - a)[~m].square().mean(), "upside down"),
        (lambda p, a, m: (p - a)[m].abs().mean(), "absolute error"),
        (window_means, "windows count alike"),
        (lambda p, a, m: (p - a)[m].square(), "expected shape"),
        (lambda p, a, m: None, "returned nothing"),
    ],
)
def test_wrong_losses_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_08.check_loss(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda step, warmup, peak: peak * min(1.0, step / warmup), "first update"),
        (lambda step, warmup, peak: peak * (step + 1) / warmup, "goes on rising"),
        (lambda step, warmup, peak: peak, "constant"),
        (lambda step, warmup, peak: peak * min(1.0, (step + 2) / warmup), "update too early"),
        (lambda step, warmup, peak: peak * min(1.0, max(step, 1) / warmup), "one update late after the first"),
        (lambda step, warmup, peak: min(1.0, (step + 1) / warmup), "factor peak is missing"),
        (lambda step, warmup, peak: peak * min(1, (step + 1) // warmup), "0 until the warm-up is over"),
        (lambda step, warmup, peak: peak * max(0.0, 1 - step / warmup), "that is a decay"),
        (lambda step, warmup, peak: rate(step, warmup, peak) * min(1, warmup / (step + 1)), "changes after"),
        (lambda step, warmup, peak: peak * min(1.0, (step + 1) / warmup) ** 2, "expected"),
    ],
)
def test_wrong_rates_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_08.check_warmup(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda values, rng: tuple(np.percentile(values, [2.5, 97.5])), "single episodes"),
        (lambda values, rng: bootstrap(values, rng, tail=5), "90 %"),
        (lambda values, rng: bootstrap(values, rng)[::-1], "lower end"),
        (lambda values, rng: (values.mean(), values.mean() + 1e-9), "no spread"),
        (lambda values, rng: np.full(2, rng.choice(values, size=4000).mean()), "no spread"),
        (lambda values, rng: bootstrap(values, rng, axis=0), "wrong axis"),
        (lambda values, rng: bootstrap(values, rng, size=25), "as many values as there are"),
        (lambda values, rng: bootstrap(values, rng, tail=15.87), "one standard error"),
        (lambda values, rng: bootstrap(values, np.random.default_rng(0)), "do not seed your own"),
        (lambda values, rng: legacy_bootstrap(values), "rng was not used"),
        (lambda values, rng: np.percentile(resampled(values, rng), [0.025, 0.975]), "np.percentile wants per cent"),
        (lambda values, rng: bootstrap(values, rng, size=4000), "4,000 is how many resamples"),
        (lambda values, rng: (values.mean(), 1.96 * resampled(values, rng).std()), "not the mean and a half-width"),
        (lambda values, rng: (values.mean(), np.ptp(bootstrap(values, rng)) / 2), "not the mean and a half-width"),
        (lambda values, rng: symmetric(values.mean(), resampled(values, rng).std()), "begins below 0"),
        (lambda values, rng: symmetric(values.mean(), values.std(ddof=1) / len(values) ** 0.5), "begins below 0"),
        (lambda values, rng: bootstrap(values - 10, rng), "expected about"),
    ],
)
def test_wrong_intervals_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_08.check_interval(answer)
