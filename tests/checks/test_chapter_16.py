import numpy as np
import pytest

from dmm.checks import CheckFailed, chapter_16
from dmm.data.rewards import per_step_rewards


def cut(ends, terminals):
    last = np.append(np.flatnonzero(ends[:-1]), len(terminals) - 1)
    starts = np.append(0, last[:-1] + 1)
    return starts, last - starts + 1


def episodes(terminals, timeouts):
    return cut(terminals | timeouts, terminals)


def without_tail(terminals, timeouts):
    ends = np.flatnonzero(terminals | timeouts)
    starts = np.append(0, ends + 1)[:-1]
    return starts, ends - starts + 1


def empty_tail(terminals, timeouts):
    starts = np.append(0, np.flatnonzero(terminals | timeouts) + 1)
    return starts, np.diff(np.append(starts, len(terminals)))


def one_early(terminals, timeouts):
    starts = np.append(0, np.flatnonzero(terminals | timeouts))
    return starts, np.diff(np.append(starts, len(terminals)))


def counted_twice(terminals, timeouts):
    ends = np.sort(np.concatenate([np.flatnonzero(terminals), np.flatnonzero(timeouts)]))
    lengths = np.diff(np.append(-1, ends))
    return np.cumsum(lengths) - lengths, lengths


def writing(terminals, timeouts):
    starts, lengths = episodes(terminals, timeouts)
    terminals |= timeouts
    return starts, lengths


def backwards_sum(rewards):
    return np.cumsum(rewards[::-1])[::-1]


def rtg(cumulative):
    return backwards_sum(np.append(0, np.diff(cumulative)))


def in_place(cumulative):
    result = rtg(cumulative)
    cumulative[0] = 7
    return result


class Mixture:
    def __init__(self, first, second, share):
        self.first, self.second, self.share = first, second, share

    def begin(self, env, observation, rng):
        self.playing = self.first if rng.random() < self.share else self.second
        self.playing.begin(env, observation, rng)

    def act(self, observation, rng):
        return self.playing.act(observation, rng)


class Swapped(Mixture):
    def begin(self, env, observation, rng):
        self.playing = self.second if rng.random() < self.share else self.first
        self.playing.begin(env, observation, rng)


class Half(Mixture):
    def begin(self, env, observation, rng):
        self.playing = self.first if rng.random() < 0.5 else self.second
        self.playing.begin(env, observation, rng)


def by(draw):
    """A mixture that plays `first` in the episodes in which `draw(rng, share)` is true."""

    class Drawn(Mixture):
        def begin(self, env, observation, rng):
            self.playing = self.first if draw(rng, self.share) else self.second
            self.playing.begin(env, observation, rng)

    return Drawn


never = by(lambda rng, share: 100 * rng.random() < share and share < 1)


class ChosenWhenMade(Mixture):
    """Another one each time that a mixture is made, and one for all of its episodes."""

    made = 0

    def __init__(self, first, second, share):
        super().__init__(first, second, share)
        type(self).made += 1
        self.playing = (first, second)[self.made % 2]

    def begin(self, env, observation, rng):
        self.playing.begin(env, observation, rng)


class Halfway(Mixture):
    """Changes within the episode."""

    def begin(self, env, observation, rng):
        super().begin(env, observation, rng)
        self.steps = 0

    def act(self, observation, rng):
        self.steps += 1
        return (self.playing if self.steps < 3 else self.second).act(observation, rng)


class Global(Mixture):
    """The global generator, in the order in which episodes come."""

    def begin(self, env, observation, rng):
        self.playing = self.first if GLOBAL.random() < self.share else self.second
        self.playing.begin(env, observation, rng)


GLOBAL = np.random.RandomState(4)


class EveryStep(Mixture):
    def begin(self, env, observation, rng):
        self.first.begin(env, observation, rng)
        self.second.begin(env, observation, rng)

    def act(self, observation, rng):
        return (self.first if rng.random() < self.share else self.second).act(observation, rng)


