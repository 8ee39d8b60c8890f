import pytest
import torch

from dmm.checks import CheckFailed, chapter_14


def numbers(b, t, e, n):
    return 3 * b * t * e + 2 * b * t * n + e * n


def intensity(b, t, e, n, size):
    return 7 * b * t * e * n / (size * numbers(b, t, e, n))


def starts(a, x, chunk, after=0, restart=False, skip_last=False, alias=False, inside=False):
    """The scan with mistakes: states kept too late, a restart in each chunk, the last start left out, ..."""
    h, kept = torch.zeros_like(x[0]), []
    for t in range(len(x)):
        if t % chunk == 0 and not after:
            kept.append(h)
        if t % chunk == 0 and restart:
            h = torch.zeros_like(h)
        if alias:
            h.mul_(a[t]).add_(x[t])
        else:
            h = a[t] * (h + x[t]) if inside else a[t] * h + x[t]
        if t % chunk == after - 1:
            kept.append(h)
    return h, torch.stack(kept[:-1] if skip_last else kept)


def after_each_chunk(a, x, chunk):
    ends = [min(first + chunk, len(x)) for first in range(0, len(x), chunk)]
    states = [starts(a[:end], x[:end], chunk)[0] for end in ends]
    return states[-1], torch.stack(states)


def chunk(a, x, start, dh, g, begin=True, dh_used=True, shift=0, last_decay=True, extra=False):
    h = start if begin else torch.zeros_like(start)
    states = [h]
    for a_t, x_t in zip(a, x, strict=True):
        h = a_t * h + x_t
        states.append(h)
    da, dx = torch.zeros_like(a), torch.zeros_like(x)
    g = a[-1] * g if extra else g
    for t in reversed(range(len(a))):
        dx[t] = g = g + dh[t] if dh_used else g
        da[t] = g * states[t + shift]
        g = a[t] * g if t or last_decay else g
    return da, dx, g


def before(a, x, start):
    states = [start]
    for a_t, x_t in zip(a[:-1], x[:-1], strict=True):
        states.append(a_t * states[-1] + x_t)
    return torch.stack(states)


def decay_of_the_token_itself(a, x, start, dh, g):
    dx = torch.zeros_like(x)
    for t in reversed(range(len(a))):
        dx[t] = g = dh[t] + (g if t == len(a) - 1 else a[t] * g)
    return dx * before(a, x, start), dx, g


def forwards(a, x, start, dh, g):
    dx = torch.zeros_like(x)
    for t in range(len(a)):
        dx[t] = dh[t] + g
        g = a[t] * dx[t]
    return dx * before(a, x, start), dx, g


