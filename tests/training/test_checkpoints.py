from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dmm
from dmm.data.trajectories import Trajectories
from dmm.data.windows import WindowSampler
from dmm.errors import InputError
from dmm.models.dmh import DecisionMambaHybrid, DMHConfig
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.policy import action_loss
from dmm.training.checkpoints import (
    MOMENTS,
    policy_tensors,
    read_checkpoint,
    require_weights,
    restore_generator,
    write_atomically,
    write_checkpoint,
)

Pair = tuple[DecisionMetaMamba, torch.optim.AdamW]
GENERATORS = {"sampler": torch.Generator().manual_seed(7).get_state(), "torch": torch.Generator().get_state()}


def make(seed: int, **changes: Any) -> Pair:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 3, "width": 8, "layers": 2}
        policy = DecisionMetaMamba(DMMConfig(**(sizes | changes)))
    return policy, torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.01)


def moments(pair: Pair) -> dict[str, dict[str, torch.Tensor]]:
    """What the optimizer keeps, by name, as it is or as zeros before its first step."""
    policy, optimizer = pair
    for parameter in optimizer.param_groups[0]["params"]:
        if not optimizer.state[parameter]:
            state = {"step": torch.zeros(())} | {name: torch.zeros_like(parameter) for name in MOMENTS[1:]}
            optimizer.state[parameter] = state
    return {name: optimizer.state[weight] for name, weight in policy.named_parameters() if weight.requires_grad}


@pytest.fixture
def train_two_steps(trajectories: Trajectories) -> Callable[[Pair], None]:
    def train(pair: Pair) -> None:
        policy, optimizer = pair
        sampler = WindowSampler(trajectories, 3, generator=torch.Generator().manual_seed(0))
        for _ in range(2):
            windows = sampler.sample(4)
            optimizer.zero_grad()
            action_loss(policy.eval()(windows), windows).backward()
            optimizer.step()

    return train


@pytest.fixture
def saved(tmp_path: Path, train_two_steps: Callable[[Pair], None]) -> tuple[Path, Pair]:
    """A checkpoint and what is in it."""
    pair, path = make(0), tmp_path / "checkpoint.safetensors"
    pair[0].set_state_moments(torch.arange(4.0), torch.full((4,), 2.0))
    train_two_steps(pair)
    write_checkpoint(path, pair[0], moments(pair), GENERATORS, step=2, seconds=1.25)
    return path, pair


