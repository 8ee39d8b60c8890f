"""The queue on Ray: what the driver does, with a Ray that is played here, and then on a cluster of three nodes.

Functions that jobs name are found by workers in this module.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dmm.errors import InputError, RunError
from dmm.experiments import queue, ray_runner
from dmm.experiments.grid import DEVICE, Job
from dmm.experiments.queue import outcome, work_off
from dmm.experiments.ray_runner import RETRIES, Resources, do_here, work_off_on_ray
from dmm.experiments.reproduce import train_and_score
from dmm.experiments.same_data import fingerprint_file
from tests.own_process import run_python

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray, of the cluster extra, is not installed"
)
MAZE = "dmm/pointmaze/umaze-v0"
QUICK: dict[str, Any] = {"width": 8, "layers": 1, "batch_size": 4, "log_every": 1, "checkpoint_every": 1}
MakeJobs = Callable[..., list[Job]]


def make_jobs(place: Path, models: Sequence[str], **more: Any) -> list[Job]:
    """A job of four updates for each model, with its folder and its outcome in this place."""
    how: dict[str, Any] = {"steps": 4, "targets": (1.0,), "episodes": 2, "checkpoints": 2} | more
    how = {"changes": QUICK, "transitions": 150, "max_steps": 5} | how
    return [
        Job(f"{i}-{model}", i, place / f"run{i}", MAZE, model, row=place / "rows" / f"{i}.json", **how)
        for i, model in enumerate(models)
    ]


def answer(job: Job) -> dict[str, Any]:
    """Work that takes no time; what a job's model is called decides how it goes."""
    match job.model:
        case "input":
            raise InputError("model: got\nnothing")
        case "bug":
            raise KeyError("a bug")
        case "other data":
            return {"data": {"fingerprint": "2222"}}
    return {"data": {"fingerprint": "1111"}, "value": 0.1 + job.seed}


# What the driver does


