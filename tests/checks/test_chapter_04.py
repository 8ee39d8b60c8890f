import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dmm.checks import CheckFailed, chapter_04
from dmm.layers.mamba import MambaBlock
from tests.mamba_ssm_reference import arrays
from tests.peers import official_block


def conv(x, taps, bias, left=None):
    """With torch's own convolution, which is what the exercise rules out."""
    left = taps.shape[1] - 1 if left is None else left
    padded = F.pad(x.mT, (left, taps.shape[1]))
    return F.conv1d(padded, taps[:, None], bias, groups=len(taps)).mT[:, : x.shape[1]]


def by_slices(x, taps, bias):
    width = taps.shape[1]
    padded = torch.cat([x.new_zeros(len(x), width - 1, x.shape[2]), x], 1)
    return bias + sum(taps[:, i] * padded[:, i : i + x.shape[1]] for i in range(width))


def by_windows(x, taps, bias):
    return (F.pad(x, (0, 0, taps.shape[1] - 1, 0)).unfold(1, taps.shape[1], 1) * taps).sum(-1) + bias


def first_repeated(x, taps, bias):
    more = taps.shape[1] - 1
    return conv(torch.cat([x[:, :1]] * more + [x], 1), taps, bias)[:, more:]


def taps_by_channels(x, taps, bias):
    width = x.shape[2]
    padded = F.pad(x, (0, 0, width - 1, 0))
    return bias + sum(taps[:, i] * padded[:, i : i + x.shape[1]] for i in range(width))


def too_few_zeros(x, taps, bias):
    width = taps.shape[1]
    padded = torch.cat([torch.zeros_like(x[:, : width - 1]), x], 1)
    return bias + sum(taps[:, i] * padded[:, i : i + x.shape[1]] for i in range(width))


def mixed_conv(x, taps, bias):
    return conv(x, taps, bias) + 0.1 * x.sum(-1, keepdim=True)


def mixed_batch(x, taps, bias):
    return conv(x, taps, bias) + 0.1 * x.sum(0, keepdim=True)


def spoilt_token(x, taps, bias):
    v = conv(x, taps, bias)
    v[:, 3] += 1
    return v


def step(block, token, conv, ssm):
    x, z = block.in_proj(token).chunk(2, -1)
    window = torch.cat([conv, x[..., None]], -1)
    u = F.silu((window * block.conv1d.weight[:, 0]).sum(-1) + block.conv1d.bias)
    low, B, C = block.x_proj(u).split([block.rank, block.state_size, block.state_size], -1)
    delta = F.softplus(block.dt_proj(low))
    ssm = torch.exp(-delta[..., None] * block.A_log.exp()) * ssm + (delta * u)[..., None] * B[:, None]
    return block.out_proj(((ssm * C[:, None]).sum(-1) + block.D * u) * F.silu(z)), window[..., 1:], ssm


def step_in_place(block, token, conv, ssm):
    out, conv, new = step(block, token, conv, ssm)
    ssm.copy_(new)
    return out, conv, ssm


def packaged(block, token, conv, ssm):
    out, state = block.step(token, type(block.init_state(1))(conv, ssm))
    return out, *state


def step_twice_biased(block, token, conv, ssm):
    twice = copy.deepcopy(block)
    twice.dt_proj.bias.mul_(2)
    return step(twice, token, conv, ssm)


def step_newest_first(block, token, conv, ssm):
    out, conv, ssm = step(block, token, conv.flip(-1), ssm)
    return out, conv.flip(-1), ssm


def step_from_zero(block, token, conv, ssm):
    return step(block, token, torch.zeros_like(conv), torch.zeros_like(ssm))


def bias(share, low=0.001, high=0.1):
    return torch.log(torch.expm1(low * (high / low) ** share))


def size(share, low=0.001, high=0.1):
    return low * (high / low) ** share


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_04.check_conv, by_slices),
        (chapter_04.check_conv, by_windows),
        (chapter_04.check_step, step),
        (chapter_04.check_bias, bias),
        (chapter_04.check_bias, lambda *range_: torch.log(torch.exp(size(*range_)) - 1)),
        (chapter_04.check_bias, lambda *range_: size(*range_) + torch.log(-torch.expm1(-size(*range_)))),
        (chapter_04.check_bias, lambda *range_: bias(*range_).numpy()),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


