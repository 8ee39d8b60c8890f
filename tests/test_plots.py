from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from dmm import plots
from dmm.errors import InputError


def test_the_three_modalities_have_the_house_colours() -> None:
    assert (plots.COLORS["rtg"], plots.COLORS["state"], plots.COLORS["action"]) == ("#E69F00", "#0072B2", "#CC3311")
    assert set(plots.LINE_CYCLE) == set(plots.COLORS)


@pytest.mark.parametrize("width", ["full", "half"])
def test_figures_are_opaque_and_of_fixed_size(width: str) -> None:
    figure, axes = plots.figure(width)  # type: ignore[arg-type]
    assert tuple(figure.get_size_inches()) == plots.SIZES[width]
    assert figure.get_facecolor() == axes.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert mpl.rcParams["savefig.transparent"] is False
    plt.close(figure)


def test_a_height_of_ones_own() -> None:
    figure, _ = plots.figure("half", height=5)
    assert tuple(figure.get_size_inches()) == (plots.SIZES["half"][0], 5)
    plt.close(figure)


@pytest.mark.parametrize(("arguments", "named"), [({"width": "double"}, "width"), ({"height": -1}, "height")])
def test_bad_sizes_are_refused_in_one_line(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        plots.figure(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
