from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest

from dmm.data import minari_files
from dmm.data.arrays import write_dataset
from dmm.data.minari_files import dataset_folder, local_ids
from dmm.data.trajectories import load_trajectories
from dmm.errors import InputError

BOX = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
EPISODE = (np.zeros((3, 3)), np.zeros((2, 2), np.float32), np.zeros(2))


def test_unknown_id_names_the_near_ones(make_dataset) -> None:
    make_dataset("mine/walker-good-v0", [EPISODE], BOX)
    with pytest.raises(InputError) as caught:
        load_trajectories("mine/walker-god-v0")
    assert "mine/walker-good-v0" in str(caught.value) and "download not asked for" in str(caught.value)


def test_unknown_id_like_nothing_else_names_the_command_that_lists_recipes(datasets_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_trajectories("zzzz-v0")
    assert str(caught.value).endswith("; `dmm datasets` lists what can be made")


@pytest.mark.parametrize("download", [False, True])
def test_recipe_that_was_not_made_yet_says_how(datasets_path: Path, download: bool) -> None:
    with pytest.raises(InputError, match="`dmm collect dmm/hopper/medium-v0`"):
        load_trajectories("dmm/hopper/medium-v0", download=download)


@pytest.mark.parametrize("minari_id", ["", "no version", "hopper/medium", "../../etc/passwd-v0", "/abs/path-v0"])
def test_malformed_id(datasets_path: Path, minari_id: str) -> None:
    with pytest.raises(InputError, match="not a Minari id"):
        load_trajectories(minari_id)


def test_place_of_data_sets_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="folder of Minari data sets"):
        dataset_folder("mine/any-v0")


def test_local_ids(make_dataset) -> None:
    assert local_ids() == []
    make_dataset("mine/b-v0", [EPISODE], BOX)
    make_dataset("mine/a-v1", [EPISODE], BOX)
    assert local_ids() == ["mine/a-v1", "mine/b-v0"]


def test_damaged_files(make_dataset, datasets_path: Path) -> None:
    make_dataset("mine/broken-v0", [EPISODE], BOX)
    data = datasets_path / "mine/broken-v0/data"
    (data / "main_data.hdf5").write_bytes(b"not hdf5")
    with pytest.raises(InputError, match=r"'mine/broken-v0'.* cannot be read"):
        load_trajectories("mine/broken-v0")
    (data / "metadata.json").unlink()
    with pytest.raises(InputError, match=r"'mine/broken-v0'.* cannot be read"):
        load_trajectories("mine/broken-v0")


@pytest.mark.parametrize("minari_id", ["D4RL/kitchen/complete-v2", "mujoco/hopper/medium-v0"])
def test_public_data_set_that_is_not_here_says_how(datasets_path: Path, minari_id: str) -> None:
    with pytest.raises(InputError, match=f"download not asked for.*; `dmm train {minari_id} --download`"):
        load_trajectories(minari_id)


