"""``make bench``: ratios of speeds measured side by side in one run, the two sides in turn, on this machine.

Nothing here is a test: times depend on what else the machine does, so only the ratio of medians is of interest.
"""

import io
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy
from torch.utils.data import Subset

from models import BViT, ViTConfig, masks, open_data
from models.checkpoint import fresh
from models.data import Stream
from models.origin import Origin
from probes import pointing_game, recurrence, trajectories
from probes.methods import grafts, moments, visualise
from probes.probe import Pass

ROUNDS = 7


def ratio(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> None:
    """Print median time of `theirs` over that of `ours`: above 1 is faster than the other side."""
    times = ([], [])
    with redirect_stderr(io.StringIO()):  # progress bars
        ours(), theirs()
        for _ in range(rounds):
            for side, run in zip(times, (ours, theirs), strict=True):
                started = time.perf_counter()
                run()
                side.append(time.perf_counter() - started)
    mine, other = map(statistics.median, times)
    spread = [b / a for a, b in zip(*times, strict=True)]
    times = f"{1000 * mine:.0f} against {1000 * other:.0f} ms"
    line = f"{name:74} {other / mine:5.2f}x   ({min(spread):.2f} to {max(spread):.2f}; {times})"
    print(line, flush=True)


def without_gradient(function: Callable[..., object], *args: object, **kwargs: object) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            function(*args, **kwargs)

    return run


def training(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    return lambda: cross_entropy(net(images), labels).backward()


def of_the_study(n: int = 64) -> None:
    """Training at the sizes of studies/core.yaml; `n` images a step."""
    for width, n_heads in ((32, 2), (64, 4), (128, 8)):
        config = ViTConfig.preset("bvit_easy", d_model=width, n_heads=n_heads, n_classes=20)
        size = dict(img_size=config.image_size, patch_size=config.patch_size, num_heads=config.n_heads, num_classes=20)
        vit = VisionTransformer(**size, embed_dim=width, depth=config.n_steps)
        images, labels = torch.randn(n, 3, config.image_size, config.image_size), torch.randint(0, 20, (n,))
        name = f"training step at the study's width {width}, {n} images, bViT / timm's ViT"
        ratio(name, training(fresh(config, 0), images, labels), training(vit, images, labels))


def against_timm() -> None:
    """The model and its hooks, against timm's ViT of the same size and against the same arithmetic without hook
    points.
    """
    shape = dict(image_size=96, patch_size=8, d_model=192, n_heads=3, n_classes=10)
    model = fresh(ViTConfig(**shape), 0)
    vit = VisionTransformer(img_size=96, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=10)
    images, labels = torch.randn(16, 3, 96, 96), torch.randint(0, 10, (16,))

    def bare() -> None:
        z, block = model.embed(images), model.core[0]
        for _ in range(12):
            h = torch.nn.functional.layer_norm(z, (192,), block.norm1.weight, block.norm1.bias, 1e-6)
            q, k, v = block.attn.qkv(h).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
            z = z + block.attn.proj(
                torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            )
            h = torch.nn.functional.layer_norm(z, (192,), block.norm2.weight, block.norm2.bias, 1e-6)
            z = z + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(h)))
        model.read_out(z)

    ratio(
        "training step, bViT / timm's ViT of its size", training(model, images, labels), training(vit, images, labels)
    )
    model.eval(), vit.eval()
    plain = without_gradient(model, images)
    cached = without_gradient(model.run_with_cache, images, names_filter="blocks.*.attn.hook_pattern")
    rows = without_gradient(
        model.run_with_cache, images, names_filter={"blocks.*.attn.hook_pattern": lambda p: p[:, :, 0].clone()}
    )
    ratio("forward, bViT / timm's ViT of its size", plain, without_gradient(vit, images))
    ratio("forward, hook points idle / no hook points", plain, without_gradient(bare))
    ratio("run_with_cache of every pattern / plain forward", cached, plain)
    ratio("run_with_cache of CLS rows alone / plain forward", rows, plain)


