from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmm.errors import InputError
from dmm.layers.local import ModalityConv


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def by_hand(conv: ModalityConv, x: Tensor) -> Tensor:
    """Each convolution over all tokens; of each, the outputs at its own modality."""
    padded = F.pad(x.mT, (conv.window - 1, 0))
    outputs = [layer(padded).mT for layer in conv.convs]
    return torch.stack([outputs[t % conv.modalities][:, t] for t in range(x.shape[1])], dim=1)


@pytest.mark.parametrize(("modalities", "window", "length"), [(3, 6, 12), (2, 5, 8), (3, 1, 7), (3, 9, 4), (1, 3, 5)])
class TestModalityConv:
    def test_kernel_is_that_of_the_output(self, modalities: int, window: int, length: int) -> None:
        conv, x = ModalityConv(4, window, modalities).double(), torch.randn(2, length, 4, dtype=torch.float64)
        torch.testing.assert_close(conv(x), by_hand(conv, x))
        for kind in range(min(modalities, length)):
            torch.testing.assert_close(conv.at(x, kind), by_hand(conv, x)[:, kind::modalities])

    def test_gradients_and_theirs(self, modalities: int, window: int, length: int) -> None:
        conv = ModalityConv(2, window, modalities).double()
        x = torch.randn(1, length, 2, dtype=torch.float64, requires_grad=True)
        weights = [layer.weight for layer in conv.convs]
        assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, *weights))
        assert torch.autograd.gradgradcheck(lambda x, *_: conv(x), (x, *weights))

    def test_a_few_tokens_at_a_time_equal_forward(self, modalities: int, window: int, length: int) -> None:
        conv, x = ModalityConv(4, window, modalities).double(), torch.randn(2, length, 4, dtype=torch.float64)
        for step in (1, 2, 3, length):
            state, parts = conv.init_state(2), []
            for part in x.split(step, dim=1):
                y, state = conv.extend(part, state)
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts, dim=1), conv(x))

    def test_under_transforms_of_torch(self, modalities: int, window: int, length: int) -> None:
        conv, x = ModalityConv(4, window, modalities).double(), torch.randn(3, 2, length, 4, dtype=torch.float64)
        torch.testing.assert_close(torch.func.vmap(conv)(x), torch.stack([conv(each) for each in x]))


def test_starts_as_torchs_convolutions_do() -> None:
    conv = ModalityConv(512, 6)
    limit = 6**-0.5
    for layer in conv.convs:
        for weight in layer.parameters():
            assert weight.abs().max() <= limit and weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.1)


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match=r"^x: got shape \(2, 3, 5\), allowed is \(b, l, 4\)$"):
        ModalityConv(4, 6)(torch.zeros(2, 3, 5))
    with pytest.raises(InputError, match=r"^modalities: got 0"):
        ModalityConv(4, 6, 0)