class TestDownload:
    def test_no_network_is_told_within_seconds(self, datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        given_up, before = threading.Event(), set(threading.enumerate())

        def hang(*args: object, **kwargs: object) -> None:
            given_up.wait(60)
            raise socket.gaierror("the thread that was left behind ends here")

        monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.invalid")
        monkeypatch.setattr(socket, "getaddrinfo", hang)  # a resolver that never answers
        monkeypatch.setattr(minari_files, "NETWORK_TIMEOUT", 0.2)
        begin = time.perf_counter()
        with pytest.raises(InputError, match=r"https://huggingface\.invalid does not answer"):
            load_trajectories("mujoco/hopper/medium-v0", download=True)
        assert time.perf_counter() - begin < 5
        given_up.set()
        for thread in set(threading.enumerate()) - before:
            thread.join(5)
            assert not thread.is_alive()

    def test_refused_connection(self, datasets_path: Path) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        assert not minari_files.reachable(f"http://127.0.0.1:{port}", 2)

    @staticmethod
    def reachable_when_it_answers(content: str) -> bool:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                connection, _ = server.accept()
                connection.recv(4096)
                connection.sendall(content.encode())
                connection.close()

            thread = threading.Thread(target=answer)
            thread.start()
            found = minari_files.reachable(f"http://127.0.0.1:{server.getsockname()[1]}", 5)
            thread.join()
            return found

    @pytest.mark.parametrize("status", ["200 OK", "403 Forbidden"])
    def test_any_answer_counts_as_reachable(self, status: str) -> None:
        assert self.reachable_when_it_answers(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")

    @pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize("content", ["hello\r\n", "HTTP/9.9 ? ?\r\n\r\n", ""])
    def test_what_does_not_speak_http_is_quietly_not_reachable(self, content: str) -> None:
        assert not self.reachable_when_it_answers(content)

    def test_fetches_with_minari_and_then_loads(
        self, make_dataset, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def fetch(minari_id: str) -> None:
            asked.append(minari_id)
            make_dataset(minari_id, [EPISODE], BOX)

        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", fetch)
        assert load_trajectories("mujoco/test/medium-v0", download=True).transitions == 2
        assert load_trajectories("mujoco/test/medium-v0", download=True).transitions == 2
        assert asked == ["mujoco/test/medium-v0"]  # once: the second time it is on this machine
        assert local_ids() == ["mujoco/test/medium-v0"]
        assert [path.name for path in (datasets_path / "mujoco/test").iterdir() if path.name.startswith(".")] == []

    def test_minaris_own_download_puts_files_where_they_belong(
        self, make_dataset, datasets_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_dataset("D4RL/test/human-v0", [EPISODE], BOX)
        server = tmp_path / "server"
        (datasets_path / "D4RL").rename(server)

        class Server:
            """A remote storage of Minari whose files lie on this machine."""

            def list_datasets(self, prefix: str | None = None) -> list[str]:
                return ["D4RL/test/human-v0"]

            def get_dataset_metadata(self, minari_id: str) -> dict[str, Any]:
                return json.loads((server / "test/human-v0/data/metadata.json").read_text())

            def list_namespaces(self) -> list[str]:
                return ["D4RL", "D4RL/test"]

            def download_namespace_metadata(self, namespace: str, path: Path) -> None:
                (path / namespace / "namespace_metadata.json").write_text("{}")

            def download_dataset(self, minari_id: str, path: Path) -> None:
                shutil.copytree(server / "test", path / "D4RL/test", dirs_exist_ok=True)

        for module in ("minari.storage.hosting", "minari.namespace"):
            monkeypatch.setattr(f"{module}.get_cloud_storage", lambda **given: Server())
        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        assert load_trajectories("D4RL/test/human-v0", download=True).transitions == 2
        assert local_ids() == ["D4RL/test/human-v0"]
        assert [path.name for path in datasets_path.rglob(".*")] == []

    def test_what_it_prints_does_not_mix_with_results(
        self, make_dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fetch(minari_id: str) -> None:
            print(f"Downloading {minari_id} from Farama servers...")
            make_dataset(minari_id, [EPISODE], BOX)

        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", fetch)
        load_trajectories("mujoco/test/medium-v0", download=True)
        printed = capsys.readouterr()
        assert printed.out == "" and "Downloading mujoco/test/medium-v0" in printed.err

    @pytest.mark.parametrize("broken_off", [ConnectionError("the line is dead"), KeyboardInterrupt()])
    def test_half_a_download_is_never_seen(
        self, make_dataset, datasets_path: Path, monkeypatch: pytest.MonkeyPatch, broken_off: BaseException
    ) -> None:
        def fetch(minari_id: str) -> None:
            make_dataset(minari_id, [EPISODE], BOX)
            next(minari_files.dataset_folder(minari_id).rglob("*.hdf5")).unlink()
            raise broken_off

        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", fetch)
        with pytest.raises((InputError, KeyboardInterrupt)):
            load_trajectories("mujoco/test/medium-v0", download=True)
        assert local_ids() == [] and not list(datasets_path.rglob("metadata.json"))
        with pytest.raises(InputError, match="not on this machine"):
            load_trajectories("mujoco/test/medium-v0")

    def test_files_that_do_not_open_are_not_kept(
        self, make_dataset, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fetch(minari_id: str) -> None:
            make_dataset(minari_id, [EPISODE], BOX)
            next(minari_files.dataset_folder(minari_id).rglob("*.hdf5")).unlink()

        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", fetch)
        with pytest.raises(InputError, match="'mujoco/test/medium-v0' cannot be fetched"):
            load_trajectories("mujoco/test/medium-v0", download=True)
        assert local_ids() == []

    def test_what_another_program_left_half_is_fetched_again(
        self, make_dataset, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_dataset("mujoco/test/medium-v0", [EPISODE], BOX)
        (datasets_path / "mujoco/test/medium-v0/data/main_data.hdf5").unlink()
        with pytest.raises(InputError, match="cannot be read"):
            load_trajectories("mujoco/test/medium-v0")
        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", lambda minari_id: make_dataset(minari_id, [EPISODE], BOX))
        assert load_trajectories("mujoco/test/medium-v0", download=True).transitions == 2

    def test_the_place_of_data_sets_is_the_same_afterwards(
        self, make_dataset, datasets_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places = []

        def fetch(minari_id: str) -> None:
            places.append(os.environ["MINARI_DATASETS_PATH"])
            raise ValueError("no such data set")

        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", fetch)
        with pytest.raises(InputError, match="no such data set"):
            load_trajectories("mujoco/test/medium-v0", download=True)
        assert places != [str(datasets_path)] and os.environ["MINARI_DATASETS_PATH"] == str(datasets_path)

    def test_what_the_server_refuses_is_one_line(self, datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(minari_id: str) -> None:
            raise ValueError("Couldn't find any version\nfor it")

        monkeypatch.setattr(minari_files, "reachable", lambda url, timeout: True)
        monkeypatch.setattr(minari, "download_dataset", refuse)
        with pytest.raises(InputError) as caught:
            load_trajectories("mujoco/test/medium-v0", download=True)
        assert "mujoco/test/medium-v0" in str(caught.value) and "Couldn't find any version" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestNeighbours:
    """What lies beside a data set takes nothing away from it."""

    @pytest.fixture
    def good(self, make_dataset, datasets_path: Path) -> Path:
        make_dataset("mine/good-v0", [EPISODE], BOX)
        return datasets_path / "mine/good-v0"

    @pytest.mark.parametrize(
        "name", ["mine/good-v0 copy", "mine/good-v0.bak", "my notes", "mine/good", "mine/good-v1", ".trash/good-v0"]
    )
    def test_copies_are_passed_over(self, good: Path, datasets_path: Path, name: str) -> None:
        shutil.copytree(good, datasets_path / name)
        found, wrong = minari_files.local_sets()
        assert found == ["mine/good-v0"]
        assert [repr(name) in line for line in wrong] == ([] if name.startswith(".") else [True])
        with pytest.raises(InputError, match="not on this machine"):
            load_trajectories("mine/nothing-v0")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    @pytest.mark.parametrize("name", ["data", "data/metadata.json"])
    def test_pipes_are_not_waited_for(self, good: Path, datasets_path: Path, name: str) -> None:
        place = datasets_path / "mine/bad-v0" / name
        place.parent.mkdir(parents=True)
        os.mkfifo(place)
        found, wrong = minari_files.local_sets()
        assert found == ["mine/good-v0"] and len(wrong) == 1
        with pytest.raises(InputError):
            load_trajectories("mine/bad-v0")

    def test_links_in_a_circle_are_followed_once(self, good: Path, datasets_path: Path) -> None:
        for name in ("one", "two", "mine/three"):
            (datasets_path / name).symlink_to(datasets_path)
        assert minari_files.local_sets() == (["mine/good-v0"], [])
        write = {"observations": np.zeros((2, 3)), "actions": np.zeros((2, 2)), "rewards": np.zeros(2)}
        write_dataset("mine/more-v0", **write, terminations=[0, 1], truncations=[0, 0], progress=False)
        assert local_ids() == ["mine/good-v0", "mine/more-v0"]

    def test_looking_has_an_end(self, good: Path, datasets_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(minari_files, "ENTRY_LIMIT", 50)
        (datasets_path / "other").mkdir()
        for i in range(60):
            (datasets_path / "other" / str(i)).touch()
        assert "more than 50 entries" in minari_files.local_sets()[1][0]

    def test_a_place_that_can_only_be_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file/sets"))
        with pytest.raises(InputError, match="folder of Minari data sets"):
            local_ids()


def test_more_episodes_than_the_file_has_are_refused_before_they_are_counted(make_dataset, datasets_path: Path) -> None:
    make_dataset("mine/many-v0", [EPISODE], BOX)
    file = datasets_path / "mine/many-v0/data/metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"total_episodes": 10**12}))
    with pytest.raises(InputError, match="the metadata say 1000000000000, the file holds 1"):
        load_trajectories("mine/many-v0")


def test_an_array_that_cannot_be_read_is_named(make_dataset, datasets_path: Path) -> None:
    make_dataset("mine/link-v0", [EPISODE], BOX)
    with h5py.File(datasets_path / "mine/link-v0/data/main_data.hdf5", "a") as file:
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = h5py.SoftLink("/episode_0/rewards")
    with pytest.raises(InputError, match=r"'mine/link-v0' cannot be read \(episode_0/rewards is a link"):
        load_trajectories("mine/link-v0")