def test_checks_work_in_double_precision_too():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        chapter_04.check_conv(by_slices)
        chapter_04.check_step(step)
        chapter_04.check_bias(bias)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x, taps, bias: conv(x, taps, bias, left=0), "not after the last"),
        (conv, "torch's convolution made them"),
        (taps_by_channels, "not that of the channels"),
        (too_few_zeros, "too few for a sequence"),
        (lambda x, taps, bias: conv(x, taps, bias, left=(taps.shape[1] - 1) // 2), "half of the zeros"),
        (lambda x, taps, bias: conv(x, taps, bias, left=taps.shape[1] // 2), "on both sides"),
        (lambda x, taps, bias: conv(x, taps, bias, left=taps.shape[1]), "meets the token before it"),
        (lambda x, taps, bias: conv(x, taps.flip(1), bias), "reverse order"),
        (lambda x, taps, bias: conv(x, taps.T.contiguous(), bias), "channel for tap"),
        (
            lambda x, taps, bias: F.pad(x, (taps.shape[1] - 1, 0)).unfold(2, taps.shape[1], 1).mul(taps).sum(-1) + bias,
            "channel for token",
        ),
        (lambda x, taps, bias: conv(x, taps, 0 * bias), "bias is missing"),
        (first_repeated, "repeats the first"),
        (lambda x, taps, bias: conv(x, taps, bias)[:, taps.shape[1] - 1 :], "first w - 1 tokens are missing"),
        (lambda x, taps, bias: conv(F.pad(x, (0, 0, 0, taps.shape[1] - 1)), taps, bias), "w - 1 tokens too many"),
        (lambda x, taps, bias: conv(x, taps, bias).mT, "axes are swapped"),
        (mixed_conv, "channels mix"),
        (mixed_batch, "sequences of the batch mix"),
        (lambda x, taps, bias: conv(x, taps, bias) + x.mean(1, keepdim=True), "changing the last token"),
        (lambda x, taps, bias: conv(x, taps, bias) + x.cumsum(1), "window is too long"),
        (lambda x, taps, bias: conv(x, taps * (taps != taps[:, :1]), bias), "window is too short"),
        (spoilt_token, "differs first at token 3"),
        (lambda x, taps, bias: x[0], "expected shape"),
        (lambda x, taps, bias: None, "returned nothing"),
        (lambda x, taps, bias: F.conv1d(x.mT, taps[:, None], bias), "raised RuntimeError"),
    ],
)
def test_wrong_convolutions_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_04.check_conv(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"), [(wrong, f"^{re.escape(hint)}$") for hint, wrong in chapter_04._STEP_MISTAKES.items()]
)
def test_each_known_wrong_step_is_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_04.check_step(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (step_in_place, "changed its input ssm"),
        (packaged, "the package's step made them"),
        (step_twice_biased, "added twice"),
        (step_newest_first, "kept newest first"),
        (lambda block, token, conv, ssm: (*step(block, token, conv, ssm)[:2], ssm), "comes back unchanged"),
        (step_from_zero, "both states are taken for zero"),
        (lambda block, token, conv, ssm: (0.5 * token, conv, ssm), "differs from the block's own"),
        (lambda block, token, conv, ssm: step(block, token, conv, ssm)[:2], "return three things"),
        (lambda block, token, conv, ssm: step(block, token, conv, ssm)[0], "return three things"),
        (lambda block, token, conv, ssm: (*step(block, token, conv, ssm)[:2], ssm.mT), "ssm: expected shape"),
        (lambda block, token, conv, ssm: (step(block, token, conv, ssm)[0], F.pad(conv, (0, 1)), ssm), "conv: expec"),
        (lambda block, token, conv, ssm: None, "returned nothing"),
    ],
)
def test_other_wrong_steps_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_04.check_step(answer)


def of_steps(change):
    """What `change` makes of the step sizes."""
    return lambda *given: change(size(*given))


def linear(share, low=0.001, high=0.1):
    return low + share * (high - low)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda share, low=0.001, high=0.1: bias(share), "low and high are ignored"),
        (lambda share, low=0.001, high=0.1: bias(share, low), "high is ignored"),
        (lambda share: bias(share), "raised TypeError"),
        (size, "step size itself"),
        (of_steps(torch.log), "inverts exp, not softplus"),
        (of_steps(F.softplus), "not its inverse"),
        (of_steps(lambda step: torch.log(torch.exp(step) + 1)), "not its inverse"),
        (lambda *given: torch.log(torch.expm1(linear(*given))), "uniform, not log-uniform"),
        (linear, "the inverse of softplus is missing"),
        (lambda share, *range_: bias(1 - share, *range_), "low and high are swapped"),
        (of_steps(lambda step: torch.log(torch.expm1(torch.exp(torch.log10(step))))), "different bases"),
        (lambda *given: -bias(*given), "wrong sign"),
        (
            lambda share, low=0.001, high=0.1: torch.lerp(
                bias(0 * share, low, high), bias(0 * share + 1, low, high), share
            ),
            "before the inverse",
        ),
        (lambda *given: bias(*given) + 0.5, "softplus of the bias is"),
        (lambda share, *range_: torch.log(share), "NaN or infinity"),
        (lambda *given: bias(*given)[1:], "expected shape"),
        (lambda *given: None, "returned nothing"),
    ],
)
def test_wrong_biases_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_04.check_bias(answer)


class TestReference:
    def test_equals_our_block_with_its_weights(self):
        reference = chapter_04.mamba_ssm_reference()
        ours = MambaBlock(**reference.sizes)
        ours.load_state_dict(reference.weights, strict=True)
        torch.testing.assert_close(ours(reference.tokens), reference.output, rtol=1e-5, atol=1e-6)

    def test_official_block_still_answers_the_same(self):
        reference = chapter_04.mamba_ssm_reference()
        sizes = reference.sizes
        official = official_block(
            sizes["d"], d_state=sizes["state_size"], expand=sizes["expand"], d_conv=sizes["conv_width"]
        )
        official.load_state_dict(reference.weights, strict=True)
        torch.testing.assert_close(official(reference.tokens), reference.output, rtol=1e-5, atol=1e-6)

    def test_file_holds_what_the_command_writes(self):
        with np.load(chapter_04.REFERENCE, allow_pickle=False) as file:
            assert {name: file[name].shape for name in file} == {name: a.shape for name, a in arrays().items()}

    def test_no_mistake_can_hide_in_it(self):
        reference = chapter_04.mamba_ssm_reference()
        assert reference.weights["D"].std() > 0.5 and reference.output.std() > 1e-3
