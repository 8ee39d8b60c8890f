from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmm.data.trajectories import Trajectories
from dmm.data.windows import Windows, WindowSampler
from dmm.models.dmm import DecisionMetaMamba, DMMConfig
from dmm.models.registry import MODELS
from dmm.training import TrainConfig
from dmm.training.stacking import stack
from dmm.training.update import (
    ALIGNMENT,
    WARM_UP,
    FlatWeights,
    RecordedUpdate,
    Update,
    aligned_slots,
    fastest,
    learning_rate,
    undone,
)

BATCH, CONTEXT = 6, 4
Make = Callable[..., tuple[Update, list[FlatWeights]]]


def make_policy(seed: int, **changes: Any) -> DecisionMetaMamba:
    sizes: dict[str, Any] = {"state_size": 4, "action_size": 2, "context": CONTEXT, "width": 8, "layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DecisionMetaMamba(DMMConfig(**(sizes | changes)))


@pytest.fixture
def make(trajectories: Trajectories) -> Make:
    """Makes an update of some seeds, and the weights that it moves."""

    def make(seeds: int, device: str = "cpu", config: TrainConfig | None = None, **changes: Any) -> Any:
        policies = [make_policy(seed, **changes).to(device).train() for seed in range(seeds)]
        generators = [torch.Generator(device).manual_seed(seed) for seed in range(seeds)]
        policy = stack(policies, generators)
        sampler = WindowSampler(trajectories, CONTEXT, generator=torch.Generator(), device=device)

        def losses(windows: Windows) -> dict[str, Tensor]:
            return policy.loss(windows)

        flats = [FlatWeights(each) for each in policies]
        return Update(flats, policy, losses, sampler, config or TrainConfig(steps=20), generators), flats

    return make


def indices(updates: int, seeds: int, device: str = "cpu") -> Tensor:
    return torch.randint(32, (updates, seeds, BATCH), generator=torch.Generator().manual_seed(0)).to(device)


def all_of(update: Update) -> list[Tensor]:
    return [tensor.clone() for tensor in (*update.state(), *(g.get_state() for g in update.generators))]


def assert_equal(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


class TestFlatWeights:
    def test_weights_keep_their_values_and_become_views_of_one_vector(self) -> None:
        policy = make_policy(0, share_norms=True, train_dsm=False)
        before = {name: weight.clone() for name, weight in policy.named_parameters()}
        flat = FlatWeights(policy)
        for name, weight in policy.named_parameters():
            assert torch.equal(weight, before[name])
        flat.vectors["weights"].fill_(7)
        for weight in policy.parameters():
            assert bool((weight == 7).all()) == weight.requires_grad

    def test_moments_have_the_names_and_shapes_of_the_trained_weights(self) -> None:
        policy = make_policy(0, train_dsm=False)
        moments = FlatWeights(policy).moments()
        assert moments.keys() == {name for name, weight in policy.named_parameters() if weight.requires_grad}
        for name, values in moments.items():
            weight = policy.get_parameter(name)
            assert values.keys() == {"step", "exp_avg", "exp_avg_sq"} and values["step"].shape == ()
            assert values["exp_avg"].shape == values["exp_avg_sq"].shape == weight.shape

    def test_moments_are_the_state_itself(self) -> None:
        flat = FlatWeights(make_policy(0))
        for values in flat.moments().values():
            values["exp_avg"].fill_(2)
        sizes = sum(weight.numel() for weight in flat.parameters.values())
        assert flat.vectors["exp_avg"].sum() == 2 * sizes and flat.vectors["exp_avg_sq"].sum() == 0

    def test_released_weights_share_no_memory(self) -> None:
        policy = make_policy(0)
        flat = FlatWeights(policy)
        flat.release()
        before = policy.head.weight.clone()
        flat.vectors["weights"].fill_(7)
        assert torch.equal(policy.head.weight, before)
        assert policy.head.weight.untyped_storage().nbytes() == 4 * before.numel()

    def test_slots_are_aligned_and_apart(self) -> None:
        places, size = aligned_slots([3, ALIGNMENT, 1])
        assert [(place.start, place.stop) for place in places] == [
            (0, 3),
            (ALIGNMENT, 2 * ALIGNMENT),
            (2 * ALIGNMENT, 2 * ALIGNMENT + 1),
        ]
        assert size == 3 * ALIGNMENT


class TestUpdate:
    @pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
    def test_learning_rate_on_the_device_is_the_formula(self, make: Make, warmup: float) -> None:
        config = TrainConfig(steps=12, warmup=warmup, learning_rate=3e-3)
        update, _ = make(1, config=config)
        for step, first in enumerate(indices(12, 1)):
            update(first)
            assert float(update.rate) == pytest.approx(learning_rate(config, step), rel=1e-6)
        assert float(update.step) == 12

    @pytest.mark.parametrize("clip", [1e-3, 0.25, 1e6])
    def test_each_seed_is_clipped_by_its_own_norm(self, make: Make, clip: float) -> None:
        update, _ = make(3, config=TrainConfig(clip=clip))
        scale = torch.tensor([0.01, 1.0, 100.0])
        gradients = [torch.randn(weight.shape) * scale.view(-1, *[1] * (weight.ndim - 1)) for weight in update.trained]
        clipped = update._clipped(gradients)
        for seed in range(3):
            alone = [nn.Parameter(torch.zeros_like(gradient[seed])) for gradient in gradients]
            for weight, gradient in zip(alone, gradients, strict=True):
                weight.grad = gradient[seed].clone()
            nn.utils.clip_grad_norm_(alone, clip)
            for weight, slot in zip(alone, update.slots, strict=True):
                torch.testing.assert_close(clipped[seed, slot].view(weight.shape), weight.grad)

    def test_total_adds_the_losses_of_each_seed(self, make: Make) -> None:
        update, _ = make(2, dropout=0.0)
        expected = torch.zeros(2)
        for first in indices(3, 2):
            with torch.no_grad():
                expected += update.losses(update.sampler.gather(first))["action"]
            update(first)
        torch.testing.assert_close(update.total, expected[None])  # one term

    def test_gaps_between_weights_stay_zero(self, make: Make) -> None:
        update, flats = make(2)
        for first in indices(3, 2):
            update(first)
        gaps = torch.ones(update.rows["weights"].shape[1], dtype=torch.bool)
        for slot in flats[0].slots:
            gaps[slot] = False
        assert gaps.any() and not any(matrix[:, gaps].any() for matrix in update.rows.values())

    def test_weights_that_no_loss_depends_on_decay_and_do_not_fail(self, make: Make) -> None:
        update, _ = make(1)
        update.losses = lambda windows: {"action": (update.trained[0] ** 2).sum().view(1)}
        update(indices(1, 1)[0])
        assert update.rows["weights"].isfinite().all()


class Waiting(TorchDispatchMode):
    """Collects operations whose result has a size that only the numbers tell, or that hand a number to the processor:
    on a GPU each would wait for all work before it, and no CUDA graph can hold it."""

    WAIT = frozenset(
        {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "lift_fresh"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = op._schema.name.removeprefix("aten::")
        indices = args[1] if name.startswith("index") and isinstance(args[1], list) else []
        by_mask = any(each is not None and each.dtype == torch.bool for each in indices)
        self.count += 1
        if name in self.WAIT or by_mask:
            self.seen.append(name)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_nothing_in_an_update_waits_for_the_device(trajectories: Trajectories, model: str, seeds: int) -> None:
    entry = MODELS[model]
    sizes = {"context": CONTEXT, "width": 8, "layers": 1}
    known = {field.name for field in dataclasses.fields(entry.config)}
    config = entry.make_config(4, 2, "", **{name: size for name, size in sizes.items() if name in known})
    policies = [entry.policy(config).train() for _ in range(seeds)]
    policy = stack(policies, [torch.Generator()] * seeds) if seeds > 1 else policies[0]
    sampler = entry.sampler(trajectories, config, "cpu")
    index = sampler.draw(seeds, 4, torch.Generator().manual_seed(0))  # as many as seeds
    flats = [FlatWeights(each) for each in policies]
    update = Update(flats, policy, policy.loss, sampler, TrainConfig(steps=20), [torch.Generator()], policy.terms)
    with Waiting() as watch:
        update(index)
    assert watch.seen == [] and watch.count > 50


def test_the_watch_sees_what_waits() -> None:
    x = torch.randn(5)
    with Waiting() as watch:
        (x[x > 0], x.sum().item(), x[torch.tensor([0, 1])])
    assert watch.seen == ["index", "_local_scalar_dense", "lift_fresh"]  # the last: numbers made on the processor


class FakeGraph:
    """Stands in for a CUDA graph: remembers what was run while it was recorded, and runs it again in each replay."""

    recording: FakeGraph | None = None

    def __init__(self) -> None:
        self.generators: list[Any] = []
        self.calls: list[Callable[[], None]] = []

    def register_generator_state(self, generator: Any) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        for call in self.calls:
            call()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def wait_stream(self, other: Any) -> None:
            assert isinstance(other, Stream)

    @contextlib.contextmanager
    def record(graph: FakeGraph, stream: Any) -> Iterator[None]:
        FakeGraph.recording = graph
        yield
        FakeGraph.recording = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


class TestRecordedUpdate:
    def recorded(self, update: Update, first: Tensor) -> tuple[RecordedUpdate, list[str]]:
        """With a graph that records as CUDA does: what is called is kept and not carried out."""
        made: list[str] = []

        class Watched:
            generators, state = update.generators, update.state

            def __call__(self, indices: Tensor) -> None:
                if FakeGraph.recording:
                    made.append("recorded")
                    FakeGraph.recording.calls.append(lambda: update(indices))
                else:
                    made.append("made")
                    update(indices)

        return RecordedUpdate(Watched(), first), made  # type: ignore[arg-type]

    @pytest.mark.parametrize("seeds", [1, 3])
    @pytest.mark.usefixtures("fake_cuda")
    def test_recording_leaves_no_trace(self, make: Make, seeds: int) -> None:
        update, _ = make(seeds)
        for first in indices(2, seeds):
            update(first)
        before = all_of(update)
        recorded, made = self.recorded(update, indices(1, seeds)[0])
        assert made == ["made"] * WARM_UP + ["recorded"]
        assert recorded.graph.generators == update.generators
        assert_equal(all_of(update), before)

    @pytest.mark.parametrize("seeds", [1, 3])
    @pytest.mark.usefixtures("fake_cuda")
    def test_replays_equal_plain_updates(self, make: Make, seeds: int) -> None:
        (plain, _), (other, _) = make(seeds), make(seeds)
        recorded, _ = self.recorded(other, indices(1, seeds)[0])
        for first in indices(5, seeds):
            plain(first)
            recorded(first)
        assert_equal(all_of(other), all_of(plain))
        assert float(plain.step) == 5

    def test_a_cpu_records_nothing(self, make: Make) -> None:
        update, _ = make(1)
        assert fastest(update, indices(1, 1)[0]) is update

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_on_cuda_a_recording_leaves_no_trace_and_its_replays_equal_plain_updates(
        self, make: Make, seeds: int
    ) -> None:
        (plain, _), (other, _) = make(seeds, "cuda"), make(seeds, "cuda")
        before, blocks = all_of(other), indices(20, seeds, "cuda")
        recorded = fastest(other, blocks[0])
        assert isinstance(recorded, RecordedUpdate)
        assert_equal(all_of(other), before)
        for first in blocks:
            plain(first)
            recorded(first)
        for ours, expected in zip(all_of(other), all_of(plain), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)  # the generators' states are integers


class Followed(DecisionMetaMamba):
    """Has a frozen weight that goes half of the way to the trained one after every update."""

    def __init__(self, config: DMMConfig):
        super().__init__(config)
        self.follower = nn.Parameter(torch.zeros_like(self.head.bias), requires_grad=False)

    @torch.no_grad()
    def after_update(self) -> None:
        self.follower.lerp_(self.head.bias, 0.5)


class TestAfterUpdate:
    @pytest.fixture
    def update(self, trajectories: Trajectories) -> Update:
        config = DMMConfig(state_size=4, action_size=2, context=CONTEXT, width=8, layers=1)
        policy = Followed(config).train()
        sampler = WindowSampler(trajectories, CONTEXT, generator=torch.Generator())
        flats = [FlatWeights(policy)]
        self.policy = policy
        return Update(flats, policy, policy.loss, sampler, TrainConfig(steps=20), [torch.default_generator])

    def test_what_follows_the_trained_weights_moves_once_behind_each_update(self, update: Update) -> None:
        expected = torch.zeros_like(self.policy.follower)
        for index in indices(3, 1):
            update(index)
            expected = (expected + self.policy.head.bias.detach()) / 2
            torch.testing.assert_close(self.policy.follower.detach(), expected)
        assert expected.any()

    def test_what_is_undone_leaves_it_as_it_was(self, update: Update) -> None:
        first, second = indices(2, 1)
        update(first)
        before = self.policy.follower.clone()
        with undone(update):
            update(second)
            assert not torch.equal(self.policy.follower, before)
        assert torch.equal(self.policy.follower, before)