def without_start_in_da(a, x, start, dh, g):
    da, dx, left = chunk(a, x, start, dh, g)
    da[0] = 0
    return da, dx, left


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_14.check_intensity, intensity),
        (chapter_14.check_starts, starts),
        (chapter_14.check_chunk, chunk),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *sizes: 1 / intensity(*sizes), "bytes per operation"),
        (lambda b, t, e, n, size: intensity(b, t, e, n, 1), "operations per number"),
        (lambda b, t, e, n, size: intensity(b, t, e, n, 4), "not always 4"),
        (lambda b, t, e, n, size: intensity(b, t, e, n, 8), "not always 8"),
        (lambda b, t, e, n, size: intensity(b, t, size, n, e), "it should be"),
        (lambda b, t, e, n, size: intensity(b, t, e, n, 8 * size), "per bit"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (2 * b * t * e + 2 * b * t * n + e * n), "y moves, too"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (3 * b * t * e + 2 * b * t * n), "A is read"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (3 * b * t * e + b * t * n + e * n), "two tensors"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (b * t * e + 2 * b * t * n + e * n), "y is a third"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (4 * b * t * e + 2 * b * t * n + e * n), "no gate"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (numbers(b, t, e, n) + b * t * e * n), "its states$"),
        (lambda b, t, e, n, size: 7 * b * t * e * n / size / (numbers(b, t, e, n) + 2 * b * t * e * n), "neither"),
        (lambda b, t, e, n, size: intensity(b, t, e, n, size) / n, "for each state"),
        (lambda b, t, e, n, size: intensity(b, t, e, n, size) / 7, "not one"),
        (lambda b, t, e, n, size: 7 * b * t * e * n, "divide it by the bytes"),
        (lambda b, t, e, n, size: 3.0, "it should be"),
        (lambda b, t, e, n, size: [1, 2], "expected shape"),
        (lambda b, t, e, n, size: None, "returned nothing"),
    ],
)
def test_wrong_intensities_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_14.check_intensity(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda a, x, chunk: starts(a, x, chunk, after=1), "after the first token"),
        (after_each_chunk, "after each chunk"),
        (lambda a, x, chunk: starts(a, x, chunk, restart=True), "restarts at zero"),
        (lambda a, x, chunk: starts(a, x, chunk, alias=True), "one tensor"),
        (lambda a, x, chunk: (starts(a, x, chunk)[0], starts(a, x, chunk)[1][: len(x) // chunk]), "has a start, too"),
        (lambda a, x, chunk: starts(a, x, chunk, inside=True), "before the token"),
        (lambda a, x, chunk: starts(a, x, 1), "for every token"),
        (lambda a, x, chunk: starts(a, x, -(-len(x) // chunk)), "not the number of chunks"),
        (lambda a, x, chunk: starts(a, x, chunk)[::-1], "swapped: first the last state"),
        (lambda a, x, chunk: (starts(a, x, chunk)[0], starts(a, x, chunk)[1].T), "axes are swapped"),
        (lambda a, x, chunk: (starts(a, x, chunk)[0], starts(a, x, chunk)[1].flip(0)), "reverse order"),
        (lambda a, x, chunk: (starts(a, x, chunk)[0], torch.zeros_like(starts(a, x, chunk)[1])), "all starts are zero"),
        (lambda a, x, chunk: (starts(a, x, chunk)[1][-1], starts(a, x, chunk)[1]), "before the last chunk"),
        (lambda a, x, chunk: (starts(a[:-1], x[:-1], chunk)[0], starts(a, x, chunk)[1]), "before the last token"),
        (lambda a, x, chunk: (x[-1], starts(a, x, chunk)[1]), "last token's x alone"),
        (lambda a, x, chunk: (starts(a, x, chunk)[0] + 1, starts(a, x, chunk)[1]), "starts are those before"),
        (lambda a, x, chunk: starts(a, x, chunk)[1], "return two things"),
        (lambda a, x, chunk: None, "returned nothing"),
    ],
)
def test_wrong_starts_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_14.check_starts(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *given: (chunk(*given)[1], chunk(*given)[0], chunk(*given)[2]), "da and dx are swapped"),
        (lambda *given: chunk(*given)[::-1], "the order is da, dx, g"),
        (lambda *given: chunk(*given, begin=False), "begin at start"),
        (lambda *given: chunk(*given, shift=1), "the state before token t"),
        (lambda *given: chunk(*given, shift=1, begin=False), "and the states begin at zero"),
        (without_start_in_da, "which is start"),
        (lambda a, x, start, dh, g: chunk(a, x, start, dh, 0 * g), "is not used: it reaches"),
        (lambda *given: chunk(*given, dh_used=False), "dh is not used"),
        (lambda *given: chunk(*given, extra=True), "already with its decay"),
        (lambda *given: chunk(*given, last_decay=False), "decay of the first token is missing"),
        (decay_of_the_token_itself, "not a_t"),
        (forwards, "from the last to the first"),
        (lambda *given: (chunk(*given)[0], chunk(*given)[1].flip(0), chunk(*given)[2]), "dx is in reverse order"),
        (lambda *given: (chunk(*given)[0].flip(0), *chunk(*given)[1:]), "da is in reverse order"),
        (lambda a, *rest: (chunk(a, *rest)[0], a * chunk(a, *rest)[1], chunk(a, *rest)[2]), "without a"),
        (lambda a, *rest: (a * chunk(a, *rest)[0], *chunk(a, *rest)[1:]), "has the decay in it"),
        (lambda a, x, start, dh, g: (*chunk(a, x, start, dh, g)[:2], g), "not what goes out"),
        (lambda a, x, start, dh, g: (chunk(a, x, start, dh, g)[0], dh, chunk(a, x, start, dh, g)[2]), "dh itself"),
        (lambda *given: (chunk(*given)[0] + 1, *chunk(*given)[1:]), "da_t = g_t"),
        (lambda *given: chunk(*given)[:2], "return three things"),
        (lambda *given: None, "returned nothing"),
    ],
)
def test_wrong_chunk_gradients_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_14.check_chunk(answer)
    assert "\n" not in str(caught.value)
