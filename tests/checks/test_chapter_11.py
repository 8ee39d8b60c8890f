import numpy as np
import pytest
from scipy import stats

from dmm.checks import CheckFailed, chapter_11


def ranks(scores):
    found = []
    for row in scores:
        places = [
            1 + np.sum(scores[:, t] > row[t]) + (np.sum(scores[:, t] == row[t]) - 1) / 2
            for t in range(len(row))
            if not np.isnan(row[t])
        ]
        found.append(sum(places) / len(places))
    return found


def by_scipy(scores, method="average", fill=None):
    if fill is not None:
        scores = np.where(np.isnan(scores), fill, scores)
    ranked = stats.rankdata(-scores, method=method, axis=0, nan_policy="omit")
    return np.nanmean(ranked, axis=1)


def split_score(arms, half):
    found = []
    for here in (half, ~half):
        choice = [np.mean(arm[here]) for arm in arms]
        tied = [i for i, mean in enumerate(choice) if mean == max(choice)]
        found.append(np.mean([np.mean(arms[i][~here]) for i in tied]))
    return sum(found) / 2


def chosen(score, both=True, combine=np.mean, of_ties=np.mean):
    """A split whose winner is scored by `score(arms, here)`."""

    def changed(arms, half):
        found = []
        for here in (half, ~half) if both else (half,):
            choice = arms[:, here].mean(axis=1)
            found.append(of_ties(score(arms, here)[choice == choice.max()]))
        return combine(found)

    return changed


def other_half(arms, here):
    return arms[:, ~here].mean(axis=1)


def weighted(arms, half):
    one, two = chosen(other_half, combine=list)(arms, half)
    return (one * (~half).sum() + two * half.sum()) / half.size


def improvement(ours, theirs):
    shares = [np.mean([(a > b) + (a == b) / 2 for a in x for b in y]) for x, y in zip(ours, theirs, strict=True)]
    return float(np.mean(shares))