class PlayedRay:
    """Ray as far as the driver asks for it; a task runs when it is waited for, on a node with folders of its own."""

    class exceptions:
        class RayError(Exception):
            pass

        class NodeDiedError(RayError):
            pass

    def __init__(self, own_storage: Path | None = None, cpus: float = 2.0, dies: Sequence[int] = ()):
        self.own, self.cpus, self.dies = own_storage, cpus, dies
        self.options_, self.pending, self.most = {}, {}, 0  # type: ignore[var-annotated]
        self.begun: list[int] = []
        self.cancelled: list[int] = []

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def remote(self, function: Any) -> PlayedRay:
        self.function: Any = function
        return self

    def options(self, **options: Any) -> PlayedTask:
        self.options_ = options
        return PlayedTask(self)

    def wait(self, references: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        self.most = max(self.most, len(references))
        return references[:num_returns], references[num_returns:]

    def get(self, reference: int) -> Any:
        where, job, known = self.pending.pop(reference)
        if job.seed in self.dies:
            raise self.exceptions.NodeDiedError("The node\nwas lost.")
        if self.own is not None:
            folder, row = (self.own / path.relative_to("/") for path in (job.folder, job.row))
            job = Job(**{**vars(job), "folder": folder, "row": row})
        return self.function(where, job, known)

    def cancel(self, reference: int, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


class PlayedTask:
    def __init__(self, ray: PlayedRay):
        self.ray = ray

    def remote(self, where: str, job: Job, known: str | None) -> int:
        self.ray.pending[len(self.ray.begun)] = where, job, known
        self.ray.begun.append(job.seed)
        return len(self.ray.begun) - 1


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PlayedRay]:
    """Puts a played Ray in the place of the real one."""
    monkeypatch.setattr(ray_runner, "TICK", 0.02)
    monkeypatch.setattr(ray_runner, "AGAIN", 0.01)

    def put(**how: Any) -> PlayedRay:
        ray = PlayedRay(**how)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray

    return put


class TestDriver:
    def test_jobs_are_begun_in_order_and_few_at_a_time(self, play: Any, tmp_path: Path) -> None:
        ray, jobs = play(), make_jobs(tmp_path, ["dmm"] * 20)
        queue.keep_outcome(jobs[3], answer(jobs[3]))
        made = work_off_on_ray(answer, jobs, progress=False)
        assert ray.begun == [i for i in range(20) if i != 3] and ray.most == 4
        assert (made.finished, made.failed, made.out_of_time) == (19, {}, False)
        assert [outcome(job)["value"] for job in jobs] == [0.1 + i for i in range(20)]  # type: ignore[index]

    def test_tasks_ask_for_what_a_job_takes(self, play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MINARI_DATASETS_PATH", "/data")
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        ray = play()
        work_off_on_ray(answer, make_jobs(tmp_path, ["dmm"]), progress=False)
        variables = ray.options_.pop("runtime_env")["env_vars"]
        assert ray.options_ == {"num_cpus": 1.0, "num_gpus": 0.0, "max_retries": RETRIES, "retry_exceptions": False}
        assert (variables["MINARI_DATASETS_PATH"], variables["OMP_NUM_THREADS"]) == ("/data", "1")
        assert not {"MUJOCO_GL", DEVICE} & variables.keys()
        work_off_on_ray(answer, [], cpus_per_job=2, gpus_per_job=0.25, progress=False)
        assert (ray.options_["num_cpus"], ray.options_["num_gpus"]) == (2, 0.25)
        assert ray.options_["runtime_env"]["env_vars"][DEVICE] == "cuda"

    def test_a_node_with_storage_of_its_own_sends_the_row(self, play: Any, tmp_path: Path) -> None:
        play(own_storage=tmp_path / "node")
        here, there = make_jobs(tmp_path / "a", ["dmm", "dmm"]), make_jobs(tmp_path / "b", ["dmm", "dmm"])
        made = work_off_on_ray(answer, here, progress=False)
        work_off(answer, there, progress=False)
        assert made.finished == 2 and not (tmp_path / "a" / "run0").exists()
        assert [job.row_file.read_bytes() for job in here] == [job.row_file.read_bytes() for job in there]

    def test_a_row_that_the_node_has_already_is_taken_and_not_counted(self, play: Any, tmp_path: Path) -> None:
        play(own_storage=tmp_path / "node")
        jobs = make_jobs(tmp_path / "a", ["dmm"])
        work_off_on_ray(answer, jobs, progress=False)
        jobs[0].row_file.unlink()
        assert work_off_on_ray(answer, jobs, progress=False).finished == 0 and outcome(jobs[0]) == answer(jobs[0])

    def test_failures_are_a_line_each_and_tried_once(
        self, play: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ray, jobs = play(dies=[3]), make_jobs(tmp_path, ["input", "dmm", "bug", "dmm", "dmm"])
        made = work_off_on_ray(answer, jobs, progress=False)
        assert made.finished == 2 and ray.begun == [0, 1, 2, 3, 4]
        assert made.failed == {
            "0-input, seed 0": "model: got nothing",
            "2-bug, seed 2": "KeyError: 'a bug'",
            "3-dmm, seed 3": f"its worker or node died, and so did those of {RETRIES} further attempts (NodeDiedError)",
        }
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.splitlines() == [f"dmm: {k}: {v}" for k, v in made.failed.items()]

    def test_a_job_that_another_process_holds_is_tried_again_for_a_while(
        self, play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ray, jobs = play(), make_jobs(tmp_path, ["dmm", "dmm"])
        monkeypatch.setattr(ray_runner, "LEASE", 0.2)
        with queue.claimed(jobs[0].folder):
            made = work_off_on_ray(answer, jobs, progress=False)
        assert made.finished == 1 and made.failed == {} and outcome(jobs[0]) is None
        assert ray.begun[:2] == [0, 1] and set(ray.begun[2:]) == {0} and len(ray.begun) > 3
        assert work_off_on_ray(answer, jobs, progress=False).finished == 1

    def test_time_that_is_up_cancels_what_is_running(
        self, play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ray, jobs = play(), make_jobs(tmp_path, ["dmm"] * 6)
        monkeypatch.setattr(
            ray, "wait", lambda references, num_returns, timeout: (time.sleep(0.01), [], references)[1:]
        )
        made = work_off_on_ray(answer, jobs, hours=0.1 / 3600, progress=False)
        assert made.out_of_time and made.finished == 0 and ray.cancelled == [0, 1, 2, 3]

    def test_no_room_is_said_once(
        self, play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        ray = play(cpus=0.0)
        monkeypatch.setattr(ray_runner, "QUIET", 0.0)
        monkeypatch.setattr(ray, "wait", lambda references, num_returns, timeout: ([], references))
        work_off_on_ray(answer, make_jobs(tmp_path, ["dmm"]), hours=0.05 / 3600, gpus_per_job=0.5, progress=False)
        said = "dmm: ray: no node has 1 CPUs and 0.5 GPUs for a job; waiting for one that has\n"
        assert capsys.readouterr().err == said

    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ({"hours": 0}, "hours: got 0, allowed is a positive number"),
            ({"cpus_per_job": 0}, "cpus_per_job: got 0, allowed is a number from 0.01"),
            ({"gpus_per_job": -1}, "gpus_per_job: got -1, allowed is a number from 0"),
            ({"gpus_per_job": 1.5}, "gpus_per_job: got 1.5, allowed is a share up to 1, or whole GPUs"),
        ],
    )
    def test_bad_numbers(self, how: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError) as caught:
            work_off_on_ray(answer, [], **how)
        assert str(caught.value) == message

    def test_without_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(InputError, match=r'^runner: ray is not installed; pip install "decision-metamamba\[cl'):
            work_off_on_ray(answer, [])

    @pytest.mark.parametrize(
        ("cpus", "gpus", "room"), [(1, 0, 3 + 8), (2, 0, 1 + 4), (0.1, 0, 30 + 80), (1, 0.25, 4), (4, 1, 1)]
    )
    def test_room_on_nodes(self, cpus: float, gpus: float, room: int) -> None:
        nodes = [
            {"Alive": True, "Resources": {"CPU": 3.0, "memory": 1e9}},
            {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
            {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 8.0}},
        ]
        assert Resources(cpus, gpus).room(nodes) == room


class TestSameData:
    """Of the driver, of its nodes and of the local runner."""

    @pytest.mark.parametrize("runner", ["ray", "ray, own storage", "local"])
    def test_the_first_outcome_decides(self, runner: str, play: Any, tmp_path: Path) -> None:
        play(own_storage=tmp_path / "node" if "own" in runner else None)
        jobs = make_jobs(tmp_path / "driver", ["dmm", "other data", "dmm"])
        run = work_off if runner == "local" else work_off_on_ray
        made = run(answer, jobs, progress=False)
        assert fingerprint_file(jobs[0]).read_text() == "1111\n" and made.finished == 2
        [(name, said)] = made.failed.items()
        assert name == "1-other data, seed 1" and "\n" not in said and outcome(jobs[1]) is None
        assert said.startswith(f"data: {MAZE} has the fingerprint 2222 on ") and "1111 in this queue (" in said

    def test_what_the_driver_knows_reaches_a_node_before_it_works(self, tmp_path: Path) -> None:
        [job] = make_jobs(tmp_path, ["other data"])
        what, said, row = do_here(queue.address(answer), job, "1111")
        assert (what, row) == ("failed", None) and "2222" in said and "1111" in said
        assert fingerprint_file(job).read_text() == "1111\n"

    def test_outcomes_that_are_there_decide(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        jobs = make_jobs(tmp_path, ["dmm", "other data", "dmm"])
        for job in jobs[:2]:  # as from a folder that was copied without the file
            queue.keep_outcome(job, answer(job))
        assert work_off(answer, jobs, progress=False).finished == 1
        assert capsys.readouterr().err.startswith("dmm: 1-other data, seed 1, which is done: data: ")

    def test_a_data_set_that_differs_fails_before_training(
        self, datasets_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        [job] = make_jobs(tmp_path, ["dmm"])
        fingerprint_file(job).parent.mkdir(parents=True)
        fingerprint_file(job).write_text("1111\n")
        with pytest.raises(RunError, match=rf"^data: {MAZE} has the fingerprint [0-9a-f]+ on .*, and 1111 in this"):
            train_and_score(job)
        assert not job.folder.exists()

    def test_of_many_that_come_first_one_decides(self, tmp_path: Path) -> None:
        from dmm.experiments.same_data import require_fingerprint

        [job] = make_jobs(tmp_path, ["dmm"])
        failed: list[str] = []

        def come(fingerprint: str) -> None:
            try:
                require_fingerprint(job, fingerprint)
            except RunError:
                failed.append(fingerprint)

        threads = [threading.Thread(target=come, args=(f"{i}",)) for i in range(16)]
        [thread.start() for thread in threads]  # type: ignore[func-returns-value]
        [thread.join() for thread in threads]  # type: ignore[func-returns-value]
        assert sorted({f"{i}" for i in range(16)} - set(failed)) == [fingerprint_file(job).read_text().strip()]
        assert [file.name for file in fingerprint_file(job).parent.iterdir()] == [fingerprint_file(job).name]


# On a cluster


def train_with(job: Job, before: Callable[[int], None]) -> dict[str, Any]:
    """`train_and_score`, which calls `before` with the number of each update that it makes."""
    from dmm import policy

    loss, made = policy.action_loss, []

    def slow(*args: Any) -> Any:
        made.append(None)
        before(len(made))
        return loss(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "action_loss", slow)
        return train_and_score(job)


def train_where_nodes_die(job: Job) -> dict[str, Any]:
    """The first that is not on the head waits in its third update until its node is gone; those on the head for it."""
    import ray

    place, node = job.folder.parent, ray.get_runtime_context().get_node_id()
    head = next(each["NodeID"] for each in ray.nodes() if "node:__internal_head__" in each["Resources"])
    victim, mine = place / "victim", place / f"victim-{os.getpid()}"

    def before(update: int) -> None:
        with open(place / f"updates-{job.seed}", "a") as file:
            file.write("x")
        while node == head and not victim.exists():  # other nodes may take longer to begin
            time.sleep(0.1)
        if update == 3 and not victim.exists():
            mine.write_text(json.dumps([job.seed, node]))
            with suppress(FileExistsError):  # then another was first
                os.link(mine, victim)
                time.sleep(600)

    return train_with(job, before)


def wait_in_the_third(job: Job) -> dict[str, Any]:
    """It waits in its third update when it is first begun."""
    waiting = job.folder.parent / "waiting"

    def before(update: int) -> None:
        if update == 3 and not waiting.exists():
            waiting.write_text(f"{os.getpid()}")
            time.sleep(600)

    return train_with(job, before)


class ClockOf:
    """A clock on which two hours pass when a file appears."""

    sleep = staticmethod(time.sleep)

    def __init__(self, file: Path):
        self.file = file

    def monotonic(self) -> float:
        return time.monotonic() + 7200 * self.file.exists()


MODELS = ("dmm", "bc", "rvs-r", "nothing", "dt", "dmm", "mamba")


def on_a_cluster(place: Path) -> dict[str, Any]:
    """Three nodes of one core each, on this machine: one dies in the middle of a job, then time is up in another."""
    from ray.cluster_utils import Cluster

    jobs, found = make_jobs(place / "ray", MODELS), {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill() -> None:
        while not (victim := place / "ray" / "victim").exists():
            time.sleep(0.1)
        found["seed"], where = json.loads(victim.read_text())
        cluster.remove_node(next(node for node in nodes if node.node_id == where), allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    try:
        found["died"] = vars(work_off_on_ray(train_where_nodes_die, jobs, address=cluster.address, progress=False))
        found["nodes left"] = len(cluster.worker_nodes)
        [job] = make_jobs(place / "late", MODELS[:1])
        (place / "late").mkdir()
        how: dict[str, Any] = {"address": cluster.address, "progress": False}
        ray_runner.time = ClockOf(place / "late" / "waiting")  # type: ignore[assignment]
        found["late"] = vars(work_off_on_ray(wait_in_the_third, [job], hours=1.0, **how))
        found["again"] = vars(work_off_on_ray(wait_in_the_third, [job], **how))  # in the hour after
    finally:
        cluster.shutdown()
    return found


def without_seconds(job: Job) -> str:
    kept = json.loads(job.row_file.read_text())
    assert kept["row"].pop("seconds") > 0
    return json.dumps(kept)


def test_an_address_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = PlayedRay()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with socket.socket() as taken:  # bound and not listened to
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"^address: no Ray cluster answers at '{address}' \\("):
            work_off_on_ray(answer, [], address=address, progress=False)
    for wrong in ("nonsense", "ray://127.0.0.1:9", ":6379", "host:", "host:70000"):
        with pytest.raises(InputError, match=f"^address: got '{wrong}', allowed are auto and HOST:PORT$"):
            work_off_on_ray(answer, [], address=wrong, progress=False)


@needs_ray
class TestCluster:
    """In processes of their own: to import Ray changes paths and variables."""

    @pytest.mark.skipif(" " in sys.executable, reason="a node of a Ray cluster starts no Python whose path has a space")
    def test_neither_a_node_that_dies_nor_a_stop_changes_an_outcome(self, tmp_path: Path, datasets_path: Path) -> None:
        said = run_python(
            "import json, pathlib, sys\n"
            f"from {__name__} import on_a_cluster\n"
            f"print(json.dumps(on_a_cluster(pathlib.Path({str(tmp_path)!r}))))",
            seconds=400,
            RAY_USAGE_STATS_ENABLED="0",
        )
        found = json.loads(said.splitlines()[-1])
        assert found["nodes left"] == 1 and found["died"]["finished"] == 6 and not found["died"]["out_of_time"]
        [(name, why)] = found["died"]["failed"].items()
        assert name == "3-nothing, seed 3" and why.startswith("model: got 'nothing'")
        updates = (tmp_path / "ray" / f"updates-{found['seed']}").read_text()
        assert len(updates) == 3 + 2  # two are in the checkpoint that it went on from
        assert found["late"] == {"finished": 0, "failed": {}, "out_of_time": True}
        assert not Path(f"/proc/{(tmp_path / 'late' / 'waiting').read_text()}").exists()
        assert found["again"] == {"finished": 1, "failed": {}, "out_of_time": False}

        ours = [job for job in make_jobs(tmp_path / "ray", MODELS) if job.model != "nothing"]
        local = [job for job in make_jobs(tmp_path / "local", MODELS) if job.model != "nothing"]
        work_off(train_and_score, local, progress=False)
        assert [without_seconds(job) for job in ours] == [without_seconds(job) for job in local]
        assert without_seconds(make_jobs(tmp_path / "late", MODELS)[0]) == without_seconds(local[0])

    def test_the_command_starts_a_ray_of_its_own_and_leaves_nothing_behind(
        self, tmp_path: Path, datasets_path: Path
    ) -> None:
        (tmp_path / "empty").mkdir()
        said = run_python(
            "import os\n"
            "from dmm.cli import main\n"
            f"os.chdir({str(tmp_path / 'empty')!r})\n"
            "main(['reproduce', 'pointmaze/pointmaze-umaze/dmm', '--scale', 'smoke', '--runner', 'ray', '--json',\n"
            f"      '--runs', {str(tmp_path / 'runs')!r}])",
            seconds=240,
        )
        made = json.loads(said)
        assert (made["jobs"], made["done"], made["finished"], made["failed"]) == (1, 1, 1, {})
        assert list((tmp_path / "empty").iterdir()) == []
