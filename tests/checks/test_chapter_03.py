import pytest
import torch

from dmm.checks import CheckFailed, chapter_03
from dmm.scan import parallel_scan, selective_scan


def between(delta):
    summed = delta.cumsum(0)
    return summed[:, None] - summed  # (t, s)


def kept(delta, A, later=None, first=lambda x: x):
    earlier = torch.ones(len(delta), len(delta)).tril()
    later = between(delta).tril() if later is None else later
    return first(torch.exp(later[..., None] * A)) * earlier[..., None]


def kept_by_vmap(delta, A):
    return torch.func.vmap(lambda rate: kept(delta, rate[None])[..., 0], out_dims=2)(A)


def without_chunks(u, delta, A, B, C, chunk):
    return selective_scan(u, delta, A, B, C)


def first_chunk_and_the_rest(u, delta, A, B, C, chunk):
    parts, state = [], None
    for part in (slice(0, chunk), slice(chunk, None)):
        if u[:, part].shape[1]:
            u_, delta_, B_, C_ = (x[:, part] for x in (u, delta, B, C))
            y, state = selective_scan(u_, delta_, A, B_, C_, initial_state=state, return_last_state=True)
            parts.append(y)
    return torch.cat(parts, 1)


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
    return parallel_scan(later.flip(1), dh.flip(1)).flip(1)


def adjoint_by_vmap(a, dh):
    return torch.func.vmap(lambda a, dh: adjoint(a[None], dh[None])[0])(a, dh)


def adjoint_by_hand(a, dh):
    g, rows = torch.zeros_like(dh[:, 0]), []
    for t in reversed(range(dh.shape[1])):
        g = dh[:, t] + (a[:, t + 1] * g if t + 1 < dh.shape[1] else 0)
        rows.append(g)
    return torch.stack(rows[::-1], 1)


def states_flipped(a, dh):
    return parallel_scan(torch.roll(a, -1, 1).flip(-1), dh.flip(-1)).flip(-1)


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
        (chapter_03.check_kept, kept_by_vmap),
        (chapter_03.check_chunks, chunks),
        (chapter_03.check_adjoint, adjoint),
        (chapter_03.check_adjoint, adjoint_by_vmap),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda delta, A: kept(delta, A, (between(delta) + delta).tril()), "lets it in"),
        (lambda delta, A: torch.exp(between(delta)[..., None] * A), "left nothing in states before it"),
        (lambda delta, A: kept(delta, A)[-1], "only the shares after the last token"),
        (lambda delta, A: kept(delta, A).transpose(0, 1), "first two axes are swapped"),
        (lambda delta, A: kept(delta, A).permute(2, 0, 1), "states last"),
        (lambda delta, A: between(delta).tril()[..., None] * A, "exponential is missing"),
        (lambda delta, A: kept(delta, -A), "sign is wrong"),
        (lambda delta, A: kept(delta, A, between(delta)), "infinity times 0"),
        (lambda delta, A: kept(delta, -torch.ones_like(A)), "A has no effect"),
        (lambda delta, A: torch.ones(len(delta), len(delta), len(A)), "kept.t, s. is not"),
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
        (
            lambda *arguments: chunks(*arguments)[:, : arguments[0].shape[1] // arguments[-1] * arguments[-1]],
            "last chunk is mi",
        ),
        (lambda *arguments: chunks(*arguments)[:, : arguments[-1]], "only the first chunk"),
        (lambda *arguments: chunks_by_hand(*arguments, keep=lambda first: first == 0), "keep the newest state"),
        (lambda *arguments: chunks_by_hand(*arguments, order=-1), "leak of the future"),
        (joined_backwards, "joined in reverse order"),
        (lambda *arguments: chunks_by_hand(*arguments, longer=1), "the chunks overlap"),
        (lambda *arguments: chunks_by_hand(*arguments, step=1), "left out"),
        (last_chunk_spoilt, "first at token 9, which is token 1 of chunk 2"),
        (without_chunks, "whole sequence is scanned at once"),
        (first_chunk_and_the_rest, "all the rest is scanned at once"),
        (lambda *arguments: chunks(*arguments[:-1], 4), r"has to be called on \[3, 3, 1\], was on \[4, 3\]"),
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
        *[
            (lambda a, dh, gap=gap: forward(shifted(a, gap, -1), dh), "but the scan runs from first to last")
            for gap in (0, 1, None)
        ],
        (lambda a, dh: adjoint(a, dh).flip(1), "flip it back"),
        (lambda a, dh: dh, "nothing flowed back"),
        (adjoint_by_hand, "token by token"),
        (states_flipped, "flip both along axis 1"),
        (lambda a, dh: dh * a, "g_t is not"),
        (lambda a, dh: adjoint(a, dh)[:, 1:], "expected shape"),
        (lambda a, dh: None, "returned nothing"),
    ],
)
def test_wrong_adjoints_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_03.check_adjoint(answer)