class Once(Mixture):
    def __init__(self, first, second, share):
        super().__init__(first, second, share)
        self.playing = first

    def begin(self, env, observation, rng):
        self.playing.begin(env, observation, rng)


class OwnGenerator(Mixture):
    def __init__(self, first, second, share):
        super().__init__(first, second, share)
        self.own = np.random.default_rng(0)

    def begin(self, env, observation, rng):
        self.playing = self.first if self.own.random() < self.share else self.second
        self.playing.begin(env, observation, rng)


class Counter(Mixture):
    number = 0

    def begin(self, env, observation, rng):
        self.number += 1
        self.playing = self.first if self.number % 10 < 10 * self.share else self.second
        self.playing.begin(env, observation, rng)


class NotBegun(Mixture):
    def begin(self, env, observation, rng):
        self.playing = self.first if rng.random() < self.share else self.second


class OtherOrder(Mixture):
    def begin(self, env, observation, rng):
        self.playing = self.first if rng.random() < self.share else self.second
        self.playing.begin(observation, env, rng)


class NothingBack(Mixture):
    def act(self, observation, rng):
        self.playing.act(observation, rng)


class Renamed(Mixture):
    def act(self, observation, rng):
        return self.playing.act(observation, rng).upper()


class NoRng(Mixture):
    def act(self, observation, rng):
        return self.playing.act(observation, None)


class OldObservation(Mixture):
    def act(self, observation, rng):
        return self.playing.act("seen 0", rng)


class Broken(Mixture):
    def act(self, observation, rng):
        return self.chosen.act(observation, rng)


class NoAct:
    def __init__(self, first, second, share):
        pass

    def begin(self, env, observation, rng):
        pass


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_16.check_episodes, episodes),
        (chapter_16.check_episodes, lambda terminals, timeouts: np.stack(episodes(terminals, timeouts))),
        (chapter_16.check_rtg, rtg),
        (chapter_16.check_rtg, lambda stored: [stored[-1] - stored[max(0, t - 1)] for t in range(len(stored))]),
        (chapter_16.check_mixture, Mixture),
        (chapter_16.check_mixture, by(lambda rng, share: rng.choice([True, False], p=[share, 1 - share]))),
        (chapter_16.check_mixture, by(lambda rng, share: rng.binomial(1, share))),
        (chapter_16.check_mixture, by(lambda rng, share: rng.uniform() >= 1 - share)),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


def test_the_package_passes():
    chapter_16.check_rtg(lambda stored: backwards_sum(per_step_rewards(stored)))


