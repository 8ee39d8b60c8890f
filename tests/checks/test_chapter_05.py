import pytest
import torch
import torch.nn.functional as F

from dmm.checks import CheckFailed, chapter_05
from dmm.inspection import gradient_norms


def share_of(y, z, gate=F.silu, sizes=lambda x: x.abs().sum(-1)):
    """Each window's share of each token, (b, l)."""
    return sizes(y * gate(z)) / sizes(y)


def over_real(share, mask):
    return torch.where(mask, share, 0.0).sum(0) / mask.sum(0)


def gate_share(y, z, mask, **changes):
    return over_real(share_of(y, z, **changes), mask)


def share_by_vmap(y, z, mask):
    def token(y, z, mask):
        share = torch.func.vmap(lambda y, z: (y * F.silu(z)).abs().sum() / y.abs().sum())(y, z)
        return torch.where(mask, share, 0.0).sum() / mask.sum()

    return torch.func.vmap(token, in_dims=1)(y, z, mask)


def share_window_by_window(y, z, mask):
    return [share_of(y[mask[:, t], t], z[mask[:, t], t]).mean() for t in range(y.shape[1])]


def modality_norms(x):
    return x.abs().sum(-1).mean(0).view(-1, 3).mean(0)


def rows(policy, windows, choose=lambda actions: actions[:, -1]):
    """Gradients of each component, (a, b, l, d)."""
    tokens = policy.embed(windows).detach().requires_grad_()
    chosen = choose(policy.decode(tokens, windows))
    return torch.stack(
        [torch.autograd.grad(chosen[:, i].sum(), tokens, retain_graph=True)[0] for i in range(policy.action_size)]
    )


def lengths(gradients):
    return gradients.square().sum((0, -1)).sqrt()


def by_jacrev(policy, windows):
    tokens = policy.embed(windows).detach()
    J = torch.func.jacrev(lambda x: policy.decode(x, windows)[:, -1].sum(0))(tokens)  # (a, b, l, d)
    return J.square().sum((0, 3)).sqrt().mean(0)


