"""A circuit's run, written out edge by edge, for a bViT of three steps and two heads of eight channels."""

import numpy as np
import torch
from torch import nn

from analyses import graph as graphs


def of_circuit(model, z: torch.Tensor, reference: torch.Tensor, kept: np.ndarray) -> torch.Tensor:
    """Every target's stream as the sum of what it reads, source by source."""
    graph, block, constant = graphs.Graph(3, 2), model.core[0], torch.zeros(16)
    sources = [z]

    def stream(target: int) -> torch.Tensor:
        return constant + sum(own if kept[i, target] else reference[i].expand_as(own) for i, own in enumerate(sources))

    for t in range(3):
        heads = []
        for head in range(2):
            q, k, v = (
                block.attn.qkv(block.norm1(stream(graph.reading(t, slot).start + head))).unflatten(-1, (3, 2, 8))[
                    :, :, slot, head
                ]
                for slot in range(3)
            )
            pattern = (q @ k.mT / 8**0.5).softmax(-1)
            heads.append(pattern @ v @ model.blocks[t].attn.W_O[head])
        sources += heads
        constant = constant + block.attn.proj.bias
        sources.append(block.mlp.fc2(nn.functional.gelu(block.mlp.fc1(block.norm2(stream(graph.ffn_reading(t)))))))
    return model.read_out(stream(graph.n_targets - 1))
