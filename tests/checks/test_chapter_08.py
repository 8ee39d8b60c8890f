import numpy as np
import pytest
import torch
from scipy import stats

from dmm.checks import CheckFailed, chapter_08


def whole(parts):
    return tuple(torch.cat([part[i] for part in parts]) for i in range(3))


def loss(parts):
    """Sums and counts, part by part."""
    total, count = 0.0, 0
    for predicted, actions, mask in parts:
        error = (predicted - actions)[mask]
        total, count = total + error.square().sum(), count + error.numel()
    return total / count


def of_whole(change):
    """Wrong in what it does with the whole batch."""
    return lambda parts: change(*whole(parts))


def means(parts):
    return torch.stack([(p - a)[m].square().mean() for p, a, m in parts])


def weighted_by_windows(parts):
    rows = torch.tensor([float(len(mask)) for *_, mask in parts])
    return (means(parts) * rows).sum() / rows.sum()


def window_means(predicted, actions, mask):
    each = [(p - a)[m].square().mean() for p, a, m in zip(predicted, actions, mask, strict=True)]
    return torch.stack(each).nanmean()


def rate(step, warmup, total, peak):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0, total - step) / (total - warmup + 1)


def up(share):
    return min(1.0, share)


def bootstrap(values, rng, tail=2.5, size=None, axis=1, resamples=4000):
    means = rng.choice(values, size=(resamples, size or len(values))).mean(axis=axis)
    return tuple(np.percentile(means, [tail, 100 - tail]))


def resampled(values, rng):
    return rng.choice(values, size=(4000, len(values))).mean(axis=1)


def legacy_bootstrap(values):
    return np.percentile(resampled(values, np.random.RandomState(5)), [2.5, 97.5])


def symmetric(mean, error):
    return mean - 1.96 * error, mean + 1.96 * error


def one_by_one(values, rng):
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(4000)]
    return np.quantile(means, [0.025, 0.975])


def by_weights(values, rng):
    counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=4000)
    return np.quantile(counts @ values / len(values), [0.025, 0.975])


def by_scipy(values, rng):
    found = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng)
    return found.confidence_interval


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_08.check_loss, loss),
        (chapter_08.check_loss, of_whole(lambda p, a, m: torch.nn.functional.mse_loss(p[m], a[m]))),
        (chapter_08.check_warmup, rate),
        (chapter_08.check_interval, bootstrap),
        (chapter_08.check_interval, lambda values, rng: list(bootstrap(values, rng))),
        (chapter_08.check_interval, one_by_one),
        (chapter_08.check_interval, by_weights),
        (chapter_08.check_interval, by_scipy),
    ],
)
def test_right_answers_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("Correct")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda parts: means(parts).mean(), "^a mean of means: parts with few"),
        (lambda parts: means(parts).nanmean(), "a part without real steps is left out"),
        (weighted_by_windows, "weighted by their windows"),
        (lambda parts: loss(parts[-1:]), "only the last part"),
        (lambda parts: loss(parts[:1]), "only the first part"),
        (of_whole(lambda p, a, m: (p - a).square().mean()), "padded steps"),
        (of_whole(lambda p, a, m: ((p - a).square() * m[..., None]).mean()), "divided by all steps"),
        (of_whole(lambda p, a, m: (p - a)[m].square().sum() / m.sum()), "number of action entries"),
        (of_whole(lambda p, a, m: (p - a)[m].square().sum() / (2 * m.sum())), "not always two entries"),
        (of_whole(lambda p, a, m: (p - a)[~m].square().mean()), "upside down"),
        (of_whole(lambda p, a, m: (p - a)[m].abs().mean()), "absolute error"),
        (of_whole(window_means), "windows count alike"),
        (of_whole(lambda p, a, m: (p - a)[m].square()), "expected shape"),
        (lambda parts: None, "returned nothing"),
    ],
)
def test_wrong_losses_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_08.check_loss(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (
            lambda step, w, n, peak: peak * max(0, min(step / w, (n - step) / (n - w))),
            "first update",
        ),
        (lambda step, w, n, peak: peak * up((step + 1) / w), "stays at the peak after the warm-up: it has"),
        (lambda step, w, n, peak: peak * (step + 1) / w, "goes on rising"),
        (lambda step, w, n, peak: peak, "constant"),
        (lambda step, w, n, peak: peak * max(0, min((step + 2) / w, (n - step) / (n - w + 1))), "update too early"),
        (lambda step, w, n, peak: peak * max(0, min((step + 1) / w, (n - 1 - step) / max(1, n - w))), "last update"),
        (lambda step, w, n, peak: rate(step, w, n, 1), "factor peak is missing"),
        (lambda step, w, n, peak: rate(step, w, n, 1e-3), "always 0.001"),
        (lambda step, w, n, peak: rate(step, 10, n, peak), "always 10 updates long"),
        (lambda step, w, n, peak: rate(step, w, 30, peak), "always 30 updates long"),
        (lambda step, w, n, peak: peak * step / w if step < w else rate(step, w, n, peak), "the fall is right"),
        (
            lambda step, w, n, peak: (
                rate(step, w, n, peak)
                if step < w
                else peak * (1 + np.cos(np.pi * min(1, (step + 1 - w) / (n - w + 1)))) / 2
            ),
            "along a cosine",
        ),
        (lambda step, w, n, peak: peak * ((step + 1) / w if step < w else max(0, 1 - step / n)), "it jumps to a line"),
        (lambda step, w, n, peak: peak * min((step + 1) / w, (w / (step + 1)) ** 0.5), "root of the step"),
        (
            lambda step, w, n, peak: peak * ((step + 1) / w if step < w else max(0, 1 - (step - w) / n)),
            "counted from the end",
        ),
        (lambda step, w, n, peak: rate(min(step, n - 1), w, n, peak), "stays at its last value"),
        (lambda step, w, n, peak: rate(step, w, n, peak) if step < w else 0, "another learning rate"),
        (lambda step, w, n, peak: peak * max(0, 1 - step / n), "no warm-up"),
        (lambda step, w, n, peak: peak * min((step + 1) / w, (n - step) / (n - w + 1)), "negative after the end"),
        (lambda step, w, n, peak: rate(step, w, n, peak) ** 2, "another learning rate"),
        (lambda step, w, n, peak: None, "returned nothing"),
    ],
)
def test_wrong_rates_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_08.check_warmup(answer)


