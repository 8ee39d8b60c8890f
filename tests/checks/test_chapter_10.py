import numpy as np
import pytest
import torch

from dmm.checks import CheckFailed, chapter_10


def depends(predict, actions, push=lambda a: torch.linspace(0.1, 0.2, a), size=lambda change: change.abs().amax(-1)):
    before, found = predict(actions), []
    for u in range(len(actions)):
        pushed = actions.clone()
        pushed[u] += push(actions.shape[1])
        found.append(size(predict(pushed) - before).abs() > 1e-6)
    return torch.stack(found, dim=1)


def of_result(change):
    return lambda predict, actions: change(depends(predict, actions).float())


def by_sum(predict, actions):
    return depends(predict, actions, size=lambda change: change.sum(-1))


def of_first_entry(predict, actions):
    return depends(predict, actions, push=lambda a: 0.1 * (torch.arange(a) == 0))


def piling_up(predict, actions):
    pushed, before, found = actions.clone(), predict(actions), []
    for u in range(len(actions)):
        pushed[u] += torch.linspace(0.1, 0.2, actions.shape[1])
        found.append((predict(pushed) - before).abs().amax(-1) > 1e-6)
    return torch.stack(found, dim=1)


def overwriting(predict, actions):
    before, found = predict(actions), []
    for u in range(len(actions)):
        actions[u] += 0.1
        found.append((predict(actions) - before).abs().amax(-1) > 1e-6)
    return torch.stack(found, dim=1)


def against_zero(predict, actions):
    return torch.stack([predict(actions).abs().amax(-1) > 1e-6 for _ in actions], dim=1) | depends(predict, actions)


def decode(b, low, high, n):
    return min(low + (b + 0.5) * (high - low) / (n - 1), high)


def window_returns(rewards, values, first, last):
    later = -np.inf
    for t in range(len(rewards) - 1, last - 1, -1):
        ahead = 0.0 if t == len(rewards) - 1 else max(later, values[t + 1])
        later = rewards[t] + ahead
    found = [later]
    for t in range(last - 1, first - 1, -1):
        found.insert(0, rewards[t] + found[0])
    return np.array(found)


def recursion(rewards, ahead):
    """`R_t = ahead(t, R_{t+1})`, from the last reward backwards."""
    found = list(rewards)
    for t in range(len(rewards) - 2, -1, -1):
        found[t] = ahead(t, found[t + 1])
    return np.array(found)


def with_last(make):
    """Right sums inside the window, with `make(rewards, values, last)` as its last return."""

    def changed(rewards, values, first, last):
        final = make(rewards, values, last)
        return np.array([rewards[t:last].sum() + final for t in range(first, last + 1)])

    return changed


def chain(r, v):
    return recursion(r, lambda t, later: r[t] + max(later, v[t + 1]))


def dropping(r, v, last):
    return chain(np.append(r[:-1], 0.0), v)[last]


def in_place(rewards, values, first, last):
    rewards[:] = chain(rewards, values)
    return rewards[first : last + 1]


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_10.check_depends, depends),
        (chapter_10.check_decode, decode),
        (chapter_10.check_window_returns, window_returns),
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


