from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.errors import InputError
from dmm.layers.local import DenseSequenceMixer, DepthwiseConv, ModalityMixer, ModalityState

MIXERS = [DenseSequenceMixer, DepthwiseConv, ModalityMixer]
D = 5


@pytest.fixture(autouse=True)
def seeded() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def tokens(length: int = 9, d: int = D) -> Tensor:
    return torch.randn(2, length, d, dtype=torch.float64, requires_grad=True)


def assert_same_with_gradients(ours: Tensor, other: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, other)
    weight = torch.randn_like(ours)
    pairs = (torch.autograd.grad((y * weight).sum(), inputs, retain_graph=True) for y in (ours, other))
    for gradient, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, expected)


class TestDenseSequenceMixer:
    @pytest.mark.parametrize("window", [1, 2, 6])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("length", [1, 4, 20])
    def test_equals_a_dense_causal_convolution(self, window: int, bias: bool, length: int) -> None:
        mixer, x = DenseSequenceMixer(D, window, bias).double(), tokens(length)
        padded = F.pad(x.mT, (window - 1, 0))
        conv = F.conv1d(padded, mixer.conv1d_weight(), mixer.linear.bias).mT
        assert_same_with_gradients(mixer(x), conv, [x, *mixer.parameters()])

    def test_window_is_flattened_oldest_token_first(self) -> None:
        # two channels, two tokens: y_t = W [x_{t-1}; x_t]
        mixer = DenseSequenceMixer(2, 2)
        mixer.linear.weight.data = torch.tensor([[1.0, 10.0, 100.0, 1000.0], [0.0, 0.0, 0.0, 1.0]])
        y = mixer(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
        # t = 0: the window is (0, 0, 1, 2); t = 1: it is (1, 2, 3, 4)
        assert y.tolist() == [[[2100.0, 2.0], [4321.0, 4.0]]]

    def test_kernel_of_the_convolution_by_hand(self) -> None:
        mixer = DenseSequenceMixer(2, 3)
        mixer.linear.weight.data = torch.arange(12.0).view(2, 6)
        assert mixer.conv1d_weight().shape == (2, 2, 3)
        # out channel 1, in channel 0, oldest to newest
        assert mixer.conv1d_weight()[1, 0].tolist() == [6.0, 8.0, 10.0]

    def test_window_of_one_is_a_linear_layer(self) -> None:
        mixer, x = DenseSequenceMixer(D, 1, bias=True).double(), tokens()
        torch.testing.assert_close(mixer(x), mixer.linear(x))

    @pytest.mark.parametrize(("bias", "count"), [(False, 6 * 64 * 64), (True, 6 * 64 * 64 + 64)])
    def test_parameter_count(self, bias: bool, count: int) -> None:
        assert sum(p.numel() for p in DenseSequenceMixer(64, 6, bias).parameters()) == count

    def test_has_no_bias_by_default(self) -> None:
        assert DenseSequenceMixer(D, 2).linear.bias is None


class TestDepthwiseConv:
    @pytest.mark.parametrize("window", [1, 2, 6])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("length", [1, 4, 20])
    def test_equals_torchs_grouped_convolution(self, window: int, bias: bool, length: int) -> None:
        mixer, x = DepthwiseConv(D, window, bias).double(), tokens(length)
        padded = F.pad(x.mT, (window - 1, 0))
        conv = F.conv1d(padded, mixer.conv1d.weight, mixer.conv1d.bias, groups=D).mT
        assert_same_with_gradients(mixer(x), conv, [x, *mixer.parameters()])

    def test_channels_do_not_mix(self) -> None:
        mixer, x = DepthwiseConv(D, 4).double(), tokens()
        changed = x.detach().clone()
        changed[..., 2] += 1
        difference = (mixer(changed) - mixer(x)).abs().amax(dim=(0, 1))
        assert difference.nonzero().flatten().tolist() == [2]

    def test_is_the_special_case_of_the_dense_mixer_with_diagonal_taps(self) -> None:
        depthwise, dense, x = DepthwiseConv(D, 3, bias=False).double(), DenseSequenceMixer(D, 3).double(), tokens()
        taps = torch.diag_embed(depthwise.conv1d.weight[:, 0].T)  # (w, d, d)
        dense.linear.weight.data = torch.cat(list(taps), dim=1)
        torch.testing.assert_close(dense(x), depthwise(x))


class TestModalityMixer:
    @pytest.mark.parametrize("window", [1, 2, 6])
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("length", [1, 2, 4, 20])
    def test_equals_three_dense_mixers_picked_by_hand(self, window: int, bias: bool, length: int) -> None:
        mixer, x = ModalityMixer(D, window, bias).double(), tokens(length)
        whole = [dense(x) for dense in mixer.mixers]  # each over all tokens
        picked = torch.stack([whole[t % 3][:, t] for t in range(length)], dim=1)
        used = [p for dense in mixer.mixers[:length] for p in dense.parameters()]
        assert_same_with_gradients(mixer(x), picked, [x, *used])

    def test_an_impulse_meets_the_taps_of_the_token_that_hears_it(self) -> None:
        # more tokens than channels and the other way round: a mixer that slices channels (`x[:, :, ::3]`) shows in both
        for d, length in ((2, 12), (12, 5)):
            mixer = ModalityMixer(d, 4)
            for modality, dense in enumerate(mixer.mixers):
                taps = torch.tensor([1000.0, 100.0, 10.0, 1.0]) * (modality + 1)  # oldest token first
                dense.linear.weight.data = torch.cat([tap * torch.eye(d) for tap in taps], dim=1)
            x = torch.zeros(1, length, d)
            x[0, 1] = torch.arange(1.0, d + 1)  # a state token, every channel with a value of its own
            expected = torch.zeros(length, d)
            for t in range(1, 5):
                expected[t] = x[0, 1] * (t % 3 + 1) * 10 ** (t - 1)
            assert torch.equal(mixer(x)[0], expected)

    def test_only_one_modality_hears_a_change_of_its_mixer(self) -> None:
        mixer, x = ModalityMixer(D, 3, bias=True).double(), tokens(9)
        before = mixer(x)
        mixer.mixers[1].linear.weight.data += 1
        moved = (mixer(x) - before).abs().amax(dim=(0, 2))
        assert moved.nonzero().flatten().tolist() == [1, 4, 7]

    def test_each_modality_sees_tokens_of_all(self) -> None:
        mixer, x = ModalityMixer(D, 3).double(), tokens(6)
        changed = x.detach().clone()
        changed[:, 3] += 1
        assert (mixer(changed) - mixer(x)).abs().amax(dim=(0, 2)).nonzero().flatten().tolist() == [3, 4, 5]

    def test_with_one_weight_for_all_it_is_the_dense_mixer(self) -> None:
        mixer, dense, x = (
            ModalityMixer(D, 4, bias=True).double(),
            DenseSequenceMixer(D, 4, bias=True).double(),
            tokens(),
        )
        for own in mixer.mixers:
            own.load_state_dict(dense.state_dict())
        torch.testing.assert_close(mixer(x), dense(x))

    @pytest.mark.parametrize("length", [1, 5])
    def test_gradcheck(self, length: int) -> None:
        mixer, x = ModalityMixer(2, 3, bias=True).double(), tokens(length, d=2)
        assert torch.autograd.gradcheck(lambda x, *weights: mixer(x), (x, *mixer.parameters()))

    def test_steps_can_begin_anywhere_in_a_time_step(self) -> None:
        mixer, x = ModalityMixer(D, 3).double(), tokens(5)
        state = ModalityState(x[:, :2].detach(), modality=2)
        y, after = mixer.step(x[:, 2], state)
        torch.testing.assert_close(y, mixer(x)[:, 2])
        assert after.modality == 0 and torch.equal(after.window, x[:, 1:3])

    @pytest.mark.parametrize(("bias", "count"), [(False, 3 * 6 * 64 * 64), (True, 3 * (6 * 64 * 64 + 64))])
    def test_parameter_count(self, bias: bool, count: int) -> None:
        assert sum(p.numel() for p in ModalityMixer(64, 6, bias).parameters()) == count


@pytest.mark.parametrize("mixer", MIXERS)
class TestEveryMixer:
    @pytest.mark.parametrize("window", [1, 2, 6])
    @pytest.mark.parametrize("bias", [True, False])
    def test_steps_equal_forward(self, mixer: Any, window: int, bias: bool) -> None:
        layer, x = mixer(D, window, bias).double(), tokens()
        state, outputs = layer.init_state(2), []
        remembered = state.window if mixer is ModalityMixer else state
        assert remembered.shape == (2, window - 1, D) and remembered.dtype == torch.float64
        for token in x.unbind(1):
            y, state = layer.step(token, state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), layer(x))

    @pytest.mark.parametrize("window", [1, 2, 6])
    @pytest.mark.parametrize("parts", [(9,), (3, 3, 3), (1, 4, 4), (2, 7)])
    def test_a_few_tokens_at_a_time_equal_forward(self, mixer: Any, window: int, parts: tuple[int, ...]) -> None:
        layer, x = mixer(D, window, True).double(), tokens()
        state, outputs = layer.init_state(2), []
        for part in x.split(parts, dim=1):
            y, state = layer.extend(part, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), layer(x))

    def test_absent_tokens_leave_no_trace(self, mixer: Any) -> None:
        layer, x = mixer(D, 4, True).double(), tokens()
        present = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])  # the first row begins with its third token
        first, state = layer.extend(x[:, :3], layer.init_state(2), present)
        rest, _ = layer.extend(x[:, 3:], state)
        begun = x.detach().clone()
        begun[0, :2] = 0
        torch.testing.assert_close(torch.cat([first, rest], 1)[0, 2:], layer(begun)[0, 2:])
        torch.testing.assert_close(torch.cat([first, rest], 1)[1], layer(x)[1])

    @pytest.mark.parametrize("window", [1, 3, 6])
    @pytest.mark.parametrize("t", [0, 2, 8])
    def test_a_token_reaches_as_far_as_the_window_and_not_back(self, mixer: Any, window: int, t: int) -> None:
        layer, x = mixer(D, window).double(), tokens()
        changed = x.detach().clone()
        changed[:, t] += 1
        difference = (layer(changed) - layer(x)).abs().amax(dim=(0, 2))
        assert difference.nonzero().flatten().tolist() == list(range(t, min(t + window, 9)))

    def test_tokens_before_the_first_count_as_zero(self, mixer: Any) -> None:
        layer, x = mixer(D, 4).double(), tokens()
        torch.testing.assert_close(layer(F.pad(x, (0, 0, 3, 0)))[:, 3:], layer(x))  # 3: one time step

    @pytest.mark.parametrize(("name", "d", "window"), [("d", 0, 2), ("window", 3, 0), ("window", 3, -1)])
    def test_size_below_one_is_named(self, mixer: Any, name: str, d: int, window: int) -> None:
        with pytest.raises(InputError, match=f"^{name}: got .*, allowed is a whole number of at least 1"):
            mixer(d, window)

    @pytest.mark.parametrize("shape", [(2, 9), (2, 9, D + 1), (1, 2, 9, D)])
    def test_input_of_another_shape_is_named(self, mixer: Any, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=rf"^x: got shape .*, allowed is \(b, l, {D}\)"):
            mixer(D, 2)(torch.zeros(shape))


