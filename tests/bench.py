"""``make bench``: ratios of speeds measured side by side in one run, the two sides in turn, on this machine.

Nothing here is a test: times depend on what else the machine does, so only the ratio of medians is of interest.
"""

import statistics
import time
from collections.abc import Callable

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn.functional import cross_entropy

from models import ViTConfig, open_data
from models.checkpoint import Origin, fresh
from models.data import Stream
from probes import pointing_game

ROUNDS = 7


def ratio(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Print median time of `theirs` over that of `ours`: above 1 is faster than the other side."""
    ours(), theirs()
    times = ([], [])
    for _ in range(ROUNDS):
        for side, run in zip(times, (ours, theirs), strict=True):
            started = time.perf_counter()
            run()
            side.append(time.perf_counter() - started)
    mine, other = map(statistics.median, times)
    spread = [b / a for a, b in zip(*times, strict=True)]
    print(
        f"{name:66} {other / mine:5.2f}x   ({min(spread):.2f} to {max(spread):.2f}; {1000 * mine:.0f} against {1000 * other:.0f} ms)",
        flush=True,
    )


def main() -> None:
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads; speed as a multiple of the other side's\n"
    )
    shape = dict(image_size=96, patch_size=8, d_model=192, n_heads=3, n_classes=10)
    model = fresh(ViTConfig(**shape), 0)
    vit = VisionTransformer(img_size=96, patch_size=8, embed_dim=192, depth=12, num_heads=3, num_classes=10)
    images, labels = torch.randn(16, 3, 96, 96), torch.randint(0, 10, (16,))

    def training(net: torch.nn.Module) -> Callable[[], None]:
        return lambda: cross_entropy(net(images), labels).backward()

    def forward(net: torch.nn.Module, **kwargs) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                net(images, **kwargs)

        return run

    def cached(names: object) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                model.run_with_cache(images, names_filter=names)

        return run

    def bare() -> None:
        """The same arithmetic without hook points."""
        with torch.inference_mode():
            z, block = model.embed(images), model.core[0]
            for _ in range(12):
                h = torch.nn.functional.layer_norm(z, (192,), block.norm1.weight, block.norm1.bias, 1e-6)
                q, k, v = block.attn.qkv(h).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
                z = z + block.attn.proj(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                h = torch.nn.functional.layer_norm(z, (192,), block.norm2.weight, block.norm2.bias, 1e-6)
                z = z + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(h)))
            model.read_out(z)

    ratio("training step (forward + backward), bViT / timm's ViT of its size", training(model), training(vit))
    model.eval(), vit.eval()
    ratio("forward, bViT / timm's ViT of its size", forward(model), forward(vit))
    ratio("forward, hook points idle / no hook points", forward(model), bare)
    ratio("run_with_cache of every pattern / plain forward", cached("blocks.*.attn.hook_pattern"), forward(model))
    ratio(
        "run_with_cache of CLS rows alone / plain forward",
        cached({"blocks.*.attn.hook_pattern": lambda p: p[:, :, 0].clone()}),
        forward(model),
    )

    small = fresh(ViTConfig.preset("bvit_shapes", n_classes=20), 0).eval()
    small.origin = Origin("untrained")
    data = torch.utils.data.Subset(open_data("shapes", like=small), range(256))

    def plain() -> None:
        with torch.inference_mode():
            for batch in Stream(data, 64):
                small(batch.images)

    ratio("pointing game on shapes / plain forward over the same images", lambda: pointing_game.watch(small, data, batch_size=64), plain)


if __name__ == "__main__":
    main()