def test_other_right_answers_pass():
    def by_jacobian(predict, actions):
        return torch.autograd.functional.jacobian(predict, actions).abs().sum((1, 3)) > 0

    chapter_10.check_depends(by_jacobian)
    chapter_10.check_depends(lambda *given: depends(*given).int().tolist())


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (of_result(lambda found: found.T), "^rows and columns are swapped"),
        (of_first_entry, "only the first entry of an action"),
        (lambda *given: depends(*given, push=lambda a: 0.1 * torch.ones(a)), "are pushed alike"),
        (lambda *given: depends(*given, size=lambda change: change[..., 0]), "first entry of a prediction"),
        (by_sum, "cancel in a sum"),
        (of_result(torch.tril), "the future is left out"),
        (of_result(lambda found: found * (1 - torch.eye(len(found)))), "the own action is left out"),
        (of_result(lambda found: found * torch.eye(len(found))), "only the own action"),
        (of_result(torch.triu), "only the future"),
        (
            of_result(lambda found: found * (torch.arange(len(found)) == len(found) - 1)[:, None]),
            "only the last prediction",
        ),
        (of_result(lambda found: 1 - found), "True and False are swapped"),
        (piling_up, "pushes pile up"),
        (overwriting, "changed its input actions"),
        (against_zero, "a constant depends on nothing"),
        (of_result(lambda found: found * (torch.arange(36).view(6, 6) != 13)), "prediction 2 depends on action 1"),
        (of_result(lambda found: found * 0.5), "True or False for each pair"),
        (of_result(lambda found: found[-1]), "expected shape"),
        (lambda predict, actions: predict(actions) @ actions, "raised RuntimeError"),
        (lambda predict, actions: None, "returned nothing"),
    ],
)
def test_wrong_dependences_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_10.check_depends(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda b, low, high, n: low + b * (high - low) / n, "^that is the released decoding"),
        (lambda b, low, high, n: low + (b + 0.5) * (high - low) / n, "the middle of n intervals"),
        (lambda b, low, high, n: low + b * (high - low) / (n - 1), "the lower edge"),
        (lambda b, low, high, n: low + (b + 1) * (high - low) / (n - 1), "the upper edge"),
        (lambda b, low, high, n: low + (b + 0.5) * (high - low) / (n - 1), "the last bin is the single number"),
        (lambda b, low, high, n: decode(b, low, high, n) - low, "add low"),
        (lambda b, low, high, n: (b - n / 2) / (n / 2), "normalised bin"),
        (lambda b, low, high, n: decode(n - 1 - b, low, high, n), "in reverse order"),
        (
            lambda b, low, high, n: decode(b, low, high, n) + 0.2 * (b == 3),
            "another middle, for b = 3, low = 0.0, high = 1.0, n = 5",
        ),
        (lambda b, low, high, n: [b, n], "expected shape"),
        (lambda b, low, high, n: b / 0, "raised ZeroDivisionError"),
        (lambda b, low, high, n: None, "returned nothing"),
    ],
)
def test_wrong_decodings_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_10.check_decode(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (with_last(lambda r, v, last: r[last:].sum()), "^nothing is relabelled"),
        (lambda r, v, first, last: chain(r, v)[first : last + 1], "every step has its own"),
        (with_last(dropping), "the last reward is dropped"),
        (
            with_last(lambda r, v, last: recursion(r, lambda t, later: r[t] + max(later, v[t]))[last]),
            r"V\(s_t\) in place of",
        ),
        (
            with_last(lambda r, v, last: recursion(r, lambda t, later: max(r[t] + later, v[t + 1]))[last]),
            "before the reward is added",
        ),
        (
            with_last(
                lambda r, v, last: r[last] + (0.0 if last == len(r) - 1 else max(r[last + 1 :].sum(), v[last + 1]))
            ),
            "plain return of the next step",
        ),
        (with_last(lambda r, v, last: chain(np.append(r, 0.0), np.append(v, v[-1]))[last]), "behind the episode's end"),
        (with_last(lambda r, v, last: chain(r, v)[last] + r[last]), "counted twice"),
        (lambda *given: window_returns(*given)[::-1], "in reverse order"),
        (with_last(lambda r, v, last: r[last]), "begins at the window's end"),
        (
            with_last(lambda r, v, last: r[last] + (v[last + 1] if last + 1 < len(r) else 0.0)),
            "take the larger",
        ),
        (in_place, "changed its input"),
        (lambda *given: window_returns(*given) + (given[2:] == (0, 4)), "a window of an episode of"),
        (lambda r, v, first, last: window_returns(r, v, first, last)[-1], "expected shape"),
        (lambda r, v, first, last: r[99], "raised IndexError"),
        (lambda r, v, first, last: None, "returned nothing"),
    ],
)
def test_wrong_windows_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_10.check_window_returns(answer)
    assert "\n" not in str(caught.value)


def test_the_check_has_the_package_answer_to_a_worked_example():
    rewards, values = np.array([1.0, 0, 2]), np.array([9.0, 5, 1])
    assert [chapter_10.window_returns(rewards, values, 0, last).tolist() for last in range(3)] == [
        [6.0],
        [3.0, 2.0],
        [3.0, 2.0, 2.0],
    ]
