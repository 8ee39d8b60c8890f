import pytest
import torch
import torch.nn.functional as F

from dmm.checks import CheckFailed, chapter_06
from dmm.layers.local import DenseSequenceMixer, ModalityMixer


def windows(x, w, left=None, right=0):
    padded = F.pad(x, (0, 0, w - 1 if left is None else left, right))
    return padded.unfold(1, w, 1).mT.flatten(-2)


def modality(x, W, cut=windows, first=0):
    w = W.shape[-1] // x.shape[-1]
    flat = cut(x, w)
    y = torch.empty(*flat.shape[:2], W.shape[1])
    for m in range(3):
        y[:, m::3] = flat[:, m::3] @ W[(m + first) % 3].T
    return y


def by_channel(x, W):
    """The released slip: every third channel for every third token."""
    flat, y = windows(x, W.shape[-1] // x.shape[-1]), torch.empty_like(x)
    for m in range(3):
        y[:, :, m::3] = (flat @ W[m].T)[:, :, m::3]
    return y


def own_tokens_only(x, W):
    y = torch.empty_like(x)
    for m in range(min(3, x.shape[1])):
        y[:, m::3] = windows(x[:, m::3], W.shape[-1] // x.shape[-1]) @ W[m].T
    return y


def regrouped(x, W, sort):
    flat = windows(x, W.shape[-1] // x.shape[-1])
    each, third = [flat @ mixer.T for mixer in W], -(-x.shape[1] // 3)
    return torch.cat([each[m][:, m::3] if sort else each[m][:, m * third : (m + 1) * third] for m in range(3)], 1)


def flattened(change):
    def cut(x, w):
        return change(windows(x, w).unflatten(-1, (w, -1))).flatten(-2)

    return cut


def spoilt(x, W):
    y = modality(x, W)
    y[:, 4] += 1
    return y


def in_place(x, W):
    y = modality(x, W)
    x += 1
    return y


def to_linear(kernel):
    return kernel.mT.flatten(1)


def one_wrong_number(kernel):
    weight = to_linear(kernel).clone()
    weight[0, min(6, weight.shape[1] - 1)] += 1
    return weight


def step(x, state, W):
    window = torch.cat([state, x[:, None]], 1)
    return window.flatten(1) @ W.T, window[:, 1:]


def output(change):
    """A step whose state is right and whose window is changed."""

    def changed(x, state, W):
        return change(torch.cat([state, x[:, None]], 1)).flatten(1) @ W.T, step(x, state, W)[1]

    return changed


def memory(change):
    """A step whose output is right and whose state is changed."""

    def changed(x, state, W):
        y, _ = step(x, state, W)
        return y, change(x, state, y)

    return changed


def overwriting(x, state, W):
    y, new = step(x, state, W)
    state[:] = new
    return y, state


def ring(x, state, W):
    return step(x, state, W) if state.shape[1] else 1 // state.shape[1]


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_06.check_modality_mixer, modality),
        (chapter_06.check_to_linear, to_linear),
        (chapter_06.check_step, step),
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


def test_only_the_step_may_come_from_the_package():
    def packaged(x, W):
        mixer = ModalityMixer(x.shape[-1], W.shape[-1] // x.shape[-1]).to(W.dtype)
        for own, weight in zip(mixer.mixers, W, strict=True):
            own.linear.weight.data = weight
        return mixer(x)

    def packaged_step(x, state, W):
        mixer = DenseSequenceMixer(x.shape[-1], state.shape[1] + 1).to(W.dtype)
        mixer.linear.weight.data = W
        return list(mixer.step(x, state))

    with pytest.raises(CheckFailed, match="the package made them"):
        chapter_06.check_modality_mixer(packaged)
    chapter_06.check_step(packaged_step)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (by_channel, "^channel for token"),
        (own_tokens_only, "own modality only"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, w, left=0)), "forgotten padding"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, w, left=w)), "off by one: pad w - 1"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, w, right=w - 1)), "both sides"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, w, left=0, right=w - 1)), "zeros stand after"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, w, left=w // 2, right=(w - 1) // 2)), "window is centred"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, w, left=w)[:, :-1]), "end one token too early"),
        (lambda x, W: modality(x, W, flattened(lambda x: x.flip(-2))), "newest token first"),
        (lambda x, W: modality(x, W, flattened(lambda x: x.mT)), "channels before tokens"),
        (lambda x, W: modality(x, W, first=1), "shifted: .* the returns-to-go"),
        (lambda x, W: modality(x, W, first=2), "shifted: .* not W.2."),
        (lambda x, W: regrouped(x, W, sort=True), "sorted by modality"),
        (lambda x, W: regrouped(x, W, sort=False), "blocks of tokens"),
        (lambda x, W: sum(windows(x, W.shape[-1] // x.shape[-1]) @ mixer.T for mixer in W), "added up"),
        (lambda x, W: windows(x, W.shape[-1] // x.shape[-1]) @ W[0].T, r"all tokens go through W\[0\]"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, 6)), "window is hard-coded as 6"),
        (lambda x, W: modality(x, W, lambda x, w: windows(x, 3)), "window is hard-coded as 3"),
        (in_place, "changed its input"),
        (spoilt, "first at token 4, a state"),
        (lambda x, W: modality(x, W)[0], "expected shape"),
        (lambda x, W: windows(x, 3) @ W[0], "raised RuntimeError"),
        (lambda x, W: None, "returned nothing"),
    ],
)
def test_wrong_modality_mixers_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_06.check_modality_mixer(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda kernel: kernel.flatten(1), "^channel for token"),
        (lambda kernel: to_linear(kernel.flip(2)), "newest token first"),
        (lambda kernel: to_linear(kernel.flip(1)), "channels within a token"),
        (lambda kernel: to_linear(kernel).flip(1), "whole row is in reverse"),
        (lambda kernel: kernel.permute(1, 2, 0).reshape(len(kernel), -1), "has to stay in front"),
        (lambda kernel: kernel.reshape(len(kernel), kernel.shape[2], -1).mT.flatten(1), "reshaping does not swap"),
        (lambda kernel: to_linear(kernel).T, "transposed"),
        (lambda kernel: to_linear(kernel.transpose(0, 1)), "channel axes are swapped"),
        (lambda kernel: kernel.mT, "not flattened yet"),
        (lambda kernel: kernel[..., -1], "only one of the w taps"),
        (lambda kernel: kernel.permute(2, 0, 1), "the w blocks"),
        (one_wrong_number, "token 1 of the window .0 is the oldest., channel 2"),
        (lambda kernel: kernel[0], "expected shape"),
        (lambda kernel: None, "returned nothing"),
    ],
)
def test_wrong_weights_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_06.check_to_linear(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (output(lambda window: torch.cat([window[:, -1:], window[:, :-1]], 1)), "^newest token first: the window"),
        (output(lambda window: window.flip(1)), "whole window is in reverse"),
        (output(lambda window: F.pad(window, (0, 0, 1, 0))[:, :-1]), "does not see its own token"),
        (output(lambda window: F.pad(window[:, -1:], (0, 0, window.shape[1] - 1, 0))), "state is not used"),
        (output(lambda window: torch.cat([window[:, :-1].flip(0), window[:, -1:]], 1)), "of the batch are mixed"),
        (output(lambda window: window.mT.reshape(window.shape)), "^channel for token"),
        (output(lambda window: window + 1), "not that of the window"),
        (memory(lambda x, state, y: state.clone()), "never changes"),
        (memory(lambda x, state, y: torch.cat([state, y[:, None]], 1)[:, 1:]), "keeps outputs"),
        (
            memory(lambda x, state, y: torch.cat([x[:, None], state], 1)[:, : state.shape[1]]),
            "^newest token first: x enters",
        ),
        (
            memory(lambda x, state, y: torch.cat([state[:, :-1], x[:, None]], 1)[:, : state.shape[1]]),
            "replaces the newest",
        ),
        (memory(lambda x, state, y: F.pad(x[:, None], (0, 0, state.shape[1] - 1, 0))), "is emptied"),
        (memory(lambda x, state, y: torch.cat([state, x[:, None]], 1)), "keeps w tokens"),
        (memory(lambda x, state, y: state + 1), "not that of the window"),
        (overwriting, "changed its input state"),
        (ring, "a window of one token has an empty state"),
        (lambda x, state, W: step(x, state, W)[0], "return two things"),
        (lambda x, state, W: (step(x, state, W)[0][:, None], step(x, state, W)[1]), "has a token axis"),
        (lambda x, state, W: (step(x, state, W)[0].T, step(x, state, W)[1]), "expected shape"),
        (lambda x, state, W: step(x, state, W.T), "raised RuntimeError"),
        (lambda x, state, W: None, "returned nothing"),
    ],
)
def test_wrong_steps_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_06.check_step(answer)
    assert "\n" not in str(caught.value)
