"""How far each model is from what its authors' own code computes: the golden files of the tests, in one table.

    python -m dmm.experiments.parity

Run it in a clone of the repository, where `tests/golden` is. Each of these files holds small random weights, inputs,
and what the authors' public code makes of them; `dmm.from_official` reads the weights, and the row says how far the
policy's numbers are from theirs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmm import from_official
from dmm.data.windows import HistoryWindows, TransitionWindows, Windows
from dmm.errors import InputError
from dmm.experiments import RESULTS, path_argument, write_result
from dmm.models.entry import Source
from dmm.models.registry import MODELS
from dmm.models.rvs import GoalWindows
from dmm.models.waypoints import ConditionWindows

PART, OTHER_LOSS = "maze/", "grads/waypoint/"
"""What gradients of QLDT's maze network stand behind, and those of WT's first stage, which has a loss of its own."""
GOLDEN = Path(__file__).parents[2] / "tests" / "golden"
Arrays = Mapping[str, Tensor]


def frame_windows(arrays: Arrays, policy: Any) -> Windows:
    """As most files have them: padded on the left."""
    names = ("raw_returns_to_go", "raw_states", "actions", "raw_timesteps", "mask")
    returns, states, actions, times, mask = (arrays[f"inputs/{name}"] for name in names)
    return Windows(returns, states, actions, times, mask.bool())


def released_windows(arrays: Arrays, policy: Any) -> Windows:
    """Of the released DMM: no padding, returns as the network gets them."""
    states = arrays["inputs/states"]
    b, k = states.shape[:2]
    returns, times = arrays["inputs/rtg"] * policy.config.rtg_scale, torch.zeros(b, k, dtype=torch.int64)
    return Windows(returns, states, arrays["inputs/actions"], times, torch.ones(b, k, dtype=torch.bool))


def single_steps(arrays: Arrays, policy: Any) -> Windows:
    """Of RvS: rows without order, here windows of one step; the average return is that over all that remain."""
    states, actions, condition = (arrays[f"inputs/{each}"][:, None] for each in ("states", "actions", "condition"))
    mask = torch.ones(states.shape[:2], dtype=torch.bool)
    times, nothing = torch.zeros_like(mask, dtype=torch.int64), torch.zeros(*mask.shape, 1)
    if "goals" in policy.batch.__annotations__:
        return GoalWindows(nothing, states, actions, times, mask, goals=condition)
    return Windows(condition * policy.config.longest, states, actions, times, mask)


def history_windows(arrays: Arrays, policy: Any) -> HistoryWindows:
    """Of DS4 and StARformer, which read the action before; the latter's files have -10 before an episode's first."""
    mask, before = arrays["inputs/mask"], arrays["inputs/previous_actions"]
    nothing = torch.zeros(*mask.shape, 1)
    begins = (before == -10).all(-1) & mask
    times = torch.where(begins, 0, 1 + torch.arange(mask.shape[1]).expand(mask.shape)) * mask
    return HistoryWindows(
        returns_to_go=arrays.get("inputs/returns_to_go", nothing),
        states=arrays["inputs/states"],
        actions=arrays["inputs/target_actions"],
        timesteps=times,
        mask=mask,
        rewards=arrays.get("inputs/rewards", nothing),
        previous_actions=torch.where(before == -10, 0.0, before),
        previous_rewards=nothing,
    )


def transition_windows(arrays: Arrays, policy: Any) -> TransitionWindows:
    """Of EDT: padded on the right, returns and rewards scaled, states z-scored."""
    found = {each: arrays[f"inputs/{each}"] for each in ("states", "actions", "timesteps", "mask", "next_states")}
    scaled = {each: arrays[f"inputs/{each}"] * policy.config.rtg_scale for each in ("returns_to_go", "rewards")}
    return TransitionWindows(**found, **scaled, ended=torch.zeros(*found["mask"].shape, 1))


def condition_windows(arrays: Arrays, policy: Any) -> ConditionWindows:
    """Of WT: windows with a goal or two returns."""
    found = {each: arrays[f"inputs/{each}"] for each in ("states", "actions", "condition", "mask")}
    times = torch.zeros_like(found["mask"], dtype=torch.int64)
    return ConditionWindows(**found, returns_to_go=torch.zeros(*times.shape, 1), timesteps=times)


@dataclass(frozen=True)
class Case:
    """A golden file: of which model, how its inputs become a batch, and under which keys its numbers are.

    Without `batch` it is the authors' network for mazes of states and actions that are numbers (QLDT).
    """

    file: str
    model: str
    batch: Callable[[Arrays, Any], Windows] | None
    actions: str = "outputs/actions"
    loss: str = "loss/total"
    target: str = ""  # actions of the loss, where they are not those that the network sees

    def compute(self, arrays: Arrays, policy: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What is predicted of all steps, which of them are real, and the loss."""
        if self.batch is None:
            rows = arrays["inputs/maze/windows"]
            mask = torch.ones(rows.shape[:2], dtype=torch.bool)
            return policy(rows), mask, policy.loss(rows, arrays["inputs/maze/targets"])
        batch = self.batch(arrays, policy)
        actions = policy(batch)
        if self.target:
            return actions, batch.mask, (actions - arrays[self.target]).square().mean()
        return actions, batch.mask, torch.stack(list(policy.loss(batch).values())).sum()


