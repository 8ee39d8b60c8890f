"""A stock-Mamba policy: the shared frame with `h = h + Mamba(LN(h))`, the block of `mamba_ssm.Mamba`.

It isolates the paper's question: the same tokens, head and training, but the local mixer is Mamba's own depth-wise
convolution, inside the block and behind no residual of its own. It is not Ota's Decision Mamba, which adds an MLP and a
timestep embedding to this. Its projections start as everything in the frame does, with `N(0, 0.02)` (see
`dmm.layers.initial.init_linear`), where `mamba_ssm` leaves them to PyTorch's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dmm.configs import check_positive
from dmm.errors import require_choice
from dmm.fused import Cell, branch, cell, newest
from dmm.layers.mamba import MambaBlock, MambaState, StepInit
from dmm.models.entry import Model, Official
from dmm.models.frame import TokenPolicy, TokenPolicyConfig


@dataclass(frozen=True, kw_only=True)
class MambaConfig(TokenPolicyConfig):
    """A stock-Mamba policy; with the defaults of `mamba_ssm.Mamba` inside its blocks."""

    expand: int = 2  # inner channels per channel
    ssm_state: int = 16  # n
    conv_width: int = 4  # taps of the depth-wise convolution
    step_init: StepInit = "mamba"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "expand", "ssm_state", "conv_width")
        require_choice("step_init", self.step_init, StepInit)


class MambaLayer(nn.Module):
    """`x + Mamba(LN(x))`: `(b, l, d) -> (b, l, d)`."""

    def __init__(self, config: MambaConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.mixer = MambaBlock(
            config.width,
            state_size=config.ssm_state,
            expand=config.expand,
            conv_width=config.conv_width,
            step_init=config.step_init,
        )
        self.mixer.init_projections()

    def forward(self, x: Tensor) -> Tensor:
        fused = branch(self.norm, self.mixer, x, normalized=False)
        return fused() if fused is not None else x + self.mixer(self.norm(x))  # type: ignore[no-any-return]

    def newest(self, x: Tensor) -> Tensor:
        """`forward` of the last token alone, `(b, l, d) -> (b, d)`, for acting."""
        return newest(self.norm, self.mixer, x, normalized=False)

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token."""
        return self.mixer.init_state(batch)

    def extend(self, x: Tensor, state: MambaState, present: Tensor | None = None) -> tuple[Tensor, MambaState]:
        """The next `t` tokens: `(b, t, d)`, state -> `(b, t, d)`, new state; see `MambaBlock.extend`."""
        y, state = self.mixer.extend(self.norm(x), state, present)
        return x + y, state

    def cell(self) -> Cell:
        """What `extend` is with the weights of now, for acting."""
        return cell(self.norm, self.mixer, normalized=False)

    def parts(self) -> dict[str, nn.Module]:
        """What the layer adds to its input, by name, in order."""
        return {"Mamba": self.mixer}


class MambaPolicy(TokenPolicy):
    """`config.layers` stock Mamba blocks in the shared frame."""

    config: MambaConfig

    def __init__(self, config: MambaConfig):
        super().__init__(config)
        self.blocks.extend(MambaLayer(config) for _ in range(config.layers))


def _block_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a `MambaBlock` from those of `mamba_ssm.Mamba`, with its defaults."""
    rank = config.get("dt_rank", "auto")
    return {
        "d": config["d_model"],
        "state_size": config.get("d_state", 16),
        "conv_width": config.get("d_conv", 4),
        "expand": config.get("expand", 2),
        "rank": None if rank == "auto" else rank,
    }


def _block_sources(block: MambaBlock) -> dict[str, str]:
    return {key: key for key in block.state_dict()}


MODEL = Model(
    name="mamba",
    policy=MambaPolicy,
    config=MambaConfig,
    description="stock Mamba blocks in the same frame",
    source="Gu & Dao 2024, arXiv 2312.00752; mamba_ssm.Mamba in the frame of dmm",
    official=Official(config=_block_config, sources=_block_sources, module=lambda sizes: MambaBlock(**sizes)),
)
