from __future__ import annotations

import heapq
import math

import numpy as np
import pytest

from dmm.checks import CheckFailed, chapter_17


def starts(hours, workers):
    free, found = [0.0] * workers, []
    for each in hours:
        begin = heapq.heappop(free)
        found.append(begin)
        heapq.heappush(free, begin + each)
    return found


def by_events(hours, workers):
    """The other road: time goes from one end of a job to the next."""
    waiting, ends, found, now = list(hours), [], [], 0.0
    while waiting:
        while len(ends) < workers and waiting:
            found.append(now)
            ends.append(now + float(waiting.pop(0)))
        now = min(ends)
        ends = [end for end in ends if end > now]
    return np.array(found)


def dealt(hours, workers):
    return [sum(hours[i % workers : i : workers]) for i in range(len(hours))]


def in_parts(hours, workers):
    share = math.ceil(len(hours) / workers)
    return [sum(hours[i - i % share : i]) for i in range(len(hours))]


def in_rounds(hours, workers):
    return [sum(max(hours[j : j + workers]) for j in range(0, i - i % workers, workers)) for i in range(len(hours))]


def sorted_by(key):
    def answer(hours, workers):
        order = sorted(range(len(hours)), key=lambda i: key(hours[i]))
        begins = starts([hours[i] for i in order], workers)
        return [begins[order.index(i)] for i in range(len(hours))]

    return answer


def emptying(hours, workers):
    found = starts(hours, workers)
    hours[:] = 0
    return found


