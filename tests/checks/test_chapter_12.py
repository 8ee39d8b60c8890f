import math

import numpy as np
import pytest
import torch
from scipy import stats

from dmm.checks import CheckFailed, chapter_12


def paired(changed, base, quantile=0.975, ddof=1):
    apart = [changed[seed] - base[seed] for seed in sorted(changed.keys() & base.keys())]
    n, mean = len(apart), float(np.mean(apart))
    half = stats.t.ppf(quantile, n - 1) * np.std(apart, ddof=ddof) / n**0.5
    return mean, mean - half, mean + half


def by_scipy(changed, base):
    common = [seed for seed in base if seed in changed]
    a, b = ([scores[seed] for seed in common] for scores in (changed, base))
    test = stats.ttest_rel(a, b).confidence_interval()
    return torch.tensor([np.mean(a) - np.mean(b), test.low, test.high])


def unpaired(changed, base, common=True, equal=False):
    a = [score for seed, score in changed.items() if seed in base or not common]
    b = [score for seed, score in base.items() if seed in changed or not common]
    ends = stats.ttest_ind(a, b, equal_var=equal).confidence_interval()
    return np.mean(a) - np.mean(b), ends.low, ends.high


def with_factor(factor):
    def answer(changed, base):
        common = changed.keys() & base.keys()
        apart = [changed[seed] - base[seed] for seed in common]
        half = factor(len(apart)) * np.std(apart, ddof=1)
        return np.mean(apart), np.mean(apart) - half, np.mean(apart) + half

    return answer


def in_place(changed, base):
    for seed in [seed for seed in changed if seed not in base]:
        del changed[seed]
    return paired(changed, base)


def by_position(changed, base):
    pairs = list(zip(changed.values(), base.values(), strict=False))
    return paired({i: a for i, (a, _) in enumerate(pairs)}, {i: b for i, (_, b) in enumerate(pairs)})


def by_sorted_position(changed, base):
    first, second = (dict(sorted(scores.items())) for scores in (changed, base))
    return by_position(first, second)


def filled(changed, base):
    seeds = {*changed, *base}
    return paired({s: changed.get(s, 0) for s in seeds}, {s: base.get(s, 0) for s in seeds})


def of_all_means(changed, base):
    right = paired(changed, base)
    mean = np.mean(list(changed.values())) - np.mean(list(base.values()))
    return mean, mean - (right[0] - right[1]), mean + (right[0] - right[1])


def seen(layers, window, context):
    """By walking: which tokens reach the newest state token through so many layers."""
    reached = {3 * context - 2}
    for _ in range(layers):
        reached = {token - lag for token in reached for lag in range(window) if token >= lag}
    return [sum(token % 3 == kind for token in reached) for kind in range(3)]


