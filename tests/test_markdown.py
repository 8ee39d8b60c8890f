from __future__ import annotations

import pytest

from dmm.errors import InputError
from dmm.markdown import table


def test_words_stand_left_and_numbers_right() -> None:
    made = table(["model", "data", "score"], [["dmm", "maze", "1.5"]], words=2)
    assert made.splitlines() == ["| model | data | score |", "| --- | --- | ---: |", "| dmm | maze | 1.5 |"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="row 1 has 1 cells, allowed are 2"):
        table(["model", "score"], [["dmm", "1"], ["dt"]])
