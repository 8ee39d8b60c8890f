import pytest
import torch

from dmm.checks import CheckFailed, chapter_03
from dmm.scan import selective_scan


def kept(delta, A):
    later = delta.sum() - delta.cumsum(0)
    return torch.exp(later[:, None] * A)


def chunks(u, delta, A, B, C, chunk):
    state, parts = None, []
    for first in range(0, u.shape[1], chunk):
        u_, delta_, B_, C_ = (x[:, first : first + chunk] for x in (u, delta, B, C))
        y, state = selective_scan(u_, delta_, A, B_, C_, initial_state=state, return_last_state=True)
        parts.append(y)
    return torch.cat(parts, 1)


def restarted(u, delta, A, B, C, chunk):
    parts = [[x[:, first : first + chunk] for x in (u, delta, B, C)] for first in range(0, u.shape[1], chunk)]
    return torch.cat([selective_scan(u_, delta_, A, B_, C_) for u_, delta_, B_, C_ in parts], 1)


def chunks_by_hand(u, delta, A, B, C, chunk, order=1, keep=lambda first: True, longer=0, step=0):
    """Chunks with mistakes: in reverse order, with the state kept only now and then, or with wrong ends."""
    state, parts = None, []
    for first in list(range(0, u.shape[1], chunk + step))[::order]:
        u_, delta_, B_, C_ = (x[:, first : first + chunk + longer] for x in (u, delta, B, C))
        y, last = selective_scan(u_, delta_, A, B_, C_, initial_state=state, return_last_state=True)
        state = last if keep(first) else state
        parts.append(y)
    return torch.cat(parts[::order], 1)


def joined_backwards(u, delta, A, B, C, chunk):
    y = chunks(u, delta, A, B, C, chunk)
    return torch.cat([y[:, first : first + chunk] for first in range(0, u.shape[1], chunk)][::-1], 1)


def last_chunk_spoilt(*arguments):
    y = chunks(*arguments)
    y[:, 9:] += 1
    return y


def adjoint(a, dh, shift=1):
    later = torch.cat([a[:, shift:], torch.zeros_like(a[:, :shift])], 1)
    return forward(later.flip(1), dh.flip(1)).flip(1)


def shifted(a, gap, way):
    """`a` moved by one token: `way` -1 brings a_(t+1) to token t, 1 brings a_(t-1); `gap` fills the free place."""
    moved = torch.roll(a, way, 1)
    if gap is not None:
        moved[:, -1 if way == -1 else 0] = gap
    return moved


def wrong_way(a, dh, gap):
    return forward(shifted(a, gap, 1).flip(1), dh.flip(1)).flip(1)


def forward(a, x):
    h, rows = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + x[:, t]
        rows.append(h)
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_03.check_kept, kept),
        (chapter_03.check_chunks, chunks),
        (chapter_03.check_adjoint, adjoint),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda delta, A: kept(delta, A) * torch.exp(delta[:, None] * A), "lets it in"),
        (lambda delta, A: torch.exp((delta.cumsum(0) - delta)[:, None] * A), "before the token"),
        (lambda delta, A: torch.exp(delta.cumsum(0)[:, None] * A), "up to the token"),
        (lambda delta, A: torch.exp(delta[:, None] * A), "decay of one token"),
        (lambda delta, A: kept(delta, A).log(), "exponential is missing"),
        (lambda delta, A: 1 / kept(delta, A), "sign is wrong"),
        (lambda delta, A: kept(delta, A).T, "axes are swapped"),
        (lambda delta, A: torch.ones(5, 3), "kept is not"),
        (lambda delta, A: torch.ones(5), "expected shape"),
        (lambda delta, A: None, "returned nothing"),
    ],
)
def test_wrong_shares_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_03.check_kept(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (restarted, "restarts at zero"),
        (lambda *arguments: chunks(*arguments)[:, :8], "last chunk is missing"),
        (lambda *arguments: chunks(*arguments)[:, -4:], "only one chunk"),
        (lambda *arguments: chunks_by_hand(*arguments, keep=lambda first: first == 0), "keep the newest state"),
        (lambda *arguments: chunks_by_hand(*arguments, order=-1), "leak of the future"),
        (joined_backwards, "joined in reverse order"),
        (lambda *arguments: chunks_by_hand(*arguments, longer=1), "the chunks overlap"),
        (lambda *arguments: chunks_by_hand(*arguments, step=1), "left out"),
        (last_chunk_spoilt, "first at token 9, which is token 1 of chunk 2"),
        (lambda *arguments: chunks(*arguments)[0], "expected shape"),
        (lambda *arguments: None, "returned nothing"),
    ],
)
def test_wrong_chunks_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_03.check_chunks(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda a, dh: adjoint(a, dh, shift=0), "not a_t"),
        (lambda a, dh: adjoint(a, dh, shift=2), "one token too many"),
        (forward, "from the last to the first"),
        *[(lambda a, dh, gap=gap: wrong_way(a, dh, gap), "shifted the wrong way") for gap in (0, 1, None)],
        *[(lambda a, dh, gap=gap: forward(shifted(a, gap, -1), dh), "a is shifted, but") for gap in (0, 1, None)],
        (lambda a, dh: adjoint(a, dh).flip(1), "flip it back"),
        (lambda a, dh: dh, "nothing flowed back"),
        (lambda a, dh: dh * a, "g_t is not"),
        (lambda a, dh: adjoint(a, dh)[:, 1:], "expected shape"),
        (lambda a, dh: None, "returned nothing"),
    ],
)
def test_wrong_adjoints_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_03.check_adjoint(answer)