def finish(work, every, kills):
    began, left = 0.0, work
    for kill in kills:
        if began + left > kill:
            left -= every * ((kill - began) // every)
            began = kill
    return began + left


def by_stretches(work, every, kills):
    """The other road: stretch by stretch on the clock."""
    clock, done, waiting = 0.0, 0.0, [float(kill) for kill in kills]
    while done < work:
        stretch = min(every, work - done)
        if waiting and waiting[0] < clock + stretch:
            clock = waiting.pop(0)
        else:
            clock, done = clock + stretch, done + stretch
    return np.float64(clock)


def killed(keep):
    def answer(work, every, kills):
        began, kept = 0.0, 0.0
        for kill in kills:
            if began + work - kept > kill:
                kept, began = keep(kept, kill - began, every), kill
        return began + work - kept

    return answer


def early(work, every, kills):
    return [kill for kill in kills if kill < finish(work, every, kills)]


def by_the_clock(work, every, kills):
    began, kept = 0.0, 0.0
    for kill in early(work, every, kills):
        kept += max(0.0, kill // every * every - began)
        began = kill
    return began + work - kept


def to_the_last_kill(work, every, kills):
    began, left = 0.0, work
    for kill in kills:
        left -= every * ((kill - began) // every)
        began = kill
    return began + left


def sorting_in_place(work, every, kills):
    kills[:] = 0
    return work


def best_split(budget, train, episode, between, within):
    choices = []
    for seeds in range(1, int(budget / (train + episode)) + 1):
        episodes = int((budget / seeds - train) / episode + 1e-9)
        choices.append((between**2 / seeds + within**2 / (seeds * episodes), seeds, episodes))
    return list(min(choices)[1:])


def by_every_pair(budget, train, episode, between, within):
    """The other road: all pairs that there is money for."""
    seeds = np.arange(1, int(budget / train) + 1)[:, None]
    episodes = np.arange(1, int((budget - train) / episode + 1e-9) + 1)
    variance = between**2 / seeds + within**2 / (seeds * episodes)
    variance[seeds * (train + episodes * episode) > budget + 1e-6] = np.inf
    s, e = np.unravel_index(variance.argmin(), variance.shape)
    return np.array([s + 1, e + 1])


def least(variance):
    def answer(budget, train, episode, between, within):
        choices = []
        for seeds in range(1, int(budget / (train + episode)) + 1):
            episodes = int((budget / seeds - train) / episode + 1e-9)
            choices.append((variance(seeds, episodes, between, within), seeds, episodes))
        return min(choices)[1:]

    return answer


def in_closed_form(budget, train, episode, between, within):
    episodes = max(1, round(math.sqrt(train / episode) * within / between))
    return int(budget / (train + episodes * episode) + 1e-9), episodes


def over_budget(*case):
    seeds, episodes = best_split(*case)
    return seeds + 1, episodes


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_17.check_starts, starts),
        (chapter_17.check_starts, by_events),
        (chapter_17.check_finish, finish),
        (chapter_17.check_finish, by_stretches),
        (chapter_17.check_best_split, best_split),
        (chapter_17.check_best_split, by_every_pair),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (dealt, "^jobs are dealt out in turn"),
        (in_parts, "an equal part of the list"),
        (in_rounds, "jobs go in rounds"),
        (sorted_by(lambda hours: -hours), "^longest first"),
        (sorted_by(lambda hours: hours), "^shortest first"),
        (lambda hours, workers: np.add(starts(hours, workers), hours), "times at which jobs end"),
        (lambda hours, workers: np.cumsum(hours) - hours, "one after the other"),
        (lambda hours, workers: [0.0] * len(hours), "all jobs begin at once"),
        (emptying, "changed its input hours"),
        (lambda hours, workers: np.add(starts(hours, workers), workers == 5), "^17 jobs on 5 workers"),
        (lambda hours, workers: starts(hours, workers + 1), "^7 jobs on 3 workers"),
        (lambda hours, workers: max(np.add(starts(hours, workers), hours)), "expected shape"),
        (lambda hours, workers: hours[99], "raised IndexError"),
        (lambda hours, workers: None, "returned nothing"),
    ],
)
def test_wrong_starts_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_17.check_starts(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (killed(lambda kept, done, every: 0.0), "^the job begins anew"),
        (lambda work, every, kills: work, "^no work is lost"),
        (lambda work, every, kills: work + every / 2 * len(early(work, every, kills)), "half an interval on average"),
        (lambda work, every, kills: work + every * len(early(work, every, kills)), "a whole interval at most"),
        (killed(lambda kept, done, every: done // every * every), "before the last kill are forgotten"),
        (killed(lambda kept, done, every: kept + every * math.ceil(done / every)), "was not reached: round down"),
        (by_the_clock, "checkpoints go by the clock"),
        (to_the_last_kill, "after the job is done changes nothing"),
        (lambda work, every, kills: finish(work, every, kills[:1]), "only the first kill"),
        (lambda work, every, kills: finish(work, every, early(work, every, kills)[-1:]), "only the last kill"),
        (sorting_in_place, "changed its input kills"),
        (
            lambda work, every, kills: finish(work, every, kills) + (len(kills) == 5),
            "^23 hours of work, kept every 1.5",
        ),
        (lambda work, every, kills: [work, every], "expected shape"),
        (lambda work, every, kills: work / 0, "raised ZeroDivisionError"),
        (lambda work, every, kills: None, "returned nothing"),
    ],
)
def test_wrong_finishes_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_17.check_finish(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (least(lambda s, e, between, within: between / s + within / (s * e)), "^deviations are added as they are"),
        (least(lambda s, e, between, within: between**2 / s + within**2 / e), "^the episodes of all seeds count"),
        (least(lambda s, e, between, within: between**2 + within**2 / (s * e)), "^more seeds lower both parts"),
        (lambda budget, train, episode, *_: (int(budget / (train + episode) + 1e-9), 1), "of one episode each"),
        (lambda budget, train, episode, *_: (int(budget / episode + 1e-9), 1), "^training costs nothing here"),
        (in_closed_form, "^the closed form, rounded"),
        (lambda *case: best_split(*case)[::-1], "^episodes first"),
        (lambda *case: (best_split(*case)[0], math.prod(best_split(*case))), "^seeds times episodes"),
        (over_budget, "^8 seeds of 24 episodes cost 113.6, and the budget is 100"),
        (
            lambda *case: (best_split(*case)[0], max(1, best_split(*case)[1] - 1)),
            "there is a better choice than 7 seeds",
        ),
        (lambda *case: (0, 5), "whole numbers from 1"),
        (lambda *case: (2.5, 7), "whole numbers from 1"),
        (lambda *case: best_split(*case)[0], "expected shape"),
        (lambda *case: case[9], "raised IndexError"),
        (lambda *case: None, "returned nothing"),
    ],
)
def test_wrong_splits_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_17.check_best_split(answer)
    assert "\n" not in str(caught.value)
