"""Run with: pytest tests/probes/test_grafts.py"""

import pytest
import torch

from models import ViTConfig, masks
from models.checkpoint import fresh
from probes.methods import grafts
from tests.reference import slow_prune

SMALL = dict(image_size=16, patch_size=8, d_model=8, n_heads=2, n_steps=4, n_classes=3, init="xavier")


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def setting(**fields):
    """A frozen model under its masks, images and labels."""
    config = ViTConfig(**(SMALL | fields))
    model = fresh(config, 3).double()
    chosen = torch.rand(config.n_steps, sum(masks.sizes(config).values())) < 0.7
    masks.put_on(model.requires_grad_(False), chosen)
    return model, chosen, torch.randn(5, 3, 16, 16), torch.randint(0, 3, (5,))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n_blocks": 4},
        {"step_embedding": "learned", "n_registers": 2},
        {"norm": "rms", "layer_scale": 0.5, "pool": "mean"},
    ],
    ids=["bvit", "stacked", "step embedding", "rms"],
)
def test_one_pass_gives_the_losses_and_gradients_of_one_graft_after_the_other(fields) -> None:
    model, chosen, images, labels = setting(**fields)
    steps = range(model.config.n_steps)
    together = grafts.stack(model, steps, chosen)
    losses = grafts.losses(model, together, chosen, steps, images, labels)
    losses.sum().backward()
    for t in steps:
        graft, loss = slow_prune.graft_loss(model, t, chosen, images, labels)
        loss.backward()
        assert torch.allclose(losses[t], loss, atol=1e-12)
        for name, parameter in graft.named_parameters():
            expected = parameter.grad * slow_prune.mask_of(name, chosen[t], model.config)
            assert torch.allclose(together[name].grad[t], expected, atol=1e-12), (t, name)


def test_splitting_the_grafts_changes_nothing() -> None:
    model, chosen, images, labels = setting()
    whole = grafts.losses(model, grafts.stack(model, range(4), chosen), chosen, range(4), images, labels)
    parts = [
        grafts.losses(model, grafts.stack(model, s, chosen[s]), chosen[s], s, images, labels)
        for s in ([0, 1], [2], [3])
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-12)


def test_each_graft_is_clipped_by_itself() -> None:
    model, chosen, images, labels = setting()
    together = grafts.stack(model, range(4), chosen)
    grafts.losses(model, together, chosen, range(4), images, labels).sum().backward()
    before = {name: value.grad.clone() for name, value in together.items()}
    norms = torch.stack([torch.cat([g[t].flatten() for g in before.values()]).norm() for t in range(4)])
    limit = float(norms.median())
    grafts.clip(together, limit)
    for t in range(4):
        factor = min(1, limit / float(norms[t]))
        for name, value in together.items():
            assert torch.allclose(value.grad[t], before[name][t] * factor, rtol=1e-4)
    assert (norms > limit).any() and (norms < limit).any()


def test_block_passes_are_those_of_the_shared_prefix(monkeypatch) -> None:
    """T - 1 of the main chain without gradient, one for all T grafts, and T (T - 1) / 2 of the diverged runs."""
    model, chosen, images, labels = setting()
    ran, real = [], type(model.core[0]).forward
    monkeypatch.setattr(
        type(model.core[0]), "forward", lambda self, z, *args: ran.append(len(z) // 5) or real(self, z, *args)
    )
    grafts.losses(model, grafts.stack(model, range(4), chosen), chosen, range(4), images, labels)
    assert sum(ran) == 3 + 1 + 4 * 3 // 2