def passes() -> None:
    """What a probe's pass over the data costs, against a plain forward over the same images."""
    classes = tuple(open_data("shapes").classes)
    model = fresh(ViTConfig.preset("bvit_shapes", n_classes=len(classes), classes=classes), 0).eval()
    model.origin = Origin("untrained")
    data = Subset(open_data("shapes", like=model), range(640))

    def forwards(n_steps: int | None = None) -> Callable[[], None]:
        def run() -> None:
            for batch in Stream(data, 64):
                model(batch.images, n_steps=n_steps)

        return without_gradient(run)

    images, class_of_label = Pass(data, 64), torch.arange(20)
    map_of = partial(pointing_game.finite_map, model, "attention", None)
    walks = {
        "pointing game": lambda: images.over(lambda batch: pointing_game.read(model, batch, "none", map_of)),
        "rank, 5 tokens an image": lambda: moments.of_model(model, images, 5),
        "trajectories": lambda: images.over(lambda batch: trajectories.read(model, batch, "cls")),
    }
    for name, walk in walks.items():
        ratio(f"{name} / plain forward", walk, forwards(), rounds=5)
    unrolled = model.at_steps(24)
    further = lambda: images.over(lambda batch: recurrence.read(unrolled, batch, class_of_label, 24))  # noqa: E731
    ratio("recurrence to 24 steps / plain forward of 24 steps", further, forwards(24), rounds=3)


def whole_model(model: BViT, pairs: list[tuple[int, int]]) -> visualise.Objective:
    """The objective of a single (step, neuron) pair, read while the whole model runs."""
    ((step, neuron),) = pairs

    def objective(inputs: torch.Tensor, rows: slice, left: float) -> torch.Tensor:
        means = []
        read = (f"blocks.{step}.mlp.hook_post", lambda post, hook: means.append(post[:, 1:, neuron].mean(1)))
        with model.hooks([read]):
            model(inputs)
        return means[0]

    return objective


def pictures_of_neurons(n_neurons: int = 2, iterations: int = 2) -> None:
    """Pictures of neurons at all steps in one batch, against one at a time through the whole model."""
    model = fresh(ViTConfig.preset("bvit_shapes", n_classes=20), 0).eval()
    images = torch.rand(64, 3, 64, 64).cumsum(-1).tanh()
    canvas = visualise.measured(model, lambda: iter([images]))
    pairs = [(t, f) for t in range(model.config.n_steps) for f in range(n_neurons)]
    options = dict(iterations=iterations, copies=4)

    def one_at_a_time() -> None:
        for pair in pairs:
            visualise.optimised(method, [pair], whole_model(model, [pair]), canvas, **options)

    def all_at_once() -> None:
        with visualise.frozen(model):
            visualise.optimised(method, pairs, visualise.of_neurons(model, pairs), canvas, **options)

    for method in visualise.METHODS:
        what = f"pictures of {n_neurons} neurons at 12 steps, {method}, one batch / one at a time"
        ratio(what, all_at_once, one_at_a_time, rounds=3)
        with visualise.frozen(model):
            ratio(f"{what}, frozen weights", all_at_once, one_at_a_time, rounds=3)


def training_of_grafts() -> None:
    """A training step of all grafts in one pass, against one graft after the other."""
    model = fresh(ViTConfig.preset("bvit_easy", n_classes=20), 0).requires_grad_(False)
    steps, config = range(model.config.n_steps), model.config
    kept = torch.rand(config.n_steps, sum(masks.sizes(config).values())) < 0.5
    masks.put_on(model, kept)
    images, labels = torch.randn(64, 3, config.image_size, config.image_size), torch.randint(0, 20, (64,))
    stack = grafts.stack(model, steps, kept)

    def together() -> None:
        grafts.losses(model, stack, kept, steps, images, labels).sum().backward()

    def one_after_the_other() -> None:
        for t in steps:
            own = {name: value[t : t + 1].detach().requires_grad_() for name, value in stack.items()}
            grafts.losses(model, own, kept[t : t + 1], [t], images, labels).sum().backward()

    ratio("training step of all grafts, one pass / one after the other", together, one_after_the_other)


def main() -> None:
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads; speed as a multiple "
        "of the other side's\n"
    )
    against_timm()
    of_the_study()
    passes()
    pictures_of_neurons()
    training_of_grafts()


if __name__ == "__main__":
    main()
