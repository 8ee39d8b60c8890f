import numpy as np
import pytest

from dmm.checks import CheckFailed, chapter_09
from dmm.models.dmm import DecisionMetaMamba, DMMConfig


def report(returns):
    scores = returns.mean(-1)
    return scores[-1, 0], scores.max()


def fresh(returns):
    return returns[returns[:, ::2].mean(1).argmax(), 1::2].mean()


def count(s, a, d, layers, *, rank=None, outside=0, inside=0):
    """The right count, and `outside` more in all and `inside` more per layer."""
    rank = -(-d // 16) if rank is None else rank
    embeddings = 2 * d + (s + 1) * d + (a + 1) * d + 2 * d
    mamba = 3 * d * d + d * (rank + 32) + rank * d + d + 17 * d
    return embeddings + 6 * d + 6 * d * d + layers * (mamba + inside) + d * a + a + outside


@pytest.mark.parametrize(
    ("check", "answer"),
    [(chapter_09.check_report, report), (chapter_09.check_fresh, fresh), (chapter_09.check_count, count)],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


def test_the_count_is_that_of_table_4():
    assert count(11, 3, 64, 3) == 74_435 and count(17, 6, 32, 3) == 21_862
    config = DMMConfig.released(11, 3, share_dsm=True)
    assert DecisionMetaMamba(config).parameter_count() == 74_435


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda r: report(r)[::-1], "swapped"),
        (lambda r: (r[-1].mean(), report(r)[1]), "mean over all targets"),
        (lambda r: (r.mean(-1)[-1, -1], report(r)[1]), "this is the last target"),
        (lambda r: (r.mean(-1)[0, 0], report(r)[1]), "this is the first checkpoint"),
        (lambda r: (r.mean(-1)[-1].max(), report(r)[1]), "no choosing here"),
        (lambda r: (r.mean(), report(r)[1]), "mean over everything"),
        (lambda r: (r[-1, 0, -1], report(r)[1]), "last: this is a single episode"),
        (lambda r: (report(r)[0], r.max()), "best single episode"),
        (lambda r: (report(r)[0], r.max((0, 1)).mean()), "of each one's best"),
        (lambda r: (report(r)[0], r.mean(-1)[:, 0].max()), "first target only"),
        (lambda r: (report(r)[0], r.mean(-1)[-1].max()), "last checkpoint only"),
        (lambda r: (report(r)[0], r.mean((1, 2)).max()), "mean over targets"),
        (lambda r: (report(r)[0], r.mean()), "mean of all scores"),
        (lambda r: (0.0, report(r)[1]), "last: expected"),
        (lambda r: (report(r)[0], 0.0), "best: expected"),
        (lambda r: report(r)[0], "expected shape"),
        (lambda r: None, "returned nothing"),
    ],
)
def test_wrong_reports_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_09.check_report(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda r: r[:, ::2].mean(1).max(), "half that chose"),
        (lambda r: r[:, 1::2].mean(1).max(), "by the half that is reported"),
        (lambda r: r[r[:, 1::2].mean(1).argmax(), ::2].mean(), "swapped"),
        (lambda r: r.mean(1).max(), "best-of-all"),
        (lambda r: r[r.mean(1).argmax(), 1::2].mean(), "chosen by all episodes"),
        (lambda r: r[r[:, ::2].mean(1).argmax()].mean(), "leave out those that chose"),
        (lambda r: r[:, ::2].mean(1).argmax(), "number of the checkpoint"),
        (lambda r: r[-1, 1::2].mean(), "last checkpoint"),
        (lambda r: r[r[:, :20].mean(1).argmax(), 20:].mean(), "first and second"),
        (lambda r: fresh(r.T), "axes are exchanged"),
        (lambda r: 0.0, "expected"),
        (lambda r: r.mean(1), "expected shape"),
        (lambda r: None, "returned nothing"),
    ],
)
def test_wrong_choices_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_09.check_fresh(answer)
    assert "\n" not in str(caught.value)


def test_mistakes_of_the_honest_choice_can_be_told_apart():
    seen = []
    chapter_09.check_fresh(lambda r: seen.append(r) or fresh(r))
    even, odd, whole = seen[0][:, ::2].mean(1), seen[0][:, 1::2].mean(1), seen[0].mean(1)
    assert len({int(means.argmax()) for means in (even, odd, whole)}) == 3
    assert not np.isclose(odd[even.argmax()], seen[0][seen[0][:, :20].mean(1).argmax(), 20:].mean())


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda s, a, d, n: count(s, a, d, n, outside=(n - 1) * 6 * d * d), "one for all layers"),
        (lambda s, a, d, n: count(s, a, d, n, outside=(n - 1) * 4 * d), "pair of LayerNorms"),
        (lambda s, a, d, n: count(s, a, d, n, outside=d), "DSM has no bias"),
        (lambda s, a, d, n: count(s, a, d, n, outside=-4 * d * d), "tokens, not steps"),
        (lambda s, a, d, n: count(s, a, d, n, inside=-d), "Mamba's D, or the bias of dt_proj"),
        (lambda s, a, d, n: count(s, a, d, n, inside=5 * d), "convolution is still counted, 5 d"),
        (lambda s, a, d, n: count(s, a, d, n, inside=4 * d), "convolution is still counted, 4 d"),
        (lambda s, a, d, n: count(s, a, d, n, rank=4), "not always 4"),
        (lambda s, a, d, n: count(s, a, d, n, inside=-16 * d), "those of A"),
        (lambda s, a, d, n: count(s, a, d, n, inside=-17 * d), "A and D are missing"),
        (lambda s, a, d, n: count(s, a, d, n, inside=3 * d * d + 2 * d * -(-d // 16) + 50 * d), "expand 2"),
        (lambda s, a, d, n: count(s, a, d, n, inside=-d * d), "two branches"),
        (lambda s, a, d, n: count(s, a, d, n, rank=d // 16), "rounded up"),
        (lambda s, a, d, n: count(s, a, d, n, outside=-3 * d), "bias each"),
        (lambda s, a, d, n: count(s, a, d, n, outside=-2 * d), "2 d numbers"),
        (lambda s, a, d, n: count(s, a, d, n, outside=-a), "head has a bias"),
        (lambda s, a, d, n: count(s, a, d, n, outside=-(d * a + a)), "head is missing"),
        (lambda s, a, d, n: count(s, a, d, 1), "one layer's Mamba"),
        (lambda s, a, d, n: count(s, a, d, n, outside=7), "7 too many"),
        (lambda s, a, d, n: count(s, a, d, n, outside=-7), "7 too few"),
        (lambda s, a, d, n: count(s, a, d, n) + (s == 17), r"count\(17, 6, 32, 3\)"),
        (lambda s, a, d, n: None, "returned nothing"),
    ],
)
def test_wrong_counts_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_09.check_count(answer)
    assert "\n" not in str(caught.value)


def test_the_expand_of_two_is_the_models_own():
    def doubled(s, a, d, layers):
        config = DMMConfig.released(s, a, share_dsm=True, width=d, layers=layers, expand=2)
        return DecisionMetaMamba(config).parameter_count()

    with pytest.raises(CheckFailed, match="expand 2"):
        chapter_09.check_count(doubled)
