from collections import deque

import pytest
import torch

from dmm.checks import CheckFailed, chapter_15


def first_seen(t, context, states):
    spacing = context // states
    return -(-t // spacing) * spacing - context + 1


class Staggered:
    """The answer; `begin`, `choose` and `feed` are what wrong ones change."""

    def __init__(self, step, start, context, states):
        self.step, self.start, self.context, self.count = step, start, context, states
        self.spacing, self.clock, self.held = context // states, 0, []

    def begin(self):
        if self.clock % self.spacing == 0:
            self.held = [*self.held, self.start][-self.count :]

    def act(self, x):
        self.begin()
        outputs, self.held = map(list, zip(*(self.step(x, h) for h in self.held), strict=True))
        self.clock += 1
        return self.answer(outputs)

    def answer(self, outputs):
        return outputs[0]


class NewestActs(Staggered):
    def answer(self, outputs):
        return outputs[-1]


class AllOutputs(Staggered):
    def answer(self, outputs):
        return outputs


class WithState(Staggered):
    def answer(self, outputs):
        return outputs[0], self.held[0]


class Silent(Staggered):
    def answer(self, outputs):
        return None


class NeverRestarted(Staggered):
    def begin(self):
        self.held = self.held or [self.start]


class AllAtOnce(Staggered):
    def begin(self):
        if self.clock % self.spacing == 0:
            self.held = [self.start] * self.count


class AllEveryContext(Staggered):
    def begin(self):
        if self.clock % self.context == 0:
            self.held = [self.start] * self.count


class OneTooMany(Staggered):
    def begin(self):
        if self.clock % self.spacing == 0:
            self.held = [*self.held, self.start][-self.count - 1 :]


class WholeWindow(Staggered):
    def begin(self):
        self.held = [*self.held, self.start][-self.context :]


class SpacedByStates(Staggered):
    def begin(self):
        if self.clock % self.count == 0:
            self.held = [*self.held, self.start][-(self.context // self.count) :]


class RestartedLate(Staggered):
    def begin(self):
        if self.clock == 0:
            self.held = [self.start]
        elif self.clock > 1 and (self.clock - 1) % self.spacing == 0:
            self.held = [*self.held, self.start][-self.count :]


class OnlyTheOldest(Staggered):
    def act(self, x):
        self.begin()
        y, self.held[0] = self.step(x, self.held[0])
        self.clock += 1
        return y


class EverySecond(Staggered):
    def act(self, x):
        self.begin()
        y, self.held[0] = self.step(x, self.held[0])
        if self.clock % 2 == 0:
            self.held[1:] = [self.step(x, h)[1] for h in self.held[1:]]
        self.clock += 1
        return y


class Twice(Staggered):
    def act(self, x):
        self.begin()
        self.held = [self.step(x, h)[1] for h in self.held]
        self.clock += 1
        return self.step(x, self.held[0])[0]


class Behind(Staggered):
    def act(self, x):
        self.begin()
        y, _ = self.step(0 * x, self.held[0])
        self.held, self.clock = [self.step(x, h)[1] for h in self.held], self.clock + 1
        return y


class OneMore(Staggered):
    """Right but for one step."""

    def answer(self, outputs):
        return outputs[min(1, len(outputs) - 1)] if self.clock == 9 else outputs[0]


class Shared(Staggered):
    """All that were made hold the states of the newest."""

    states: list = []  # noqa: RUF012

    def __init__(self, *arguments):
        super().__init__(*arguments)
        type(self).states = []

    def act(self, x):
        self.held = type(self).states
        y = super().act(x)
        type(self).states = self.held
        return y


class AsMean(Staggered):
    def answer(self, outputs):
        return torch.stack(outputs).mean(0)


class FromZero(Staggered):
    def __init__(self, step, start, context, states):
        super().__init__(step, torch.zeros_like(start), context, states)


class ItsState(Staggered):
    def answer(self, outputs):
        return self.held[0]


class AsOnThePage(Staggered):
    def __init__(self, step, start, context, states):
        super().__init__(step, start, 8, 4)


class WritesStart(Staggered):
    def act(self, x):
        y = super().act(x)
        self.start += 1
        return y


class Recomputed:
    """Right, and as dear as the window: it keeps inputs and passes over them again at every step."""

    def __init__(self, step, start, context, states):
        self.step, self.start, self.context, self.spacing = step, start, context, context // states
        self.inputs = []

    def act(self, x):
        self.inputs.append(x)
        t = len(self.inputs) - 1
        h = self.start
        for each in self.inputs[max(0, -(-(t - self.context + 1) // self.spacing) * self.spacing) :]:
            y, h = self.step(each, h)
        return y


class OneInReserve(Staggered):
    """Right, and holds a state that no action needs."""

    def begin(self):
        if self.clock % self.spacing == 0:
            self.held = [*self.held, self.start][-self.count - 1 :]

    def answer(self, outputs):
        return outputs[-self.count :][0]


class InOneTensor:
    """All states side by side from the first input on, as many as there will be, and each slot in its turn."""

    def __init__(self, step, start, context, states):
        self.step, self.start, self.count, self.spacing = step, start, states, context // states
        self.clock, self.held = 0, start.expand(states, *start.shape).clone()

    def act(self, x):
        begun = self.clock // self.spacing + 1
        if self.clock % self.spacing == 0:
            self.held[(begun - 1) % self.count] = self.start
        y, self.held = torch.func.vmap(self.step, in_dims=(None, 0))(x, self.held)
        self.clock += 1
        return y[begun % self.count if begun >= self.count else 0]


class Queued:
    def __init__(self, step, start, context, states):
        self.step, self.start, self.clock = step, start, 0
        self.spacing, self.held = context // states, deque(maxlen=states)

    def act(self, x):
        if self.clock % self.spacing == 0:
            self.held.append(self.start)
        self.clock += 1
        outputs = []
        for _ in range(len(self.held)):
            y, h = self.step(x, self.held.popleft())
            self.held.append(h)
            outputs.append(y)
        return outputs[0].tolist()


class Empty:
    def __init__(self, step, start, context, states):
        pass


class Failing(Staggered):
    def act(self, x):
        return self.held[0]


def extend(x, state, W, a):
    tokens, h = state
    seen = torch.cat([tokens, x])
    windows = seen.unfold(0, len(tokens) + 1, 1).mT.flatten(1)
    outputs = []
    for u in windows @ W.T:
        h = a * h + u
        outputs.append(h)
    return torch.stack(outputs), (seen[len(x) :], h)


def from_state(change):
    """The right function on a changed state; what it hands over is right."""

    def changed(x, state, W, a):
        return extend(x, change(*state), W, a)[0], extend(x, state, W, a)[1]

    return changed


def output(change):
    def changed(x, state, W, a):
        y, new = extend(x, state, W, a)
        return change(y, x, state, W, a), new

    return changed


def handed_over(change):
    """Right outputs, another new state."""

    def changed(x, state, W, a):
        y, (tokens, h) = extend(x, state, W, a)
        return y, change(tokens, h, y, x, state, a)

    return changed


def mixed(x, state, W):
    seen = torch.cat([state[0], x])
    return seen.unfold(0, len(state[0]) + 1, 1).mT.flatten(1) @ W.T


def by_channels(x, state, W):
    return torch.cat([state[0], x]).unfold(0, len(state[0]) + 1, 1).flatten(1) @ W.T


def recurred(drive, h, a):
    return torch.stack([h := a * h + u for u in drive])


def reversed_windows(x, state, W, a):
    blocks = W.view(len(W), -1, len(W)).flip(1).flatten(1)
    return extend(x, state, blocks, a)[0], extend(x, state, W, a)[1]


def overwriting(x, state, W, a):
    y, (tokens, h) = extend(x, state, W, a)
    state[0][:], state[1][:] = tokens, h
    return y, state


def long_chunks_only(x, state, W, a):
    assert len(x) >= len(state[0])
    return extend(x, state, W, a)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_15.check_first_seen, first_seen),
        (chapter_15.check_staggered, Staggered),
        (chapter_15.check_staggered, InOneTensor),
        (chapter_15.check_staggered, Queued),
        (chapter_15.check_extend, extend),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_answers_pass_with_one_line(check, answer, dtype, capsys):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        check(answer)
    finally:
        torch.set_default_dtype(before)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


def test_the_package_acts_by_the_same_formula():
    from dmm.acting import StaggeredActor
    from dmm.models.dmm import DecisionMetaMamba, DMMConfig

    actor = StaggeredActor(DecisionMetaMamba(DMMConfig(state_size=3, action_size=2, context=8, width=8)).eval(), 4)
    memory, pad, began = actor.init_state(1, 0.0), 7, [0] * 4
    for clock in range(40):
        _, present = actor.restart(memory._replace(clock=clock))
        if present is not None:
            began[int((present[:, 0] == 0).nonzero())] = clock
        if clock >= pad:
            assert began[actor.oldest(clock)] - pad == first_seen(clock - pad, 8, 4)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda t, k, m: t // (k // m) * (k // m) - k + 1, "^rounded down"),
        (lambda t, k, m: t - k + 1, "that is the window"),
        (lambda t, k, m: max(0, first_seen(t, k, m)), "padding is not counted"),
        (lambda t, k, m: (t + k - 1) // (k // m) * (k // m) - k + 1, "the newest state"),
        (lambda t, k, m: -(-t // m) * m - k + 1, "spacing is K / m"),
        (lambda t, k, m: -(-t // k) * k - k + 1, "a single state"),
        (lambda t, k, m: -(-(t - k + 1) // (k // m)) * (k // m), "counted from the first padded step, time step"),
        (lambda t, k, m: 1 - k, "never restarted"),
        (lambda t, k, m: t - first_seen(t, k, m) + 1, "how many steps are seen"),
        (lambda t, k, m: first_seen(t, k, m) + k - 1, "time step 0 is the first real one"),
        (lambda t, k, m: first_seen(t, k, m) - 1, "one step too early"),
        (lambda t, k, m: first_seen(t, k, m) + 1, "one step too late"),
        (lambda t, k, m: first_seen(t, k, m) + 0.5, "a whole number"),
        (
            lambda t, k, m: first_seen(t, k, m) + (t == 5),
            "first wrong answer is here, for t = 5, context = 8, states = 4",
        ),
        (lambda t, k, m: [t, k], "expected shape"),
        (lambda t, k, m: t / 0, "raised ZeroDivisionError"),
        (lambda t, k, m: None, "returned nothing"),
    ],
)
def test_wrong_first_steps_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_15.check_first_seen(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (NewestActs, "^no action has seen more than K / m"),
        (AllAtOnce, "^no action has seen more than K / m"),
        (AllEveryContext, "^everything is forgotten every K steps"),
        (NeverRestarted, "no state is ever restarted"),
        (OneTooMany, "seen too much"),
        (WholeWindow, "that is the window"),
        (SpacedByStates, "yours is m"),
        (RestartedLate, "^restarted too late"),
        (OnlyTheOldest, "only the state that acts"),
        (EverySecond, "has missed inputs"),
        (Twice, "taken in twice"),
        (Behind, "not seen the input of its own step"),
        (OneMore, "3 states: at step 8 the output has seen inputs 6 to 8, 3 of them, not 4 to 8"),
        (Shared, "two actors share"),
        (AsMean, "are averaged"),
        (FromZero, "states begin at zero"),
        (ItsState, "act returns the state: asked"),
        (AsOnThePage, "hard-coded as 8 and 4"),
        (WritesStart, "changed its input start|another result"),
        (Recomputed, "hold no more states than that"),
        (OneInReserve, "hold no more states than that"),
        (AllOutputs, "outputs of all states"),
        (WithState, "returns more than one thing"),
        (Silent, "returned nothing"),
        (Empty, "no method act"),
        (Failing, "raised IndexError"),
        (lambda step, start, context, states: None, "returned nothing"),
    ],
)
def test_wrong_staggered_states_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_15.check_staggered(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (from_state(lambda tokens, h: (torch.zeros_like(tokens), h)), "^the mixer forgets"),
        (from_state(lambda tokens, h: (tokens, torch.zeros_like(h))), "^h is restarted"),
        (from_state(lambda tokens, h: (torch.zeros_like(tokens), torch.zeros_like(h))), "both memories are empty"),
        (reversed_windows, "windows are in reverse order"),
        (
            output(lambda y, x, state, W, a: torch.cat([state[1][None], y[:-1]])),
            "from before its own token",
        ),
        (output(lambda y, x, state, W, a: recurred(by_channels(x, state, W), state[1], a)), "^channel for token"),
        (output(lambda y, x, state, W, a: a * state[1] + mixed(x, state, W).cumsum(0)), "once per chunk"),
        (output(lambda y, x, state, W, a: state[1] + mixed(x, state, W).cumsum(0)), "does not decay"),
        (output(lambda y, x, state, W, a: mixed(x, state, W)), "recurrence is missing"),
        (
            output(lambda y, x, state, W, a: extend(x, state, torch.diag(a) @ W, a)[0]),
            "where the mixer's output belongs",
        ),
        (output(lambda y, x, state, W, a: y + (torch.arange(len(y)) == 2)[:, None]), "first at token 2 of a chunk"),
        (output(lambda y, x, state, W, a: y[len(state[0]) :]), "first tokens have no output"),
        (output(lambda y, x, state, W, a: y.T), "expected shape"),
        (handed_over(lambda tokens, h, y, x, state, a: (state[0], h)), "tokens never change"),
        (handed_over(lambda tokens, h, y, x, state, a: (torch.cat([state[0], y])[len(x) :], h)), "keeps outputs"),
        (handed_over(lambda tokens, h, y, x, state, a: (tokens.flip(0), h)), "in reverse order: oldest first"),
        (
            handed_over(lambda tokens, h, y, x, state, a: (torch.cat([state[0], x])[:3], h)),
            "the new state is wrong",
        ),
        (
            handed_over(lambda tokens, h, y, x, state, a: (x[-len(state[0]) :] if len(state[0]) else tokens, h)),
            "chunk shorter than w - 1 tokens: older",
        ),
        (
            handed_over(
                lambda tokens, h, y, x, state, a: (torch.cat([state[0][:1], state[0], x])[-len(state[0]) - 1 :], h)
            ),
            "keeps w tokens",
        ),
        (handed_over(lambda tokens, h, y, x, state, a: (torch.cat([state[0], x]), h)), "grows with every chunk"),
        (handed_over(lambda tokens, h, y, x, state, a: (tokens, state[1])), "h never changes"),
        (handed_over(lambda tokens, h, y, x, state, a: (tokens, y[0])), "chunk's first token"),
        (handed_over(lambda tokens, h, y, x, state, a: (tokens, 0 * h)), "h is emptied"),
        (handed_over(lambda tokens, h, y, x, state, a: (tokens, a * h)), "decayed once too often"),
        (handed_over(lambda tokens, h, y, x, state, a: (tokens, h + 1)), "the new state is wrong"),
        (handed_over(lambda tokens, h, y, x, state, a: (h, tokens)), "first the tokens, then h"),
        (handed_over(lambda tokens, h, y, x, state, a: tokens), "tokens and h as the new state"),
        (overwriting, "changed its input state"),
        (lambda x, state, W, a: extend(x.mul_(2), state, W, a), "changed its input x"),
        (long_chunks_only, r"long_chunks_only raised AssertionError: .*, for x .1, 2."),
        (lambda x, state, W, a: extend(x, state, W, a)[0], "return two things: y"),
        (lambda x, state, W, a: extend(x, state, W.T, a), "raised RuntimeError"),
        (lambda x, state, W, a: None, "returned nothing"),
    ],
)
def test_wrong_chunks_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_15.check_extend(answer)
    assert "\n" not in str(caught.value)