def by_mann_whitney(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return np.mean([stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in pairs])


def per_task(share):
    return lambda ours, theirs: np.mean([share(x, y) for x, y in zip(ours, theirs, strict=True)])


def pooled(ours, theirs):
    return improvement([np.concatenate(ours)], [np.concatenate(theirs)])


def pooled_pairs(ours, theirs):
    won = [[(a > b) + (a == b) / 2 for a in x for b in y] for x, y in zip(ours, theirs, strict=True)]
    return np.mean(np.concatenate(won))


def by_number(x, y):
    n = min(len(x), len(y))
    return np.mean((x[:n] > y[:n]) + 0.5 * (x[:n] == y[:n]))


def in_place(scores):
    scores[np.isnan(scores)] = 0
    return ranks(scores)


def sorting(ours, theirs):
    found = improvement(ours, theirs)
    ours[0].sort()
    ours[0] += 1
    return found


def clearing(arms, half):
    found = split_score(arms, half)
    arms[:, half] = 0
    return found


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_11.check_ranks, ranks),
        (chapter_11.check_ranks, by_scipy),
        (chapter_11.check_ranks, lambda scores: tuple(ranks(scores.tolist() and scores))),
        (chapter_11.check_split_score, split_score),
        (chapter_11.check_split_score, chosen(other_half)),
        (chapter_11.check_split_score, lambda arms, half: np.array(split_score(arms, half))),
        (chapter_11.check_improvement, improvement),
        (chapter_11.check_improvement, by_mann_whitney),
        (chapter_11.check_improvement, per_task(lambda x, y: (np.sign(x[:, None] - y).mean() + 1) / 2)),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda scores: by_scipy(scores, "min"), "^ties have the best of their places"),
        (lambda scores: by_scipy(scores, "max"), "^ties have the worst of their places"),
        (lambda scores: by_scipy(scores, "ordinal"), "^ties are broken by the order"),
        (lambda scores: ranks(-scores), "^the order is reversed"),
        (lambda scores: np.array(ranks(scores)) - 1, "^ranks are counted from 0"),
        (lambda scores: by_scipy(scores, fill=-np.inf), "^a missing result has the last place"),
        (lambda scores: by_scipy(scores, fill=0), "^a missing result counts as a score of 0"),
        (lambda scores: ranks(scores) * np.mean(~np.isnan(scores), axis=1), "^the sum is divided by all tasks"),
        (lambda scores: by_scipy(np.nanmean(scores, axis=1)[:, None]), "^the mean scores are ranked"),
        (lambda scores: np.nanmean(scores, axis=1), "^these are mean scores"),
        (
            lambda scores: np.nanmedian(stats.rankdata(-scores, axis=0, nan_policy="omit"), axis=1),
            "^these are medians",
        ),
        (in_place, "changed its input scores"),
        (lambda scores: by_scipy(scores.T), "expected shape"),
        (lambda scores: scores.argsort(axis=0).mean(axis=1), "the average ranks of 5 models on 7 tasks, 3 cells"),
        (lambda scores: np.array(ranks(scores)) + (len(scores) == 4), "4 models on 3 tasks"),
        (lambda scores: scores.mean(axis=1), "contains NaN"),
        (lambda scores: scores[9], "raised IndexError"),
        (lambda scores: None, "returned nothing"),
    ],
)
def test_wrong_ranks_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_11.check_ranks(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (chosen(lambda arms, here: arms[:, here].mean(axis=1)), "^the winner is scored on the half that chose it"),
        (chosen(lambda arms, here: arms.mean(axis=1)), "^the winner is scored on all episodes"),
        (lambda arms, half: arms.mean(axis=1).max(), "^that is the best of all"),
        (
            lambda arms, half: np.mean([arms[arms.mean(axis=1).argmax(), part].mean() for part in (half, ~half)]),
            "^chosen on all episodes",
        ),
        (chosen(other_half, both=False), "^chosen on the first half alone"),
        (lambda arms, half: chosen(other_half, both=False)(arms, ~half), "^chosen on the second half alone"),
        (chosen(other_half, combine=max), "^the largest of the two"),
        (chosen(other_half, combine=sum), "^the two numbers are added"),
        (lambda arms, half: -split_score(-arms, half), "^the smallest mean is chosen"),
        (chosen(other_half, of_ties=lambda found: found[0]), "the first is taken"),
        (chosen(other_half, of_ties=np.max), "that is a choice, too"),
        (weighted, "^the two numbers are weighted"),
        (lambda arms, half: arms.mean(), "^that is the mean of all arms"),
        (clearing, "changed its input"),
        (lambda arms, half: split_score(arms, half) + (len(arms) == 4), "4 arms with 11 episodes, 4 of them"),
        (lambda arms, half: np.median(arms), "5 arms with 9 episodes, 5 of them"),
        (lambda arms, half: arms.mean(axis=1), "expected shape"),
        (lambda arms, half: arms[half], "raised IndexError"),
        (lambda arms, half: None, "returned nothing"),
    ],
)
def test_wrong_splits_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_11.check_split_score(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (per_task(lambda x, y: np.mean(x[:, None] > y)), "^ties do not count"),
        (per_task(lambda x, y: np.mean(x[:, None] >= y)), "^ties count as wins"),
        (per_task(by_number), "^runs of the same number"),
        (pooled_pairs, "^all pairs of all tasks are pooled"),
        (pooled, "^runs of different tasks are compared"),
        (per_task(lambda x, y: (np.sign(x.mean() - y.mean()) + 1) / 2), "^means are compared"),
        (per_task(lambda x, y: (np.sign(x - y.mean()).mean() + 1) / 2), "^each run is compared with the mean"),
        (lambda ours, theirs: improvement(theirs, ours), "^ours and theirs are swapped"),
        (per_task(lambda x, y: np.sign(x[:, None] - y).mean()), "^that is wins less losses"),
        (lambda ours, theirs: 100 * improvement(ours, theirs), "^that is a percentage"),
        (per_task(lambda x, y: x.mean() - y.mean()), "^that is by how much"),
        (sorting, "changed its input"),
        (lambda ours, theirs: improvement(ours, theirs) + (len(ours) == 2), r"with \[3, 1\] runs of ours"),
        (per_task(lambda x, y: stats.mannwhitneyu(x, y).pvalue), r"with \[5, 2, 3\] runs of ours and \[4, 1, 2\]"),
        (lambda ours, theirs: [improvement(ours, theirs)], "expected shape"),
        (lambda ours, theirs: np.mean(ours[0] > theirs[0]), "raised ValueError"),
        (lambda ours, theirs: None, "returned nothing"),
    ],
)
def test_wrong_improvements_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_11.check_improvement(answer)
    assert "\n" not in str(caught.value)


def test_the_checks_have_the_answers_to_worked_examples():
    scores = np.array([[2.0, 9.0, 4.0, 4.0], [2.0, 8.0, 4.0, 5.0], [1.0, 8.0, 4.0, np.nan]])
    # by task: 1.5, 1.5, 3; 1, 2.5, 2.5; 2, 2, 2; 2, 1, none
    assert chapter_11.ranks(scores).tolist() == [1.625, 1.75, 2.5]
    assert chapter_11.split_score(np.array([[2.0, 2, 0, 1], [1, 3, 5, 1], [0, 2, 1, 1]]), np.arange(4) < 2) == 1.875
    assert chapter_11.improvement([np.array([1.0, 2.0])], [np.array([2.0, 0.0, 3.0])]) == 2.5 / 6
