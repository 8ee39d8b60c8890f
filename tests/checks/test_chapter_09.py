import itertools

import pytest

from dmm.checks import CheckFailed, chapter_09


def report(returns):
    scores = returns.mean(-1)
    return scores[-1, 0], scores.max()


def fresh(returns):
    return returns[returns[:, ::2].mean(1).argmax(), 1::2].mean()


def weights(s, a, d, layers, share_dsm, share_norms, expand):
    """Counted by hand, with no model."""
    e, rank = expand * d, -(-d // 16)
    mamba = 2 * e * d + e * (rank + 32) + (rank + 1) * e + 17 * e + e * d
    frame = 2 * d + (s + 1) * d + (a + 1) * d + (d + 1) * a + 2 * 2 * d
    return frame + (1 if share_norms else layers) * 4 * d + (1 if share_dsm else layers) * 6 * d * d + layers * mamba


EVERY = list(itertools.product((False, True), (False, True), (1, 2)))


def readings(total, *sizes):
    return [reading for reading in EVERY if weights(*sizes, *reading) == total]


def nearest(total, *sizes):
    off = {reading: abs(weights(*sizes, *reading) - total) for reading in EVERY}
    return [reading for reading in EVERY if off[reading] == min(off.values())]


@pytest.mark.parametrize(
    ("check", "answer"),
    [(chapter_09.check_report, report), (chapter_09.check_fresh, fresh), (chapter_09.check_readings, readings)],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize("convert", [lambda found: found[::-1], set, lambda found: [list(each) for each in found]])
def test_readings_may_come_in_any_order_and_kind(convert, capsys):
    chapter_09.check_readings(lambda *given: convert(readings(*given)))
    assert capsys.readouterr().out.startswith("Correct")


def test_the_only_reading_of_table_4():
    assert readings(74_435, 11, 3, 64, 3) == [(True, True, 1)] and readings(21_862, 17, 6, 32, 3) == [(True, True, 1)]


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
        (
            lambda r: (report(r)[0], r.mean(-1)[:-1].max() if len(r) > 1 else r.mean(-1).max()),
            "leaves the last checkpoint out",
        ),
        (lambda r: (0.0, report(r)[1]), "not the score that was asked for"),
        (lambda r: (report(r)[0], 0.0), "not the score"),
        (lambda r: report(r)[0], "return two things: last and best"),
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
        (lambda r: r[r[:, : r.shape[1] // 2].mean(1).argmax(), r.shape[1] // 2 :].mean(), "first and second"),
        (lambda r: fresh(r.T), "axes are exchanged"),
        (lambda r: r[r[:, ::2].max(1).argmax(), 1::2].mean(), "chosen by the best episode"),
        (lambda r: r[r[:, ::2].min(1).argmax(), 1::2].mean(), "chosen by the worst episode"),
        (lambda r: r[1::2][r[::2].mean(1).argmax()].mean() if len(r) > 1 else 1 // 0, "checkpoints are split"),
        (lambda r: 0.0, "expected"),
        (lambda r: r.mean(1), "expected shape"),
        (lambda r: None, "returned nothing"),
    ],
)
def test_wrong_choices_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_09.check_fresh(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda *given: readings(*given)[:1], "only the first reading"),
        (lambda *given: readings(*given)[-1:], "only the last reading"),
        (lambda *given: [each for each in readings(*given) if each[2] == 1], "expand is taken for 1"),
        (lambda *given: [each for each in readings(*given) if each[0]], "a DSM for each layer is never considered"),
        (lambda *given: [each for each in readings(*given) if each[1]], "norms of each layer's own"),
        (lambda *given: [(norms, dsm, e) for dsm, norms, e in readings(*given)], "are swapped"),
        (lambda *given: [(not dsm, not norms, e) for dsm, norms, e in readings(*given)], "True and False are swapped"),
        (nearest, "the nearest counts"),
        (lambda total, *sizes: [each for each in EVERY if weights(*sizes, *each) <= total], "at most so many"),
        (lambda *given: [], "expected shape"),
        (lambda *given: len(readings(*given)), "return a list of"),
        (lambda *given: None, "returned nothing"),
    ],
)
def test_wrong_readings_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_09.check_readings(answer)
    assert "\n" not in str(caught.value)
