"""Small models all of whose parts matter, which the tests of probes share."""

import dataclasses

import torch

from models import ViTConfig
from models.checkpoint import fresh

CONFIG = ViTConfig.preset("bvit_easy", n_steps=3, d_model=16, n_heads=2, n_classes=20)
SHAPES = {
    "bvit": {},
    "stacked": {"n_blocks": 3},
    "between": {"n_blocks": 2, "step_embedding": "learned", "n_registers": 2},
    "layer scale": {"layer_scale": 0.5, "norm": "rms", "pool": "mean"},
}


def made(data, **changes: object):
    """A model of these classes whose attention is far from uniform and whose answers hang on every part."""
    model = fresh(dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), **changes), 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.head.weight.normal_(generator=generator)
        for block in model.core:
            block.attn.qkv.weight.mul_(6)
            block.attn.proj.weight.mul_(6)
            block.mlp.fc2.weight.mul_(6)
            block.attn.proj.bias.normal_(generator=generator)
    return model


def moved(data, by: float = 0.2, **changes: object):
    """A model of these classes every weight of which has moved from its start."""
    torch.manual_seed(0)
    model = fresh(dataclasses.replace(CONFIG, classes=tuple(data.dataset.classes), **changes), 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model
