from __future__ import annotations

import sys

import pytest
import torch

if sys.platform != "linux":  # there the tests' packages bring it along
    pytest.importorskip("triton")

from dmm.scan.triton_segments import CHUNK, MOST_SEGMENTS, cut


def sizes(
    b: int, length: int, e: int, n: int, g: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    return torch.empty(b, length, e, dtype=dtype, device="meta"), torch.empty(g, e, n, dtype=dtype, device="meta")


class TestCut:
    @pytest.mark.parametrize(
        ("b", "length", "e"), [(64, 24, 64), (64, 4096, 64), (8, 4096, 1024), (1, 24, 64), (1, 1, 1)]
    )
    def test_tokens_stay_together_where_rows_and_channels_suffice_or_tokens_are_few(
        self, b: int, length: int, e: int
    ) -> None:
        (_, segments), options = cut(*sizes(b, length, e, 16), warps=4)
        assert segments == 1
        assert options["walk"] == -(-length // CHUNK)

    def test_one_long_sequence_becomes_as_many_segments_as_keep_a_gpu_busy(self) -> None:
        (programs, segments), options = cut(*sizes(1, 16384, 64, 16), warps=4)
        assert (programs, segments, options["walk"]) == (2, 64, 16)

    def test_there_is_an_end_to_cutting(self) -> None:
        assert cut(*sizes(1, 10**6, 1, 1), warps=4)[0] == (1, MOST_SEGMENTS)

    @pytest.mark.parametrize("length", [1, 16, 17, 100, 1000, 16385])
    @pytest.mark.parametrize("b", [1, 3, 40])
    def test_segments_cover_every_token_and_none_is_empty(self, b: int, length: int) -> None:
        (_, segments), options = cut(*sizes(b, length, 3, 5), warps=4)
        chunks = -(-length // CHUNK)
        assert (segments - 1) * options["walk"] < chunks <= segments * options["walk"]

    @pytest.mark.parametrize("n", [1, 3, 16, 100, 256])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_thread_holds_four_states_or_two_in_float64(self, n: int, dtype: torch.dtype) -> None:
        (programs, _), options = cut(*sizes(4, 24, 1000, n, dtype=dtype), warps=4)
        states = options["E"] * options["N"]
        assert states == 32 * options["num_warps"] * (4 if dtype == torch.float32 else 2)
        assert programs == 4 * -(-1000 // options["E"])
        assert options["N"] >= n

    def test_rows_of_each_system(self) -> None:
        assert cut(*sizes(10, 24, 64, 16, g=5), warps=4)[1]["rows"] == 2