def seen_by_division(layers, window, context):
    back = min(layers * (window - 1), 3 * context - 2)
    return np.array([(back + 2) // 3, back // 3 + 1, (back + 1) // 3])


def from_token(last, back):
    def answer(layers, window, context):
        newest = last(context)
        tokens = np.arange(max(0, newest - back(layers, window)), newest + 1) % 3
        return [(tokens == kind).sum() for kind in range(3)]

    return answer


def state(context):
    return 3 * context - 2


def endless(layers, window, context):
    back = layers * (window - 1)
    return [(back + 2) // 3, back // 3 + 1, (back + 1) // 3]


def without_itself(layers, window, context):
    found = seen(layers, window, context)
    return found[0], found[1] - 1, found[2]


def in_steps(layers, window, context):
    steps = min(context, 1 + layers * (window - 1))
    return steps, steps, steps - 1


def seeds_for(difference, deviation, power, twice=2, quantile=0.975, rounded=math.ceil):
    z = stats.norm.ppf(quantile) + stats.norm.ppf(power)
    return rounded(twice * z**2 * deviation**2 / difference**2)


def by_search(difference, deviation, power):
    n = 1
    while stats.norm.cdf(abs(difference) / (deviation * (2 / n) ** 0.5) - stats.norm.ppf(0.975)) < power:
        n += 1
    return np.int64(n)


def of_seeds(**changes):
    return lambda *given: seeds_for(*given, **changes)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_12.check_paired_difference, paired),
        (chapter_12.check_paired_difference, by_scipy),
        (chapter_12.check_paired_difference, lambda *given: list(paired(*given))),
        (chapter_12.check_tokens_seen, seen),
        (chapter_12.check_tokens_seen, seen_by_division),
        (chapter_12.check_tokens_seen, lambda *given: torch.tensor(seen(*given))),
        (chapter_12.check_seeds_for, seeds_for),
        (chapter_12.check_seeds_for, by_search),
        (chapter_12.check_seeds_for, lambda *given: float(seeds_for(*given))),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda changed, base: paired(base, changed), "^base minus changed"),
        (by_position, "^seeds are paired by their place"),
        (by_sorted_position, "mean over the common seeds is another"),
        (filled, "^a seed that one side lacks counts as zero"),
        (of_all_means, "^seeds that only one side has are in the mean"),
        (unpaired, "^that is the interval of two separate groups: take"),
        (lambda *given: unpaired(*given, equal=True), "^that is the interval of two separate groups with one spread"),
        (lambda *given: unpaired(*given, common=False), "^two separate groups of all seeds"),
        (with_factor(lambda n: 1.96 / n**0.5), "^1.96 is for many seeds"),
        (with_factor(lambda n: stats.norm.ppf(0.975) / n**0.5), "^a normal quantile"),
        (with_factor(lambda n: stats.t.ppf(0.975, n) / n**0.5), "^Student's t has n - 1"),
        (with_factor(lambda n: stats.t.ppf(0.975, n - 1)), "^that is how far one seed scatters"),
        (with_factor(lambda n: stats.t.ppf(0.975, n - 1) / n), "^the mean is right, the interval is not"),
        (lambda *given: paired(*given, ddof=0), "^the deviation has n in place"),
        (lambda *given: paired(*given, quantile=0.95), "^0.95 leaves 5 % on either side"),
        (lambda *given: np.array(paired(*given))[[0, 2, 1]], "^the ends are the other way"),
        (lambda *given: np.array(paired(*given))[[1, 0, 2]], "^the order is mean, low, high"),
        (lambda *given: paired(*given)[0], "expected shape"),
        (in_place, "changed its input"),
        (lambda *given: None, "returned nothing"),
        (lambda changed, base: paired(changed, {s: base[s] for s in changed}), "raised KeyError"),
    ],
)
def test_wrong_differences_are_told_what_is_wrong(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_12.check_paired_difference(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (from_token(state, lambda n, w: n * w - 1), "^every layer adds window - 1"),
        (from_token(state, lambda n, w: w**n - 1), "^layers add up"),
        (from_token(state, lambda n, w: w - 1), "^that is one layer"),
        (from_token(lambda k: 3 * k - 1, lambda n, w: n * (w - 1)), "the action token behind it is not seen"),
        (from_token(lambda k: 3 * k - 3, lambda n, w: n * (w - 1)), "not from the return-to-go"),
        (without_itself, "^the newest state token itself"),
        (endless, "^nothing is seen before the context begins"),
        (in_steps, "^a window counts tokens"),
        (lambda *given: np.array(seen(*given))[[1, 0, 2]], "^the order is returns-to-go"),
        (lambda *given: [seen(*given)[1]] * 3, "^every modality gets the states' number"),
        (lambda n, w, k: [k, k, k - 1], "another number of tokens is seen"),
        (from_token(state, lambda n, w: n * w), "another number of tokens is seen"),
        (lambda *given: sum(seen(*given)), "expected shape"),
        (lambda n, w, k: seen(n, w, k)[5], "raised IndexError"),
    ],
)
def test_wrong_reaches_are_told_what_is_wrong(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_12.check_tokens_seen(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (of_seeds(twice=1), "^both entries scatter"),
        (of_seeds(twice=4), "^that is the total over both"),
        (lambda d, s, p: seeds_for(d, s, 0.5), "^that finds it half of the time"),
        (of_seeds(quantile=0.95), "^found is more than z of 0.975"),
        (of_seeds(rounded=math.floor), "^rounded down"),
        (of_seeds(rounded=int), "^rounded down"),
        (of_seeds(rounded=round), "^rounded to the nearest"),
        (of_seeds(rounded=float), "^a number of seeds is a whole number"),
        (of_seeds(rounded=lambda n: round(n, 1)), "^another number of seeds"),
        (lambda d, s, p: seeds_for(d, s, 1 - p), "^the quantile of 1 - power"),
        (lambda d, s, p: seeds_for(s, d, p), "^deviation and difference have changed places"),
        (
            lambda d, s, p: math.ceil(2 * (stats.norm.ppf(0.975) + stats.norm.ppf(p)) * s / abs(d)),
            "^the number goes with the square",
        ),
        (lambda d, s, p: math.ceil(2 * (p * s / d) ** 2), "^another number of seeds"),
        (lambda d, s, p: [seeds_for(d, s, p)] * 2, "expected shape"),
    ],
)
def test_wrong_numbers_of_seeds_are_told_what_is_wrong(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_12.check_seeds_for(answer)