class TestPaddedWindows:
    @pytest.mark.parametrize(("length", "window"), [(5, 7), (24, 6), (1, 3), (9, 1), (4, 4)])
    def test_outputs_and_gradients_equal_those_of_unfold(self, length: int, window: int) -> None:
        mixer = DenseSequenceMixer(3, window)
        x = torch.randn(2, length, 3, requires_grad=True)
        expected = F.pad(x, (0, 0, window - 1, 0)).unfold(1, window, 1)
        ours = mixer.windows(x)
        assert torch.equal(ours, expected)
        weights = torch.randn(expected.shape)
        (gradient,) = torch.autograd.grad((ours * weights).sum(), x)
        (by_unfold,) = torch.autograd.grad((expected * weights).sum(), x)
        torch.testing.assert_close(gradient, by_unfold)

    def test_gradients_equal_finite_differences(self) -> None:
        mixer = DenseSequenceMixer(2, 3)
        x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(mixer.windows, x)


@pytest.mark.parametrize("kind", MIXERS)
class TestBeyondFirstGradients:
    def test_gradients_of_gradients_equal_finite_differences(self, kind: type[Any]) -> None:
        mixer = kind(2, 3, bias=True).double()
        names, weights = zip(*mixer.named_parameters(), strict=True)

        def mix(x: Tensor, *values: Tensor) -> Any:
            return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), x)

        assert torch.autograd.gradgradcheck(mix, (tokens(4, 2), *weights))

    def test_forward_mode_vmap_and_hessian(self, kind: type[Any]) -> None:
        mixer, x, v = kind(2, 3, bias=True).double(), tokens(4, 2).detach(), torch.randn(2, 4, 2).double()

        def loss(x: Tensor) -> Tensor:
            return mixer(x).pow(3).sum()

        torch.testing.assert_close(torch.func.hessian(loss)(x), torch.autograd.functional.hessian(loss, x))
        expected = (torch.autograd.functional.jacobian(loss, x) * v).sum()
        torch.testing.assert_close(torch.func.jvp(loss, (x,), (v,))[1], expected)
        torch.testing.assert_close(torch.vmap(mixer)(torch.stack([x, v])), torch.stack([mixer(x), mixer(v)]))