def of_normed(policy, windows):
    x = policy.embed_norm(policy.embed(windows)).detach().requires_grad_()
    actions = torch.tanh(policy.head(policy.norm(policy.mix(x, windows))[:, 1::3]))[:, -1]
    each = [torch.autograd.grad(actions[:, i].sum(), x, retain_graph=True)[0] for i in range(policy.action_size)]
    return lengths(torch.stack(each)).mean(0)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (chapter_05.check_gate_share, gate_share),
        (chapter_05.check_gate_share, share_by_vmap),
        (chapter_05.check_gate_share, share_window_by_window),
        (chapter_05.check_modality_norms, modality_norms),
        (chapter_05.check_modality_norms, lambda x: [x[:, i::3].abs().sum(-1).mean() for i in range(3)]),
        (
            chapter_05.check_modality_norms,
            lambda x: dict(zip(("rtg", "state", "action"), modality_norms(x).tolist(), strict=True)),
        ),
        (chapter_05.check_gradient_norms, by_jacrev),
        (chapter_05.check_gradient_norms, lambda policy, windows: lengths(rows(policy, windows)).mean(0)),
    ],
)
def test_right_answers_pass_with_one_line(check, answer, capsys):
    check(answer)
    printed = capsys.readouterr().out
    assert printed.startswith("Correct") and printed.count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda y, z, m: share_of(y, z).mean(0), "padded tokens are in the mean"),
        (lambda y, z, m: torch.where(m, share_of(y, z), 0.0).mean(0), "divide by the number of windows in which"),
        (lambda y, z, m: (share_of(y, z) * m).sum(0) / m.sum(0), "NaN times 0"),
        (lambda y, z, m: gate_share(y, z, ~m), "upside down: True"),
        (lambda y, z, m: gate_share(y, z, m, gate=lambda z: z), "silu is missing"),
        (lambda y, z, m: gate_share(y, z, m, gate=torch.sigmoid), "sigmoid gate"),
        (lambda y, z, m: gate_share(y, z, m, gate=F.relu), "ReLU gate"),
        (lambda y, z, m: gate_share(z, y, m), "changed places"),
        (lambda y, z, m: torch.where(m, share_of(y, z), 0.0), "one row per window"),
        (lambda y, z, m: over_real(F.silu(z).abs().mean(-1), m), "must count more"),
        (lambda y, z, m: gate_share(y, z, m, sizes=lambda x: x.sum(-1)), "absolute values are missing"),
        (lambda y, z, m: 1 - gate_share(y, z, m), "what is lost"),
        (lambda y, z, m: over_real(1 / share_of(y, z), m), "upside down: what"),
        (lambda y, z, m: gate_share(y, z, m, sizes=lambda x: x.norm(dim=-1)), "L1 norm"),
        (lambda y, z, m: torch.ones(y.shape[1]), "share is not"),
        (lambda y, z, m: y * F.silu(z), "expected shape"),
        (lambda y, z, m: None, "returned nothing"),
    ],
)
def test_wrong_shares_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint) as caught:
        chapter_05.check_gate_share(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x: modality_norms(x)[[1, 2, 0]], "token 0 is a return-to-go"),
        (lambda x: modality_norms(x)[[0, 2, 1]], "wrong order"),
        (lambda x: x.abs().sum(-1).mean(0).view(3, -1).mean(1), "interleaved"),
        (lambda x: torch.stack([x[..., i::3].abs().sum(-1).mean() for i in range(3)]), "slices channels, tokens"),
        (lambda x: [x[..., i::3].abs().mean() for i in range(3)], "and a norm sums"),
        (lambda x: modality_norms(x[:1]), "only the first window"),
        (lambda x: modality_norms(x[:, -3:]), "only the last time step"),
        (lambda x: x.square().sum(-1).mean(0).view(-1, 3).mean(0), "those are squares"),
        (lambda x: x.abs().amax(-1).mean(0).view(-1, 3).mean(0), "largest entries"),
        (lambda x: modality_norms(x) / modality_norms(x).sum(), "shares of the sum"),
        (lambda x: x.abs().sum(-1).mean().repeat(3), "in one mean"),
        (lambda x: x.norm(dim=-1).mean(0).view(-1, 3).mean(0), "Euclidean"),
        (lambda x: x.sum(-1).mean(0).view(-1, 3).mean(0), "absolute values are missing"),
        (lambda x: modality_norms(x) / x.shape[-1], "averages over the channels"),
        (lambda x: x.abs().sum(-1).mean(0).view(-1, 3).sum(0), "time steps are summed"),
        (lambda x: x.abs().sum((0, -1)).view(-1, 3).mean(0), "windows are summed"),
        (lambda x: modality_norms(x.mean(0, keepdim=True)), "averaged before the norm"),
        (lambda x: x.abs().sum(-1).mean(0), "per token"),
        (lambda x: x.abs().mean(0).unflatten(0, (-1, 3)).mean(0), "per channel"),
        (lambda x: torch.ones(3), "norms are not"),
        (lambda x: None, "returned nothing"),
    ],
)
def test_wrong_norms_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_05.check_modality_norms(answer)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda p, w: lengths(rows(p, w, lambda actions: actions.sum(1))).mean(0), "all time steps"),
        (lambda p, w: rows(p, w).sum(0).norm(dim=-1).mean(0), "one gradient for each"),
        (lambda p, w: lengths(rows(p, w)).sum(0), "windows are summed"),
        (lambda p, w: lengths(rows(p, w)).mean(0) / len(w.states), "twice"),
        (lambda p, w: lengths(rows(p, w).mean(1)), "averaged over the windows"),
        (gradient_norms, "dmm.inspection made them"),
        (of_normed, "behind the embedding's LayerNorm"),
        (lambda p, w: gradient_norms(p, w).flip(0), "reversed"),
        (lambda p, w: lengths(rows(p, w)).square().mean(0), "those are squares"),
        (lambda p, w: lengths(rows(p, w)).square().mean(0).sqrt(), "each window's norm first"),
        (lambda p, w: rows(p, w).abs().sum((0, -1)).mean(0), "absolute values"),
        (lambda p, w: rows(p, w).norm(dim=-1).mean((0, 1)), "averaged: put all"),
        (lambda p, w: rows(p, w).norm(dim=-1).sum(0).mean(0), "added: put all"),
        (lambda p, w: gradient_norms(p, w)[:-1], "one token is missing"),
        (lambda p, w: lengths(rows(p, w)), "per window"),
        (lambda p, w: rows(p, w).square().sum((0, 2)).sqrt().mean(0), "channel for a token"),
        (lambda p, w: torch.zeros(3 * p.context), "norms are not"),
        (lambda p, w: p.nothing, "raised AttributeError"),
    ],
)
def test_wrong_gradients_are_told_why(answer, hint):
    with pytest.raises(CheckFailed, match=hint):
        chapter_05.check_gradient_norms(answer)