def halves(values, rng):
    means = [rng.choice(values, len(values) // 2, replace=False).mean() for _ in range(4000)]
    return np.quantile(means, [0.025, 0.975])


def clipped(values, rng):
    low, high = symmetric(values.mean(), resampled(values, rng).std())
    return max(0.0, low), max(0.0, high)


def extremes(values, rng):
    return resampled(values, rng).min(), resampled(values, rng).max()


def extremes_one_by_one(values, rng):
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(4000)]
    return [min(means), max(means)]


def student(values, rng):
    return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))


def mirrored(values, rng):
    low, high = bootstrap(values, rng)
    return 2 * values.mean() - high, 2 * values.mean() - low


def few(values, rng):
    return np.quantile(rng.choice(values, size=(len(values), len(values))).mean(axis=1), [0.025, 0.975])


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda values, rng: tuple(np.percentile(values, [2.5, 97.5])), "single episodes"),
        (lambda values, rng: bootstrap(values, rng, tail=5), "90 %"),
        (lambda values, rng: bootstrap(values, rng)[::-1], "lower end"),
        (lambda values, rng: (values.mean(), values.mean()), "no spread"),
        (lambda values, rng: bootstrap(values, rng, axis=0), "by a wrong axis"),
        (lambda values, rng: bootstrap(values, rng, size=25), "has 25 values"),
        (lambda values, rng: bootstrap(values, rng, size=len(values) // 2), "half as many values"),
        (halves, "without replacement"),
        (lambda values, rng: bootstrap(values, rng, tail=15.87), "one standard error"),
        (lambda values, rng: bootstrap(values, np.random.default_rng(0)), "do not seed your own"),
        (lambda values, rng: legacy_bootstrap(values), "rng was not used"),
        (lambda values, rng: np.percentile(resampled(values, np.random), [2.5, 97.5]), "the same seed gave other ends"),
        (lambda values, rng: np.percentile(resampled(values, rng), [0.025, 0.975]), "np.percentile wants per cent"),
        (lambda values, rng: (values.mean(), np.ptp(bootstrap(values, rng)) / 2), "not the mean and a half-width"),
        (lambda values, rng: symmetric(values.mean(), resampled(values, rng).std()), "deviations of the means"),
        (clipped, "cut off at 0"),
        (lambda values, rng: symmetric(values.mean(), values.std(ddof=1) / len(values) ** 0.5), "errors of the values"),
        (extremes, "the smallest and the largest mean"),
        (extremes_one_by_one, "the smallest and the largest mean"),
        (few, "too few resamples"),
        (lambda values, rng: bootstrap(values, rng, resamples=100), "too few resamples"),
        (
            lambda values, rng: bootstrap(values, rng, resamples=300),
            "too few resamples|differ more from call to call|expected about",
        ),
        (lambda values, rng: bootstrap(values, rng, size=1), "a single value"),
        (lambda values, rng: np.percentile(resampled(values, rng), [5, 100]), "nothing above"),
        (lambda values, rng: np.percentile(resampled(values, rng), [0, 95]), "on one side only"),
        (lambda values, rng: symmetric(values.mean(), values.std() / len(values) ** 0.5), "by n and not n - 1"),
        (lambda values, rng: symmetric(values.mean(), values.std()), "deviations of single episodes"),
        (student, "Student's interval"),
        (mirrored, "the basic bootstrap"),
        (lambda values, rng: bootstrap(values - 10, rng), "expected about"),
    ],
)
def test_wrong_intervals_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_08.check_interval(answer)
