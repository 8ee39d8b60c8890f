import itertools

import numpy as np
import pytest
import torch

from dmm.checks import CheckFailed, chapter_13
from dmm.data.sub_goals import sub_goals


def goal_states(rewards, interval, *, shift=0, last=False, reach=None, score=None, capped=True, start=None):
    """By running sums; each keyword is a mistake."""
    steps, found = len(rewards), []
    for i in range(0, steps, interval):
        begin = i if start is None else start
        best, goal = None, begin
        for j in range(begin + 1, steps + 1 - shift):
            if reach is not None and j > begin + reach:
                break
            paid = rewards[begin + shift : j + shift]
            value = sum(paid) / (j - begin) if score is None else score(rewards, begin, j)
            if best is None or value > best + 1e-12 or (last and value > best - 1e-12):
                best, goal = value, j
        found.append(min(goal, steps - 1) if capped else goal)
    return found


def by_package(rewards, interval):
    return torch.from_numpy(sub_goals(np.array(rewards), np.array([len(rewards)]), interval)[1])


def by_convolution(rewards, interval):
    sums = np.concatenate([[0.0], np.cumsum(rewards)])
    ends = np.arange(1, len(rewards) + 1)
    found = []
    for i in range(0, len(rewards), interval):
        means = (sums[ends[ends > i]] - sums[i]) / (ends[ends > i] - i)
        found.append(min(i + 1 + int(np.argmax(np.round(means, 9))), len(rewards) - 1))
    return np.array(found)


def in_place(rewards, interval):
    made = goal_states(rewards, interval)
    rewards.append(0.0)
    return made


def with_goals(**changes):
    return lambda rewards, interval: goal_states(rewards, interval, **changes)


def planner_tokens(episodes, interval, **changes):
    """With running sums; the changes are mistakes."""
    rows, largest = [], max(map(sum, episodes))
    for number, rewards in enumerate(episodes):
        left = changes.get("begin", lambda e, n: largest)(episodes, number)
        for first in range(0, len(rewards), interval):
            group = rewards[first : first + interval]
            over = first + interval >= len(rewards)
            end = changes.get("end", lambda over, first, last: over)(over, first == 0, number == len(episodes) - 1)
            after = left - sum(group)
            rows.append([after if changes.get("late") else left, changes.get("paid", sum)(group), int(end)])
            left = left if changes.get("held") else after
    return rows