def assert_same_tensors(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == other.keys()
    assert [name for name in other if not torch.equal(ours[name], other[name])] == []


def _names(path: Path) -> list[str]:
    """Of a policy's tensors in a file."""
    return [name.removeprefix("policy.") for name in load_file(path) if name.startswith("policy.")]


class TestRoundTrip:
    def test_weights_and_moments_of_states_come_back(self, saved: tuple[Path, Pair]) -> None:
        path, (policy, _) = saved
        other, _ = make(1)
        read_checkpoint(path, other)
        assert_same_tensors(other.state_dict(), policy.state_dict())
        assert other.state_mean.tolist() == [0, 1, 2, 3]

    @pytest.mark.parametrize("older", [False, True])
    def test_constants_are_not_kept_and_passed_over_in_older_files(self, tmp_path: Path, older: bool) -> None:
        """Those of a worker of groups: whole numbers, and minus infinity where nothing may be looked at."""
        path, sizes = tmp_path / "checkpoint.safetensors", {"groups": 3, "interval": 2, "width": 8}
        config = DMHConfig(state_size=4, action_size=2, window="group", **sizes)
        torch.manual_seed(0)
        policy, other = DecisionMambaHybrid(config), DecisionMambaHybrid(config)
        write_checkpoint(path, policy, {}, GENERATORS, step=2, seconds=1.0)
        constants = dict(policy.named_buffers()).keys() - policy.state_dict().keys()
        assert {"worker.where", "worker.bias", "worker.offsets"} == constants
        if older:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            held = {f"policy.{name}": buffer for name, buffer in policy.named_buffers() if name in constants}
            save_file(load_file(path) | held, path, metadata=metadata)
        assert any(name in constants for name in _names(path)) is older
        require_weights(path, lambda: DecisionMambaHybrid(config))
        read_checkpoint(path, other)
        assert_same_tensors(other.state_dict(), policy.state_dict())

    def test_step_seconds_and_generators_come_back(self, saved: tuple[Path, Pair]) -> None:
        checkpoint = read_checkpoint(saved[0], make(1)[0])
        assert (checkpoint.step, checkpoint.seconds) == (2, 1.25)
        assert_same_tensors(checkpoint.generators, GENERATORS)

    def test_training_goes_on_as_if_nothing_had_happened(
        self, saved: tuple[Path, Pair], train_two_steps: Callable[[Pair], None]
    ) -> None:
        path, pair = saved
        other = make(1)
        read_checkpoint(path, other[0], moments(other))
        for either in (pair, other):
            train_two_steps(either)
        assert_same_tensors(other[0].state_dict(), pair[0].state_dict())

    def test_without_moments_the_weights_suffice(self, saved: tuple[Path, Pair]) -> None:
        read_checkpoint(saved[0], make(1)[0], None)

    def test_weights_alone_do_not_let_a_run_go_on(self, tmp_path: Path) -> None:
        path, pair = tmp_path / "weights.safetensors", make(0)
        write_checkpoint(path, pair[0], {}, GENERATORS, step=3, seconds=0.0)
        assert not any(name.startswith("optimizer.") for name in load_file(path))
        assert read_checkpoint(path, make(1)[0]).step == 3
        with pytest.raises(InputError, match=r"weights only, a run cannot go on from it \(no optimizer\.exp_avg\."):
            read_checkpoint(path, pair[0], moments(pair))

    def test_a_weight_that_layers_share_is_stored_once(self, tmp_path: Path) -> None:
        path, shared = tmp_path / "shared.safetensors", {"share_norms": True, "share_dsm": True}
        policy, optimizer = make(0, **shared)
        write_checkpoint(path, policy, moments((policy, optimizer)), GENERATORS, step=1, seconds=0.0)
        stored = {name.removeprefix("policy."): t for name, t in load_file(path).items() if name.startswith("policy.")}
        assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in policy.parameters()) + 4 + 4
        assert "blocks.0.local_mixer.linear.weight" in stored and "blocks.1.local_mixer.linear.weight" not in stored
        other, _ = make(1, **shared)
        read_checkpoint(path, other)
        assert_same_tensors(other.state_dict(), policy.state_dict())
        assert other.blocks[0].local_mixer is other.blocks[1].local_mixer

    def test_frozen_weights_are_stored_without_moments(
        self, tmp_path: Path, train_two_steps: Callable[[Pair], None]
    ) -> None:
        path, pair = tmp_path / "frozen.safetensors", make(0, train_dsm=False)
        train_two_steps(pair)
        write_checkpoint(path, pair[0], moments(pair), GENERATORS, step=2, seconds=0.0)
        stored, name = load_file(path), "blocks.0.local_mixer.linear.weight"
        assert f"policy.{name}" in stored and f"optimizer.exp_avg.{name}" not in stored
        other = make(1, train_dsm=False)
        read_checkpoint(path, other[0], moments(other))
        assert_same_tensors(other[0].state_dict(), pair[0].state_dict())

    def test_weights_that_lie_in_one_vector_are_stored_apart(self, tmp_path: Path) -> None:
        path, (policy, _) = tmp_path / "views.safetensors", make(0)
        vector = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
        torch.nn.utils.vector_to_parameters(vector, policy.parameters())
        assert len({weight.untyped_storage().data_ptr() for weight in policy.parameters()}) == 1
        write_checkpoint(path, policy, {}, GENERATORS, step=1, seconds=0.0)
        other, _ = make(1)
        read_checkpoint(path, other)
        assert_same_tensors(other.state_dict(), policy.state_dict())

    def test_names_cover_every_parameter_and_buffer(self) -> None:
        policy, _ = make(0)
        assert set(policy_tensors(policy)) == set(policy.state_dict())


