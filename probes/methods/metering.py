"""FLOPs, memory and time of a model, as torch counts them."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.config import ViTConfig
from models.vit import BViT


def counted_flops(model: BViT, image: Tensor, config: ViTConfig) -> dict[str, Any]:
    """FLOPs of one image's embedding, of each step [step], and of the read-out, by torch's counter."""

    def count(function: Callable[..., Tensor], *args: Any) -> tuple[Tensor, int]:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            value = function(*args)
        return value.detach(), counter.get_total_flops()

    z, embedding = count(model.embed, image)
    steps = np.zeros(config.n_steps, np.int64)
    for t in range(config.n_steps):
        z, steps[t] = count(model.run_steps, z, t, t + 1)
    return {"embedding": embedding, "step": steps, "head": count(model.read_out, z)[1]}


def run_of(model: BViT, images: Tensor, phase: str) -> Callable[[], None]:
    """One inference of the images, or one training step without the optimiser: forward and backward."""

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    def train() -> None:
        model.train()
        model(images).float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return infer if phase == "inference" else train


def seconds(run: Callable[[], None]) -> float:
    """Wall clock of one run, the device's queue waited for."""
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compiled(model: BViT, images: Tensor) -> float:
    """Compile the model's blocks; the seconds that the first inference and training step take more than the second."""
    model.compile()
    runs = [run_of(model, images, phase) for phase in ("inference", "training")]
    first = sum(map(seconds, runs))
    return first - sum(map(seconds, runs))


def peak_memory(run: Callable[[], None], model: BViT, device: torch.device) -> int:
    """The peak of bytes in tensors during a run, the model's weights included."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return weights + torch.cuda.max_memory_allocated() - before
    with Watch() as watch:
        run()
    return weights + watch.peak


class Watch(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(s) for s in storages((args, kwargs))}
        made = function(*args, **(kwargs or {}))
        for storage in storages(made):
            if id(storage) not in before and id(storage) not in self.known:
                self._add(storage)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.known[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


def storages(values: Any) -> list[torch.UntypedStorage]:
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, Tensor)]
