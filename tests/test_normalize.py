import numpy as np
import pytest

from dmm.errors import InputError
from dmm.normalize import REFERENCE_RETURNS, normalize, normalized_score, reference_returns, usable_reference


@pytest.mark.parametrize("env_id", ["Hopper-v5", "HalfCheetah-v5", "Walker2d-v5", "FrankaKitchen-v1"])
def test_random_scores_0_and_expert_scores_100(env_id: str) -> None:
    low, high = reference_returns(env_id)
    np.testing.assert_allclose(
        normalized_score(np.array([low, (low + high) / 2, high]), env_id), [0, 50, 100], atol=1e-9
    )


def test_constants_are_those_of_d4rl() -> None:
    assert reference_returns("Hopper-v5") == (-20.272305, 3234.3)
    assert reference_returns("Walker2d-v5") == (1.629008, 4592.3)
    assert reference_returns("HalfCheetah-v5") == (-280.178953, 12135.0)
    assert reference_returns("AntMaze_UMaze-v5") == (0.0, 1.0)
    assert normalized_score(1590.0, "Hopper-v5") == pytest.approx(49.48, abs=0.01)


def test_unknown_environment_is_named_with_what_is_known() -> None:
    with pytest.raises(InputError) as caught:
        reference_returns("CartPole-v1")
    assert "CartPole-v1" in str(caught.value)
    assert all(family in str(caught.value) for family in REFERENCE_RETURNS)


@pytest.mark.parametrize(
    "reference",
    [
        (0.0, 0.0),
        (5, 1),
        (0.0, np.inf),
        (np.nan, 1.0),
        ("low", 1.0),
        (None, 1.0),
        (True, 2.0),
        (-1e308, 1.7e308),
        ([0], 1),
    ],
)
def test_references_that_are_of_no_use(reference: tuple) -> None:
    assert usable_reference(*reference) is None
    with pytest.raises(InputError, match=r"^reference: got .* allowed are two finite numbers"):
        normalize(np.zeros(3), reference)


def test_references_of_other_kinds_of_numbers() -> None:
    assert usable_reference(np.float32(1), 3) == (1.0, 3.0)
    with pytest.raises(InputError, match=r"^reference: got"):
        normalize(1.0, (1.0,))
