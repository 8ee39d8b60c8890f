import math

import pytest
import torch

from dmm.checks import CheckFailed, chapter_07
from dmm.models.dmm import DecisionMetaMamba, DMMConfig


def block(X, norm_1, dsm, norm_2, mamba):
    x = norm_1(X)
    z = norm_2(x + dsm(x))
    return z + mamba(z)


def released(X, norm_1, dsm, norm_2, mamba):
    h = X + dsm(norm_1(X))
    return h + mamba(norm_2(h))


def first_residual_raw(X, norm_1, dsm, norm_2, mamba):
    z = norm_2(X + dsm(norm_1(X)))
    return z + mamba(z)


def second_residual_raw(X, norm_1, dsm, norm_2, mamba):
    z = norm_1(X) + dsm(norm_1(X))
    return z + mamba(norm_2(z))


def no_first_norm(X, norm_1, dsm, norm_2, mamba):
    z = norm_2(X + dsm(X))
    return z + mamba(z)


def no_second_norm(X, norm_1, dsm, norm_2, mamba):
    z = norm_1(X) + dsm(norm_1(X))
    return z + mamba(z)


def one_norm_twice(X, norm_1, dsm, norm_2, mamba):
    return block(X, norm_1, dsm, norm_1, mamba)


def no_dsm_residual(X, norm_1, dsm, norm_2, mamba):
    z = norm_2(dsm(norm_1(X)))
    return z + mamba(z)


def no_mamba_residual(X, norm_1, dsm, norm_2, mamba):
    return mamba(norm_2(norm_1(X) + dsm(norm_1(X))))


def side_by_side(X, norm_1, dsm, norm_2, mamba):
    x = norm_1(X)
    return x + dsm(x) + mamba(x)


def dsm_last(X, norm_1, dsm, norm_2, mamba):
    return block(X, norm_1, mamba, norm_2, dsm)


def stack(X, norm_1, norm_2, layers, one=block):
    for dsm, mamba in layers:
        X = one(X, norm_1, dsm, norm_2, mamba)
    return X


def of(one):
    """A stack of wrong blocks."""
    return lambda *given: stack(*given, one=one)


def normed_once(X, norm_1, norm_2, layers):
    x = norm_1(X)
    for dsm, mamba in layers:
        z = norm_2(x + dsm(x))
        x = z + mamba(z)
    return x


def interleaved(*modalities):
    steps = min(x.shape[1] for x in modalities)
    turns = torch.stack([x[:, :steps] for x in modalities], 2).flatten(1, 2)
    return torch.cat([turns, *(x[:, steps:] for x in modalities)], 1)


def frame(R, s, a, mix):
    newest = torch.stack([R[:, -1], s[:, -1]], 1)
    past = torch.stack([R[:, :-1], s[:, :-1], a], 2).flatten(1, 2)
    return mix(torch.cat([past, newest], 1))[:, 1::3]


def frame_with_padding(R, s, a, mix):
    """An empty place for the action that is not known yet, which nothing can see."""
    a = torch.cat([a, torch.zeros_like(s[:, :1])], 1)
    return mix(torch.stack([R, s, a], 2).flatten(1, 2))[:, 1::3]


def backwards(R, s, a, mix):
    return mix(interleaved(*(x.flip(1) for x in (R, s, a))))[:, 1::3]


def late(R, s, a, mix):
    return mix(interleaved(R, s, torch.cat([torch.zeros_like(s[:, :1]), a], 1)))[:, 1::3]


def count(s, a, d, layers, w, *, norms=4, dsms=None, expand=1, rank=None, conv=0, dsm_bias=0, bias=1):
    """The right count, or a wrong one by its keywords."""
    rank = math.ceil(d / 16) if rank is None else rank
    e = expand * d
    mamba = 2 * e * d + e * (rank + 32) + (rank + 1) * e + 16 * e + e + e * d + conv
    frame = (1 + bias) * d + (s + bias) * d + (a + bias) * d + (d + bias) * a
    return frame + norms * 2 * d + (layers if dsms is None else dsms) * (w * d * d + dsm_bias) + layers * mamba


def built(s, a, d, layers, w):
    return DecisionMetaMamba(DMMConfig.released(s, a, width=d, layers=layers, window=w)).parameter_count()


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_07.check_stack, stack),
        (chapter_07.check_frame, frame),
        (chapter_07.check_frame, frame_with_padding),
        (chapter_07.check_count, count),
        (chapter_07.check_count, lambda *sizes: float(count(*sizes))),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_block_check_follows_the_default_precision(default):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        chapter_07.check_stack(stack)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("sizes", [(11, 3, 64, 3, 6), (17, 6, 32, 3, 6), (4, 2, 40, 2, 3), (3, 1, 16, 1, 1)])
