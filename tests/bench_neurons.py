"""``python -m tests.bench_neurons``: pictures of neurons at all steps in one batch, against one at a time through the whole model."""

import os
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import torch

from models import ViTConfig
from models.checkpoint import fresh
from probes import visualise
from tests.bench import ratio


def whole_model(model: Any, pairs: list[tuple[int, int]]) -> visualise.Objective:
    """The objective of a single pair, read while the whole model runs."""
    ((step, neuron),) = pairs

    def objective(inputs: torch.Tensor, rows: slice, left: float) -> torch.Tensor:
        found = []
        with model.hooks([(f"blocks.{step}.mlp.hook_post", lambda post, hook: found.append(post[:, 1:, neuron].mean(1)))]):
            model(inputs)
        return found[0]

    return objective


def main(n_neurons: int = 2, iterations: int = 2) -> None:
    model = fresh(ViTConfig.preset("bvit_shapes", n_classes=20), 0).eval()
    images = torch.rand(64, 3, 64, 64).cumsum(-1).tanh()
    canvas = visualise.measured(model, lambda: iter([images]))
    pairs = [(t, f) for t in range(model.config.n_steps) for f in range(n_neurons)]
    options = dict(iterations=iterations, copies=4)

    def together() -> None:
        visualise.optimised(method, pairs, visualise.of_neurons(model, pairs), canvas, **options)

    def one_at_a_time() -> None:
        for pair in pairs:
            visualise.optimised(method, [pair], whole_model(model, [pair]), canvas, **options)

    def all_at_once() -> None:
        with visualise.frozen(model):
            together()

    for method in visualise.METHODS:
        what = f"pictures of {n_neurons} neurons at 12 steps, {method}, in one batch / one at a time"
        ratio(what, all_at_once, one_at_a_time)
        with visualise.frozen(model):
            ratio(f"{what}, weights frozen", all_at_once, one_at_a_time)


if __name__ == "__main__":
    main()
