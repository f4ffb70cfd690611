"""What every head and FFN of every step adds to the logit of a class: exact, since the stream is a sum.

The final norm divides by a scale that all parts share; held at its value on the image, a logit is the sum of what the
embedding, every part of every step and the head's bias add to it (direct logit attribution).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.vit import BViT
from probes.methods.reading import Readout

SITES = ("attn.hook_z", "hook_mlp_out")  # what is kept of a step, at the rows that the head reads
TO = ("class", "others", "margin")  # the image's class, the mean of the other classes, and what lies between
WHOLE = ("embedding", "bias", "logit")  # what belongs to no step, and the sum


def names(model: BViT) -> list[str]:
    """The parts of a step, in order."""
    config = model.config
    heads = [f"head {h}" for h in range(config.n_heads)]
    embedding = [] if config.step_embedding == "none" else ["step embedding"]
    return [*heads, "attention bias", "FFN", *embedding]


def parts(model: BViT, kept: Mapping[str, Tensor]) -> Tensor:
    """What each part adds to the rows that are read, from pooled activations by name: [batch step part row d_model]."""
    steps = []
    for t, step in enumerate(model.blocks):
        z, ffn = (kept[f"blocks.{t}.{site}"] for site in SITES)
        heads = torch.einsum("brhd,hdm->bhrm", z, step.attn.W_O)
        constant = [step.attn.b_O, model.step_embedding(t)]
        bias, embedding = (None if value is None else value.expand_as(ffn)[:, None] for value in constant)
        of_step = [heads, bias, ffn[:, None], *([] if embedding is None else [embedding])]
        steps.append(torch.cat(of_step, 1))
    return torch.stack(steps, 1)


def to_classes(readout: Readout, added: Tensor, last: Tensor, labels: Tensor) -> Tensor:
    """What is added [batch ... row d_model] raises the logits by: [to ... batch]; `last` is the rows that are read."""
    directions = readout.directions()
    own = directions[:, labels].transpose(0, 1)
    others = (directions.sum(1) - own) / (directions.shape[1] - 1)
    return torch.einsum("b...rd,tbrd->t...b", added, torch.stack([own, others, own - others]) / readout.scale(last))


def of_batch(
    readout: Readout, kept: Mapping[str, Tensor], first: Tensor, last: Tensor, logits: Tensor, labels: Tensor
) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """Of a batch, what every part of every step adds, and what belongs to no step: [... batch], by name.

    first, last: the rows [batch row d_model] that the head reads of z_0 and z_T; `kept` is what was in between.
    """
    added = to_classes(readout, parts(readout.model, kept), last, labels).transpose(1, 2)
    embedding = to_classes(readout, first, last, labels)
    bias = of_class(readout.biases().expand(len(labels), -1), labels)
    whole = torch.stack([embedding, bias, of_class(logits, labels)], 1)
    return {"contribution": (("to", "part", "step"), added), "whole_contribution": (("to", "whole"), whole)}


def rest(values: Mapping[str, tuple[tuple[str, ...], Tensor]]) -> Tensor:
    """What the parts leave unexplained of the logits, at most: [batch], zero but for rounding."""
    added, (embedding, bias, logit) = values["contribution"][1], values["whole_contribution"][1].unbind(1)
    return (added.sum((1, 2)) + embedding + bias - logit).abs().amax(0)


def of_class(values: Tensor, labels: Tensor) -> Tensor:
    """Of values of every class [batch class], those in TO: [to batch]."""
    own = values.gather(1, labels[:, None])[:, 0]
    others = (values.sum(1) - own) / (values.shape[1] - 1)
    return torch.stack([own, others, own - others])