class TestDamage:
    def test_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^checkpoint: .*none.safetensors does not exist"):
            read_checkpoint(tmp_path / "none.safetensors", make(0)[0])

    @pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
    def test_truncated_file_is_named(self, saved: tuple[Path, Pair], kept: float) -> None:
        path, _ = saved
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        with pytest.raises(InputError, match=r"^checkpoint: .* is damaged or truncated"):
            read_checkpoint(path, make(0)[0])

    def test_file_of_another_kind_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.pt"
        torch.save({"weight": torch.zeros(3)}, path)
        with pytest.raises(InputError, match=r"^checkpoint: .* is damaged or truncated"):
            read_checkpoint(path, make(0)[0])

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    @pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
    def test_what_is_no_file_is_not_waited_for(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "checkpoint.safetensors"
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero" if kind == "device" else path.name)
        with pytest.raises(InputError, match=r"^checkpoint: "):
            read_checkpoint(path, make(0)[0])

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("policy.head.weight", float("nan"), "is not finite"),
            ("policy.state_std", 0.0, "is not positive"),
            ("optimizer.exp_avg.head.weight", float("inf"), "is not finite"),
            ("optimizer.exp_avg_sq.head.weight", -1.0, "is not that of step 2"),
            ("optimizer.step.head.weight", 3.0, "is not that of step 2"),
            ("generator.torch", None, "has F32"),
        ],
    )
    def test_numbers_that_no_training_leads_to_are_refused_and_nothing_is_loaded(
        self, saved: tuple[Path, Pair], name: str, value: float | None, message: str
    ) -> None:
        path, _ = saved
        tensors = load_file(path)
        if value is None:
            tensors[name] = torch.zeros(3)
        else:
            tensors[name].view(-1)[0] = value
        save_file(tensors, path, {"step": "2", "seconds": "1"})
        other = make(1)
        before = {key: t.clone() for key, t in other[0].state_dict().items()}
        with pytest.raises(InputError, match=f"^checkpoint: .* is damaged .*{message}"):
            read_checkpoint(path, other[0], moments(other))
        assert_same_tensors(other[0].state_dict(), before)

    @pytest.mark.parametrize(
        "metadata",
        [
            *({"step": step} for step in ("-1", "x", "²", "1.5", "nan", "9" * 5000, "11")),
            *({"step": "2", "seconds": seconds} for seconds in ("nan", "inf", "-1", "x")),
        ],
    )
    def test_steps_and_seconds_out_of_range_are_named(self, saved: tuple[Path, Pair], metadata: dict[str, str]) -> None:
        save_file(load_file(saved[0]), saved[0], metadata)
        with pytest.raises(InputError, match=r"^checkpoint: .* is damaged \((step|seconds) ") as caught:
            read_checkpoint(saved[0], make(1)[0], last=10)
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("state", [torch.zeros(5, dtype=torch.uint8), torch.zeros(5056, dtype=torch.uint8)])
    def test_states_of_no_generator_are_named(self, tmp_path: Path, state: torch.Tensor) -> None:
        with pytest.raises(InputError, match=r"^checkpoint: .* is damaged \(the state of generator 'torch'") as caught:
            restore_generator(tmp_path, "torch", torch.Generator(), state)
        assert "\n" not in str(caught.value)

    def test_weights_of_another_type_are_named(self, saved: tuple[Path, Pair]) -> None:
        tensors = load_file(saved[0])
        tensors["policy.head.bias"] = tensors["policy.head.bias"].to(torch.int32)
        save_file(tensors, saved[0], {"step": "2"})
        with pytest.raises(InputError, match=r"1 weights do not fit, first head\.bias"):
            read_checkpoint(saved[0], make(1)[0])

    def test_a_header_too_long_to_read_is_named(self, saved: tuple[Path, Pair]) -> None:
        content = saved[0].read_bytes()
        saved[0].write_bytes((90 * 10**6).to_bytes(8, "little") + content[8:])
        with pytest.raises(InputError, match="damaged or truncated"):
            read_checkpoint(saved[0], make(1)[0])

    @pytest.mark.parametrize("changes", [{"width": 2**14}, {"layers": 256}, {"ssm_state": 4096, "expand": 64}])
    def test_sizes_that_the_weights_do_not_have_are_refused_before_memory_is_taken(
        self, saved: tuple[Path, Pair], changes: dict[str, int]
    ) -> None:
        sizes: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": 3, "width": 8, "layers": 2}
        config = DMMConfig(**(sizes | changes))
        with pytest.raises(InputError, match="weights do not fit"):
            require_weights(saved[0], lambda: DecisionMetaMamba(config))
        require_weights(saved[0], lambda: DecisionMetaMamba(DMMConfig(**sizes)))

    def test_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"^checkpoint: "):
            read_checkpoint(tmp_path, make(0)[0])

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
    def test_foreign_safetensors_file_is_named(self, tmp_path: Path, metadata: Any) -> None:
        path, (policy, _) = tmp_path / "foreign.safetensors", make(0)
        save_file({f"policy.{name}": t.clone() for name, t in policy.state_dict().items()}, path, metadata)
        with pytest.raises(InputError, match=r"^checkpoint: .* was not written by this package"):
            read_checkpoint(path, make(0)[0])

    @pytest.mark.parametrize(
        ("changes", "weight"),
        [({"width": 16}, "blocks.0.global_mixer.A_log"), ({"layers": 3}, "blocks.2."), ({"layers": 1}, "blocks.1.")],
    )
    def test_another_policy_is_refused_and_left_as_it_was(
        self, saved: tuple[Path, Pair], changes: dict[str, int], weight: str
    ) -> None:
        other, _ = make(1, **changes)
        before = {name: t.clone() for name, t in other.state_dict().items()}
        with pytest.raises(
            InputError, match=rf"is of another policy, \d+ weights do not fit, first {weight}"
        ) as caught:
            read_checkpoint(saved[0], other)
        assert "\n" not in str(caught.value)
        assert_same_tensors(other.state_dict(), before)


class TestAtomicWrite:
    def test_replaces_the_content(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        write_atomically(path, b"old")
        write_atomically(path, b"new")
        assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_keeps_the_old_content_when_it_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        path = tmp_path / "file"
        write_atomically(path, b"old")

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
        assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


class TestNothingIsPickled:
    def test_file_is_plain_safetensors(self, saved: tuple[Path, Pair]) -> None:
        with safe_open(saved[0], framework="pt") as file:
            assert file.metadata() == {"step": "2", "seconds": "1.25"}

    def test_package_calls_nothing_that_unpickles(self) -> None:
        unsafe = re.compile(
            r"\b(import|from)\s+(c?pickle|cloudpickle|dill|joblib|shelve|marshal)\b"
            r"|\btorch\.(load|save)\(|allow_pickle\s*=\s*True|\bread_pickle\(|weights_only\s*=\s*False"
        )
        files = sorted(Path(dmm.__path__[0]).rglob("*.py"))
        assert len(files) > 10
        assert [str(file) for file in files if unsafe.search(file.read_text())] == []