def test_the_count_is_that_of_the_model(sizes):
    s, a, d, layers, w = sizes
    policy = DecisionMetaMamba(DMMConfig.released(s, a, width=d, layers=layers, window=w))
    assert count(*sizes) == policy.parameter_count()


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (of(released), "both residuals start from the raw input"),
        (of(first_residual_raw), "the first residual starts from the raw input"),
        (of(second_residual_raw), "the second residual starts from Z"),
        (of(no_first_norm), "the first norm is missing"),
        (of(no_second_norm), "the second norm is missing"),
        (of(one_norm_twice), "the first norm is used twice"),
        (of(no_dsm_residual), "the residual around the DSM is missing"),
        (of(no_mamba_residual), "the residual around Mamba is missing"),
        (of(side_by_side), "side by side"),
        (of(dsm_last), "the DSM comes last"),
        (lambda X, one, two, layers: stack(X, one, two, layers[:1]), "only the first layer"),
        (lambda X, one, two, layers: stack(X, one, two, layers[-1:]), "only the last layer"),
        (lambda X, one, two, layers: stack(X, one, two, layers[::-1]), "layers are in reverse order"),
        (lambda X, one, two, layers: stack(X, two, one, layers), "norms are swapped"),
        (normed_once, "only the first layer is normed"),
        (lambda X, *parts: X, "not equation 3"),
        (lambda X, *parts: stack(X, *parts)[0], "expected shape"),
        (lambda X, *parts: None, "returned nothing"),
    ],
)
def test_wrong_stacks_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_07.check_stack(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda R, s, a, mix: mix(torch.cat([R, s, a], 1))[:, 1::3], "all returns come first"),
        (lambda R, s, a, mix: mix(interleaved(s, R, a))[:, ::3], "yours is state, return, action$"),
        (lambda R, s, a, mix: mix(interleaved(s, R, a))[:, 1::3], "and the outputs are those of the returns"),
        (backwards, "time runs backwards"),
        (late, "one step late"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, ::3], "one too early"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, 2::3], "one too late"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, : s.shape[1]], "first k tokens"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, 1 : s.shape[1] + 1], "tokens 1 to k"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, -s.shape[1] :], "last k tokens"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, -1], "only the newest output"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a)), "all tokens came back"),
        (lambda R, s, a, mix: (mix(interleaved(R, s, a)), s)[1], "not what mix made"),
        (lambda R, s, a, mix: s, "not what mix made"),
        (lambda R, s, a, mix: mix(R), "mix was given"),
        (lambda R, s, a, mix: mix(torch.stack([R, s], 2)), "mix was given"),
        (lambda R, s, a, mix: mix(interleaved(R, s, a))[:, [1, -1]], "not the outputs at tokens|expected shape"),
        (lambda R, s, a, mix: None, "returned nothing"),
    ],
)
def test_wrong_frames_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_07.check_frame(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *n: count(*n, norms=2 + 2 * n[3]), "norms of its own"),
        (lambda *n: count(*n, dsms=1), "one DSM for all layers"),
        (lambda *n: count(*n, dsm_bias=n[2]), "the DSM has a bias"),
        (lambda *n: count(*n, dsm_bias=n[4] * n[2] - n[4] * n[2] ** 2), "the DSM is depth-wise"),
        (lambda *n: count(*n[:4], 1), "the window is left out"),
        (lambda *n: count(*n, bias=0), "biases of the embeddings and the head"),
        (lambda *n: count(*n, norms=3), "one LayerNorm is missing"),
        (lambda *n: count(*n, norms=2), "two of the four LayerNorms"),
        (lambda *n: count(*n, norms=0), "the LayerNorms are forgotten"),
        (lambda *n: count(*n) - 3 * n[2], "biases of the embeddings are forgotten"),
        (lambda *n: count(*n) - n[1], "the head's bias"),
        (lambda *n: count(*n, expand=2), "this has expand 2"),
        (lambda *n: count(*n, conv=5 * n[2]), "convolution is still there"),
        (lambda *n: count(*n, conv=-16 * n[2]), "Mamba's A is forgotten"),
        (lambda *n: count(*n, conv=-n[2]), "d is missing in each layer"),
        (lambda *n: count(*n, rank=n[2] // 16), "is rounded down"),
        (lambda *n: count(*n, rank=int(n[2] / 16 + 0.5)), "to the nearest"),
        (lambda *n: count(*n, rank=4), "4 at every width"),
        (built, "a model was built"),
        (lambda *n: count(*n) + 7, "too many by 7, for state_size = 4"),
        (lambda *n: "many", "expected numbers"),
        (lambda *n: None, "returned nothing"),
    ],
)
def test_wrong_counts_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_07.check_count(answer)
    assert "\n" not in str(caught.value)
