"""Other models' training steps written down as their authors' code computes them, to measure this package's beside.

Plain torch, with the authors' names for weights, so that `dmm.from_official` reads them: Decision ConvFormer
(`beanie00/Decision-ConvFormer`), whose three convolutions each run over all tokens, and Ota's Decision Mamba
(`Toshihiro-Ota/decision-mamba`), whose scan is a loop over tokens where there is no CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmm.data.windows import Windows


class _Convolution(nn.Module):
    """One depth-wise convolution for each modality; every third output of each is kept."""

    def __init__(self, d: int, window: int):
        super().__init__()
        self.window = window
        self.rtg_conv1d, self.obs_conv1d, self.act_conv1d = (nn.Conv1d(d, d, window, groups=d) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (self.window - 1, 0))  # (b, d, w - 1 + l)
        outputs = (self.rtg_conv1d(padded), self.obs_conv1d(padded), self.act_conv1d(padded))
        kept = torch.stack([y[:, :, place::3] for place, y in enumerate(outputs)], dim=3)  # (b, d, k, 3)
        return kept.reshape(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)


class _Mamba(nn.Module):
    """`mamba_ssm.Mamba` with the recurrence as a loop."""

    def __init__(self, d: int, states: int = 16, taps: int = 4):
        super().__init__()
        e, self.rank, self.states = 2 * d, math.ceil(d / 16), states
        self.in_proj, self.out_proj = nn.Linear(d, 2 * e, bias=False), nn.Linear(e, d, bias=False)
        self.conv1d = nn.Conv1d(e, e, taps, groups=e, padding=taps - 1)
        self.x_proj, self.dt_proj = nn.Linear(e, self.rank + 2 * states, bias=False), nn.Linear(self.rank, e)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(e, 1))
        self.D = nn.Parameter(torch.ones(e))

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(u.mT)[..., : x.shape[1]].mT)
        low, B, C = self.x_proj(u).split([self.rank, self.states, self.states], dim=-1)
        delta = F.softplus(self.dt_proj(low))
        decay = torch.exp(delta[..., None] * -self.A_log.exp())  # (b, l, e, n)
        drive = (delta * u)[..., None] * B[:, :, None]
        h, outputs = torch.zeros_like(drive[:, 0]), []
        for a, b, c in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
            h = a * h + b  # (b, e, n)
            outputs.append((h * c[:, None]).sum(-1))
        y = (torch.stack(outputs, dim=1) + self.D * u) * F.silu(z)
        return self.out_proj(y)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """A mixer and an MLP, each behind a norm; `names` are the authors' of the norm, the mixer and the MLP."""

    def __init__(self, d: int, mixer: nn.Module, names: tuple[str, str, str]):
        super().__init__()
        self.names, self.ln_2, self.drop = names, nn.LayerNorm(d), nn.Dropout(0.1)
        mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        for name, module in zip(names, (nn.LayerNorm(d), mixer, mlp), strict=True):
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        norm, mixer, mlp = (self.get_submodule(name) for name in self.names)
        x = x + mixer(norm(x))
        return x + self.drop(mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class Transcribed(nn.Module):
    """Decision ConvFormer (`dc`) or Ota's Decision Mamba (`dm`)."""

    def __init__(self, name: str, state_size: int, action_size: int, width: int, layers: int, window: int = 6):
        super().__init__()
        d = width
        self.embed_timestep = nn.Embedding(1000, d)
        self.embed_return, self.embed_state = nn.Linear(1, d), nn.Linear(state_size, d)
        self.embed_action, self.embed_ln = nn.Linear(action_size, d), nn.LayerNorm(d)
        self.drop = nn.Dropout(0.1)
        convolutions = name == "dc"
        names = ("ln_1", "conv", "mlp") if convolutions else ("norm_mamba", "mamba", "mlp_channels")
        mixers = [_Convolution(d, window) if convolutions else _Mamba(d) for _ in range(layers)]
        blocks = nn.ModuleList(_Block(d, mixer, names) for mixer in mixers)
        self.transformer = nn.ModuleDict({"h": blocks, "ln_f": nn.LayerNorm(d)})
        self.predict_action = nn.Sequential(nn.Linear(d, action_size), nn.Tanh())

    def forward(self, states: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor) -> Tensor:
        (b, k, _), time = states.shape, self.embed_timestep(timesteps)
        parts = (self.embed_return(returns_to_go), self.embed_state(states), self.embed_action(actions))
        x = torch.stack([part + time for part in parts], dim=1).permute(0, 2, 1, 3).reshape(b, 3 * k, -1)
        x = self.drop(self.embed_ln(x))
        for block in self.transformer["h"].children():
            x = block(x)
        x = self.transformer["ln_f"](x).reshape(b, k, 3, -1).permute(0, 2, 1, 3)
        return self.predict_action(x[:, 1])  # type: ignore[no-any-return]


def transcribed_step(model: Transcribed, windows: Windows) -> Callable[[], None]:
    """Forward, loss on real steps, backward, clipping and AdamW over windows at hand, as the authors' trainers do."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)
    real = windows.mask.reshape(-1)

    def step() -> None:
        predicted = model(windows.states, windows.actions, windows.returns_to_go / 1000, windows.timesteps)
        found, wanted = (x.reshape(-1, x.shape[2])[real] for x in (predicted, windows.actions))
        loss = torch.mean((found - wanted) ** 2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return step
