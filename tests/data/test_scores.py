import numpy as np
import pytest

from dmm.data.scores import REFERENCE_RETURNS, family, normalize, normalized_score, reference_returns, usable_reference
from dmm.errors import InputError


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


@pytest.mark.parametrize(
    "env_id",
    [
        *("HopperBulletEnv-v0", "Hopper-v1", "Hopper-v5-mine", "mine/Hopper-v5", "Walker2DBulletEnv-v0"),
        *("AntMazeOfMine-v0", "AntMaze_UMazeDense-v5", "KitchenBot-v0", "FrankaKitchen-v1\n"),
    ],
)
def test_names_that_look_alike_are_others(env_id: str) -> None:
    assert family(env_id) is None
    with pytest.raises(InputError, match="no reference returns"):
        reference_returns(env_id)


@pytest.mark.parametrize("env_id", ["AntMaze_Large_Diverse_GR-v4", "antmaze-umaze-diverse-v2", "dmm/AntMaze-v0"])
def test_every_way_to_name_a_maze_of_d4rl(env_id: str) -> None:
    assert family(env_id) == "antmaze"


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