FRAME: dict[str, Any] = {"batch": frame_windows, "actions": "outputs/action_preds", "loss": "loss"}
RELEASED: dict[str, Any] = {"batch": released_windows, "loss": "loss", "target": "inputs/target"}
CASES = (
    Case("dmm_released_hopper", "dmm-released", **RELEASED),
    Case("dmm_released_antmaze", "dmm-released", **RELEASED),
    Case("dt", "dt", **FRAME),
    Case("dc", "dc", **FRAME),
    Case("dc_no_actions", "dc-no-actions", **FRAME),
    Case("dm", "dm", **FRAME),
    Case("dm_multigrained", "dm-multigrained", **FRAME),
    Case("dm_multigrained_mlp", "dm-multigrained", **FRAME),
    Case("ds4_actor", "ds4", history_windows),
    Case("starformer", "starformer", history_windows),
    Case("starformer_imitation", "starformer", history_windows),
    Case("rvs_r", "rvs-r", single_steps),
    Case("rvs_g", "rvs-g", single_steps),
    Case("edt", "edt", transition_windows),
    Case("wt", "wt", condition_windows),
    Case("wt_goal", "wt", condition_windows),
    Case("qldt", "qldt", None, "outputs/maze/action_logits", "loss/maze/action"),
)


def compare(case: Case, folder: Path = GOLDEN) -> dict[str, Any]:
    """The row of one file: largest deviations of actions, loss and gradients, the latter two as shares.

    `actions` over all real steps of all windows; `episode` over the steps of a recorded episode that is played, None
    where the file has none; `loss` as a share of theirs; `gradients` as a share of the largest entry of each weight's
    own, the largest of `compared` weights.
    """
    file = folder / f"{case.file}.npz"
    if not file.is_file():
        raise InputError(
            f"golden: no file {file.name} in {folder}; the golden files come with a clone of the repository"
        )
    with np.load(file, allow_pickle=False) as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in stored.files if key != "config"}
        config = json.loads(str(stored["config"]))
    moments = {key: arrays[f"inputs/{key}"] for key in ("state_mean", "state_std") if f"inputs/{key}" in arrays}
    policy: Any = from_official(case.model, file, config | moments)
    actions, mask, loss = case.compute(arrays, policy)
    expected = arrays[case.actions].view(*mask.shape, -1)
    shares = gradient_shares(case.model, policy, loss, arrays)
    return {
        "model": case.model,
        "file": case.file,
        "source": MODELS[case.model].source,
        "numbers": expected[mask].numel(),
        "actions": float((actions.detach() - expected)[mask].abs().max()),
        "episode": played(policy, arrays) if "outputs/episode_actions" in arrays else None,
        "loss": float((loss.detach() - arrays[case.loss]).abs() / arrays[case.loss].abs()),
        "gradients": max(shares.values()),
        "compared": len(shares),
    }


def gradient_shares(model: str, policy: Any, loss: Tensor, arrays: Arrays) -> dict[str, float]:
    """By the authors' key of a weight: how far its gradient is from theirs, over their largest entry."""
    official = MODELS[model].official
    assert official is not None
    named = {_key(source): (ours, source) for ours, source in official.sources(policy).items()}
    weights, shares = dict(policy.named_parameters()), {}
    for key in [key for key in arrays if key.startswith("grads/") and not key.startswith(OTHER_LOSS)]:
        ours, source = named[key.removeprefix("grads/").removeprefix(PART)]
        expected = arrays[key] if isinstance(source, str) else source[1](arrays[key])
        (found,) = torch.autograd.grad(loss, weights[ours], retain_graph=True)
        shares[key] = float((found - expected).abs().max() / expected.abs().max())
    return shares


def played(policy: Any, arrays: Arrays) -> float:
    """The largest deviation of the actions in the recorded episode."""
    rewards, largest = arrays["episode/rewards"], 0.0
    state = policy.init_state(1, float(arrays["episode/target_return"]))
    for t, observation in enumerate(arrays["episode/observations"]):
        action, state = policy.act(state, observation[None], rewards[t - 1 : t] if t else None)
        largest = max(largest, float((action[0] - arrays["outputs/episode_actions"][t]).abs().max()))
    return largest


def _key(source: Source) -> str:
    return source if isinstance(source, str) else source[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold every model against its authors' own numbers.")
    parser.add_argument("--golden", type=path_argument, default=GOLDEN, help="where the golden files are")
    parser.add_argument("--out", type=path_argument, default=RESULTS / "parity.json", help="the result file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    write_result(args.out, {"files": [compare(case, args.golden) for case in CASES]})


if __name__ == "__main__":
    main()