def test_the_released_code_is_told_apart():
    with pytest.raises(CheckFailed, match="released code's choice"):
        chapter_16.check_rtg(lambda stored: backwards_sum(per_step_rewards(stored, keep_first=True)))


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda terminals, timeouts: cut(terminals, terminals), "looked at terminals only"),
        (lambda terminals, timeouts: cut(timeouts, terminals), "looked at timeouts only"),
        (lambda terminals, timeouts: cut(terminals & timeouts, terminals), "where either flag stands"),
        (without_tail, "yours drops them"),
        (empty_tail, "without rows at the end"),
        (one_early, "one row early"),
        (counted_twice, "counted as two ends"),
        (lambda terminals, timeouts: episodes(terminals, timeouts)[::-1], "are swapped"),
        (
            lambda terminals, timeouts: (sum(episodes(terminals, timeouts)) - 1, episodes(terminals, timeouts)[1]),
            "last rows",
        ),
        (
            lambda terminals, timeouts: (episodes(terminals, timeouts)[0], episodes(terminals, timeouts)[1] - 1),
            "too few in each",
        ),
        (
            lambda terminals, timeouts: (episodes(terminals, timeouts)[0], np.diff(episodes(terminals, timeouts)[0])),
            "last episode has no length",
        ),
        (lambda terminals, timeouts: [part[1:] for part in episodes(terminals, timeouts)], "first episode is missing"),
        (
            lambda terminals, timeouts: (episodes(terminals, timeouts)[0][1:], episodes(terminals, timeouts)[1]),
            "first episode has no start",
        ),
        (
            lambda terminals, timeouts: (episodes(terminals, timeouts)[0], np.add(*episodes(terminals, timeouts))),
            "rows behind the episodes",
        ),
        (lambda terminals, timeouts: (np.array([0]), np.array([5])), "expected shape"),
        (lambda terminals, timeouts: (np.array([0, 5]), np.array([5, 7])), "expected shape"),
        (lambda terminals, timeouts: (np.array([0, 5]), np.array([12])), "expected shape"),
        (lambda terminals, timeouts: (np.array([0, 12]), np.array([12, 0])), "expected shape"),
        (
            lambda terminals, timeouts: (episodes(terminals, timeouts)[0], episodes(terminals, timeouts)[1] + 1),
            "other episodes",
        ),
        (writing, "changed its input terminals"),
        (lambda terminals, timeouts: episodes(terminals, timeouts)[0], "return two things: starts and lengths"),
        (lambda terminals, timeouts: ("a", "b"), "expected numbers"),
        (lambda terminals, timeouts: None, "returned nothing"),
        (lambda terminals, timeouts: terminals[99], "raised IndexError"),
    ],
)
def test_wrong_episodes_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_16.check_episodes(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda stored: backwards_sum(np.append(stored[0], np.diff(stored))), "released code's choice"),
        (backwards_sum, "added up again"),
        (lambda stored: backwards_sum(np.append(np.diff(stored), 0)), "one step early"),
        (lambda stored: stored[-1] - stored, "still to come at step t|added up again|one step early"),
        (lambda stored: rtg(stored) - np.append(0, np.diff(stored)), "still to come at step t|one step early"),
        (lambda stored: np.append(0, np.diff(stored)), "these are the rewards: add"),
        (lambda stored: np.cumsum(np.append(0, np.diff(stored))), "the rewards so far|stored sums"),
        (lambda stored: stored, "these are the stored sums|the rewards so far"),
        (lambda stored: np.full(len(stored), stored[-1] - stored[0]), "whole return at every step"),
        (lambda stored: -rtg(stored), "wrong sign"),
        (lambda stored: rtg(stored)[::-1], "in reverse order"),
        (lambda stored: backwards_sum(np.diff(stored)), "one number too few"),
        (in_place, "changed its input cumulative"),
        (lambda stored: rtg(stored) + 1, "wrong for the stored sums"),
        (lambda stored: rtg(stored)[None], "expected shape"),
        (lambda stored: None, "returned nothing"),
        (lambda stored: stored[99], "raised IndexError"),
    ],
)
def test_wrong_returns_to_go_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_16.check_rtg(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (Swapped, "the two are swapped"),
        (Half, "both play in half"),
        (EveryStep, "^another behaviour at every step: choose"),
        (Once, "`first` plays in every episode"),
        (never, "`second` plays in every episode"),
        (by(lambda rng, share: rng.random() < 0.4), "as in the example"),
        (by(lambda rng, share: rng.random() < share / (share + 1)), "not odds"),
        (by(lambda rng, share: rng.normal() < share), "not uniform"),
        (by(lambda rng, share: rng.uniform(-1, 1) < share), "between -1 and 1"),
        (by(lambda rng, share: rng.random() < share**2), "the share that you were given decides in how many"),
        (ChosenWhenMade, "the same behaviour in every one of 2000 episodes"),
        (Halfway, "share of those in which|plays to their end"),
        (Global, "its own rng alone"),
        (OwnGenerator, "its own rng alone"),
        (Counter, "its own rng alone"),
        (NotBegun, "begin was not called"),
        (OtherOrder, "in this order"),
        (NothingBack, "act returned nothing"),
        (Renamed, "has to return the chosen"),
        (NoRng, "hand on the rng"),
        (OldObservation, "hand on the observation"),
        (NoAct, "has no method act"),
        (Broken, "act raised AttributeError"),
        (lambda first, second, share: None, "returned nothing"),
        (lambda first, second: None, "raised TypeError"),
    ],
)
def test_wrong_mixtures_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_16.check_mixture(answer)
    assert "\n" not in str(caught.value)