def by_arrays(episodes, interval):
    lengths = [len(rewards) for rewards in episodes]
    starts = np.concatenate([np.arange(0, n, interval) for n in lengths])
    which = np.repeat(np.arange(len(episodes)), [-(-n // interval) for n in lengths])
    largest = max(np.sum(rewards) for rewards in episodes)
    before = [np.sum(episodes[e][:i]) for e, i in zip(which, starts, strict=True)]
    paid = [np.sum(episodes[e][i : i + interval]) for e, i in zip(which, starts, strict=True)]
    ends = np.append(which[1:] != which[:-1], True)
    return torch.from_numpy(np.stack([largest - np.array(before), paid, ends], axis=1))


def with_tokens(**changes):
    return lambda episodes, interval: planner_tokens(episodes, interval, **changes)


def joined(episodes, interval):
    """Groups across the ends of episodes, in as many rows as are wanted."""
    rewards, largest = list(itertools.chain(*episodes)), max(map(sum, episodes))
    count = sum(-(-len(each) // interval) for each in episodes)
    rows = planner_tokens([rewards], interval, begin=lambda e, n: largest)
    return rows[:count] + planner_tokens(episodes, interval)[len(rows) :]


def emptied(episodes, interval):
    made = planner_tokens(episodes, interval)
    episodes.clear()
    return made


def pairs(steps, interval, **changes):
    """By listing every token that every query sees."""
    more = changes.get("more", 0)  # tokens of the newest step that are not known yet
    flat = [3 * t - 2 + more for t in range(1, steps + 1)]
    groups = [range(i, min(i + interval, steps)) for i in range(0, steps, interval)]
    planner, worker = 4 * len(groups) - 2 + more, [4 * len(group) - 2 + more for group in groups]
    every = changes.get("every", lambda n: sum(range(1, n + 1)))
    return sum(map(every, flat)), every(flat[-1]), every(planner) + sum(map(every, worker))


def by_sums(steps, interval):
    last = 3 * steps - 2
    anew = sum((3 * t - 2) * (3 * t - 1) // 2 for t in range(1, steps + 1))
    count = -(-steps // interval)
    rest = steps - (count - 1) * interval
    within = (count - 1) * (2 * interval - 1) * (4 * interval - 1) + (2 * rest - 1) * (4 * rest - 1)
    return [anew, last * (last + 1) // 2, (2 * count - 1) * (4 * count - 1) + within]


def third(change):
    def answer(steps, interval):
        count = -(-steps // interval)
        rest = steps - (count - 1) * interval
        sizes = [interval] * (count - 1) + [rest]
        return (*pairs(steps, interval)[:2], change(steps, count, sizes))

    return answer


def half(n):
    return n * (n + 1) // 2


def within(sizes):
    return sum(half(4 * m - 2) for m in sizes)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_13.check_goal_states, goal_states),
        (chapter_13.check_goal_states, by_package),
        (chapter_13.check_goal_states, by_convolution),
        (chapter_13.check_planner_tokens, planner_tokens),
        (chapter_13.check_planner_tokens, by_arrays),
        (chapter_13.check_planner_tokens, lambda *given: np.array(planner_tokens(*given))),
        (chapter_13.check_attention_pairs, pairs),
        (chapter_13.check_attention_pairs, by_sums),
        (chapter_13.check_attention_pairs, lambda *given: torch.tensor(pairs(*given))),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (with_goals(shift=1), "is what the action in state k paid"),
        (with_goals(last=True), "^of several states with the largest value"),
        (with_goals(score=lambda r, i, j: sum(r[i:j])), "^that is the largest sum"),
        (with_goals(score=lambda r, i, j: sum(r[i:j]) / j), "^divide by the steps from i on"),
        (with_goals(capped=False), "^nobody saw the state behind the last action"),
        (
            lambda r, c: [min(j, len(r) - 1) - i for i, j in zip(range(0, len(r), c), goal_states(r, c), strict=True)],
            "^asked for is",
        ),
        (lambda r, c: goal_states(r, c, reach=c), "^a sub-goal may lie far behind its group"),
        (with_goals(score=lambda r, i, j: r[j - 1]), "^that is the state behind the largest single reward"),
        (lambda r, c: [j - 1 for j in goal_states(r, c, capped=False)], "^the state that an action is taken in"),
        (with_goals(start=0), "^every group has a sub-goal of its own"),
        (with_goals(score=lambda r, i, j: -sum(r[i:j]) / (j - i)), "the sub-goal is state"),
        (with_goals(score=lambda r, i, j: sum(r[i:j]) / (j - i + 1)), "the sub-goal is state"),
        (lambda r, c: goal_states(r, c)[:-1], "expected shape"),
        (lambda r, c: goal_states(r, 1), "expected shape"),
        (in_place, "changed its input"),
        (lambda r, c: None, "returned nothing"),
        (lambda r, c: [r[i + 100] for i in range(0, len(r), c)], "raised IndexError"),
    ],
)
def test_wrong_sub_goals_are_told_what_is_wrong(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_13.check_goal_states(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (with_tokens(begin=lambda e, n: sum(e[n])), "^every episode begins with its own return"),
        (with_tokens(begin=lambda e, n: sum(e[-1])), "^that begins with the last episode's return"),
        (with_tokens(late=True), "^R is what is left at the group's first step"),
        (with_tokens(held=True), "^R counts down within an episode"),
        (with_tokens(begin=lambda e, n: max(map(sum, e)) - sum(map(sum, e[:n]))), "^R begins anew with each episode"),
        (joined, "^groups end where episodes do"),
        (with_tokens(paid=lambda group: sum(group) / len(group)), "^r is the sum over the group, not the mean"),
        (with_tokens(paid=lambda group: group[-1]), "^r is the sum over the group, not its last"),
        (with_tokens(end=lambda over, first, last: over and last), "not of the context alone"),
        (with_tokens(end=lambda over, first, last: first), "^d marks the group with which an episode ends"),
        (with_tokens(end=lambda over, first, last: True), "^d is 0 for all groups but"),
        (lambda *given: np.array(planner_tokens(*given))[:, [1, 0, 2]], "^the columns are R, r, d"),
        (with_tokens(end=lambda over, first, last: False), "^not right yet: d"),
        (with_tokens(paid=max), "^not right yet: r"),
        (lambda *given: np.array(planner_tokens(*given)).T, "expected shape"),
        (lambda episodes, c: planner_tokens(episodes[-1:], c), "expected shape"),
        (emptied, "changed its input"),
        (lambda episodes, c: ..., "returned nothing"),
    ],
)
def test_wrong_tokens_are_told_what_is_wrong(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_13.check_planner_tokens(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *given: pairs(*given, every=lambda n: n * (n - 1) // 2), "^a token attends to itself"),
        (lambda *given: pairs(*given, every=lambda n: n * n), "^attention is causal here"),
        (lambda *given: pairs(*given, more=2), "^the newest step has no action"),
        (lambda s, c: [pairs(s, c)[i] for i in (1, 1, 2)], "^computed anew means at every step"),
        (lambda s, c: [pairs(s, c)[i] for i in (0, 0, 2)], "^with a cache each token is computed once"),
        (
            lambda s, c: (sum(half(t) for t in range(1, s + 1)), half(s), pairs(s, c)[2]),
            "^a flat transformer has three tokens",
        ),
        (third(lambda s, count, sizes: half(4 * count - 2)), "^the worker's pairs are missing"),
        (third(lambda s, count, sizes: within(sizes)), "^the planner's pairs are missing"),
        (third(lambda s, count, sizes: half(4 * count - 2) + half(4 * s - 2)), "^the worker begins anew"),
        (third(lambda s, count, sizes: half(4 * s - 2) + within(sizes)), "^the planner has four tokens for a group"),
        (
            third(lambda s, count, sizes: sum(half(4 * g - 2) for g in range(1, count + 1)) + within(sizes)),
            "^the planner has a cache, too",
        ),
        (
            lambda s, c: (*pairs(s, c)[:2], half(4 * -(-s // c) - 2) + within([c] * -(-s // c))),
            "^the last group may be short",
        ),
        (third(lambda s, count, sizes: half(4 * count - 2) + 2 * within(sizes)), "^not right yet: a planner"),
        (lambda s, c: [sum(pairs(s, c))], "expected shape"),
        (lambda s, c: pairs(s, 0), "raised ValueError"),
    ],
)
def test_wrong_pairs_are_told_what_is_wrong(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_13.check_attention_pairs(answer)


def test_what_the_page_says_of_four_thousand_steps():
    anew, cached, groups = pairs(4000, 20)
    assert (round(anew / groups), round(cached / groups)) == (102_674, 77)
