"""Pictures that maximise what a model computes, many at once: by pixels with total variation, or by Fourier phases
alone.

"tv" follows Ghiasi et al. ("What do Vision Transformers learn? A visual exploration"): Adam on pixels, under roll,
colour jitter and fading colour noise, with a penalty on total variation; unlike there the penalty scales with the
picture's size, and a neuron that is silent on its picture gets a small gradient.
"maco" (Fel et al., "Unlocking feature visualization for deeper networks with magnitude constrained optimization")
keeps the magnitude spectrum of real images and moves the phases alone, seen through random crops. Pictures do not
depend on which others are made beside them: each has random numbers of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.loop import Loop
from models.vit import BViT

Method = Literal["tv", "maco"]
METHODS: tuple[Method, ...] = ("tv", "maco")
Pair = tuple[int, int]  # (step, neuron)
# (inputs [pair*copy 3 h w], which pairs, share of iterations left) -> [pair*copy]
Objective = Callable[[Tensor, slice, float], Tensor]

# At 224 px; in proportion to 1 / side elsewhere, as the sum over pixels under its root is to side
TOTAL_VARIATION = 0.0005
JITTER = 1.0  # of colours of the normalised picture: moved by up to this, scaled by up to its exponential
COLOUR_NOISE = 0.5  # standard deviation at the first iteration; it fades to 0
ROLL = 32 / 224  # of the image's side, either way
LEAK = 0.5  # slope given to neurons that are off, at the first iteration; it fades to 0
CROP = 0.75, 1.0  # side of a crop over that of the image
N_DRAWS = 11  # uniform numbers per copy and iteration: roll or corner 2, shift 3, scale 3, noise 3
ADVICE = "the model's activations overflow; use an earlier checkpoint"


@dataclass(frozen=True)
class Canvas:
    """What pictures are painted on: the model's input, and the statistics of real images.

    mean, std: [3 1 1] of the model's input; colour: [3] and mixing: [3 3], mean and symmetric root of the covariance
    of the real colours in [0, 1]; magnitude: [3 row frequency], mean magnitudes of the decorrelated channels relative
    to their mean, 0 at DC.
    """

    size: int
    mean: Tensor
    std: Tensor
    colour: Tensor
    mixing: Tensor
    magnitude: Tensor

    def normalised(self, pictures: Tensor) -> Tensor:
        return (pictures - self.mean) / self.std


def measured(model: BViT, images: Callable[[], Iterator[Tensor]]) -> Canvas:
    """The canvas of a model and of real images; `images` starts a pass over them, in batches [batch 3 h w] as the
    model takes them.
    """
    config, device = model.config, model.pos_embed.device
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) for value in (config.mean, config.std))
    n, total, square = 0, torch.zeros(3), torch.zeros(3, 3, dtype=torch.float64)
    for batch in images():
        colours = (batch.to(device) * std + mean).transpose(0, 1).flatten(1).double().cpu()
        n, total, square = n + colours.shape[1], total + colours.sum(1), square + colours @ colours.T
    colour = total / n
    values, vectors = torch.linalg.eigh(square / n - torch.outer(colour, colour) + 1e-6 * torch.eye(3))
    mixing, unmixing = ((vectors * values.clamp(min=1e-6) ** power) @ vectors.T for power in (0.5, -0.5))
    magnitude = torch.zeros(3, config.image_size, config.image_size // 2 + 1, dtype=torch.float64)
    for batch in images():
        centred = (batch.to(device) * std + mean).double().cpu() - colour.view(3, 1, 1)
        magnitude += torch.fft.rfft2(torch.einsum("cd,bdyx->bcyx", unmixing, centred), norm="ortho").abs().sum(0)
    magnitude[:, 0, 0] = 0
    magnitude /= magnitude.mean((1, 2), keepdim=True).clamp(min=1e-12)
    return Canvas(config.image_size, mean, std, *(value.float().to(device) for value in (colour, mixing, magnitude)))


# The two methods


def painted(method: Method, parameters: Tensor, canvas: Canvas) -> Tensor:
    """Pictures in [0, 1] [pair 3 h w] of a method's parameters: the pixels themselves, or Fourier phases [pair 3 row
    frequency].
    """
    if method == "tv":
        return parameters
    spectrum = torch.polar(canvas.magnitude.expand_as(parameters), parameters)
    waves = torch.fft.irfft2(spectrum, s=(canvas.size, canvas.size), norm="ortho")
    waves = waves / waves.std((2, 3), keepdim=True).clamp(min=1e-6)
    mixed = canvas.colour.view(3, 1, 1) + torch.einsum("cd,pdyx->pcyx", canvas.mixing, waves)
    return torch.sigmoid(4 * (mixed - 0.5))  # has slope 1 at mid-grey


def augmented(method: Method, pictures: Tensor, draws: Tensor, canvas: Canvas, left: float) -> Tensor:
    """Inputs of the model [pair*copy 3 h w], from pictures [pair 3 h w] and uniform draws [pair copy draw]; `left`
    falls from 1 to 0.
    """
    if method == "maco":
        return canvas.normalised(cropped(pictures.repeat_interleave(draws.shape[1], 0), draws.flatten(0, 1)))
    reach = ROLL * canvas.size
    shifts = ((2 * draws[:, 0, :2] - 1) * reach).round().int().tolist()
    pairs = zip(canvas.normalised(pictures), shifts, strict=True)
    rolled = torch.stack([picture.roll(shift, (1, 2)) for picture, shift in pairs])
    moved, scaled, noise = draws[..., 2:, None, None].split(3, 2)
    jittered = (rolled[:, None] - JITTER * (2 * moved - 1)) / (JITTER * (2 * scaled - 1)).exp()
    gauss = torch.special.ndtri(noise.clamp(1e-6, 1 - 1e-6))
    return (jittered + COLOUR_NOISE * left * gauss).flatten(0, 1)


def cropped(images: Tensor, draws: Tensor) -> Tensor:
    """A random square crop of each image, resampled to the image's own size; draws: [image draw]."""
    low, high = CROP
    side = low + (high - low) * draws[:, 2]
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = (2 * draws[:, :2] - 1) * (1 - side)[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def total_variation(inputs: Tensor, n_copies: int) -> Tensor:
    """Sum of the L2 norms of differences in four directions, over all copies of a picture: [pair]."""
    x = inputs.unflatten(0, (-1, n_copies))
    left, right = x[..., :-1], x[..., 1:]
    differences = (
        right - left,
        x[..., 1:, :] - x[..., :-1, :],
        right[..., 1:, :] - left[..., :-1, :],
        left[..., 1:, :] - right[..., :-1, :],
    )
    return sum(d.square().flatten(1).sum(1).add(1e-12).sqrt() for d in differences)


def start(
    method: Method, pair: Pair, canvas: Canvas, *, iterations: int, copies: int, seed: int
) -> tuple[Tensor, Tensor]:
    """First parameters of a pair and its uniform draws [iteration copy draw], from a generator of its own."""
    name = hashlib.sha256(f"{seed} {method} {pair[0]} {pair[1]}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))
    shape = (3, canvas.size, canvas.size) if method == "tv" else canvas.magnitude.shape
    uniform = torch.rand(shape, generator=generator)
    first = uniform if method == "tv" else 2 * math.pi * uniform  # pixels, or phases
    return first, torch.rand(iterations, copies, N_DRAWS, generator=generator)


# The optimisation


def optimised(
    method: Method,
    pairs: Sequence[Pair],
    objective: Objective,
    canvas: Canvas,
    *,
    iterations: int = 128,
    copies: int = 4,
    batch_size: int | None = None,
    seed: int = 0,
    kept: Path | None = None,
    key: str = "",
) -> Tensor:
    """Pictures in [0, 1] [pair 3 h w], one for each pair, all pairs advanced together.

    `batch_size` bounds the images of one forward, not the result: by default 64 on a CPU and 128 elsewhere. With
    `kept`, the state is saved there every minute and at the end, and a state saved under the same `key` is continued,
    to the same pictures.
    """
    device = canvas.colour.device
    starts = [start(method, pair, canvas, iterations=iterations, copies=copies, seed=seed) for pair in pairs]
    parameters = torch.stack([first for first, _ in starts]).to(device).requires_grad_()
    draws = torch.stack([uniform for _, uniform in starts], 1)  # [iteration pair copy draw]
    optimizer = OPTIMIZERS[method]([parameters])
    rate = optimizer.param_groups[0]["lr"]
    group = max(1, (batch_size or (64 if device.type == "cpu" else 128)) // copies)
    state = {"pictures": {"parameters": parameters}, "optimizer": optimizer}
    label, key = f"{len(pairs)} pictures, {method}", {"made with": key, "iterations": iterations}
    for i in Loop(kept, state, updates=iterations, key=key, restart=True, unit="it", label=label, advice=ADVICE):
        left = 1 - i / iterations
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * i / iterations)) / 2
        optimizer.zero_grad()
        for first in range(0, len(pairs), group):
            rows = slice(first, min(first + group, len(pairs)))
            pictures = painted(method, parameters[rows], canvas)
            inputs = augmented(method, pictures, draws[i, rows].to(device), canvas, left)
            loss = -objective(inputs, rows, left).sum() / copies
            if method == "tv":
                loss = loss + TOTAL_VARIATION * 224 / canvas.size * total_variation(inputs, copies).sum()
            loss.backward()
        optimizer.step()
        if method == "tv":
            parameters.data.clamp_(0, 1)
    return painted(method, parameters.detach(), canvas)


OPTIMIZERS = {
    "tv": partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.99)),
    "maco": partial(torch.optim.NAdam, lr=1.0),
}


# Neurons of a model


def activations(model: BViT, inputs: Tensor, steps: Sequence[int], neurons: Tensor, leak: float = 0.0) -> Tensor:
    """Mean over the patches of neuron `neurons[i]` after GELU at step `steps[i]`, for input i: [image].

    `steps` ascends. An input runs no further than its own step: finished ones leave the batch. `leak` adds that share
    of negative inputs of GELU, for a gradient where it has none.
    """
    ends = {t: steps.count(t) for t in steps}
    wanted = dict(zip(ends, neurons.split(list(ends.values())), strict=True))
    means: dict[str, list[Tensor]] = {"hook_post": [], "hook_pre": []}

    def read(activation: Tensor, hook: Any) -> None:
        t, site = hook.layer(), hook.name.rpartition(".")[2]
        patches = activation[: ends[t], model.config.n_prefix :]
        own = patches.gather(2, wanted[t][:, None, None].expand(-1, patches.shape[1], 1))
        means[site].append((own if site == "hook_post" else own.clamp(max=0)).mean((1, 2)))

    z, after = model.embed(inputs), 0
    sites = ("hook_post", "hook_pre") if leak else ("hook_post",)
    with model.hooks([(f"blocks.{t}.mlp.{site}", read) for t in ends for site in sites]):
        for t, n in ends.items():
            z = model.run_steps(z, after, t + 1)[n:]
            after = t + 1
    reached = torch.cat(means["hook_post"])
    return reached + leak * torch.cat(means["hook_pre"]) if leak else reached


def of_neurons(model: BViT, pairs: Sequence[Pair]) -> Objective:
    """The objective of (step, neuron) pairs in ascending order of step."""
    neurons = torch.tensor([neuron for _, neuron in pairs], device=model.pos_embed.device)

    def objective(inputs: Tensor, rows: slice, left: float) -> Tensor:
        copies = len(inputs) // len(pairs[rows])
        steps = [step for step, _ in pairs[rows] for _ in range(copies)]
        return activations(model, inputs, steps, neurons[rows].repeat_interleave(copies), LEAK * left)

    return objective


@contextmanager
def frozen(model: BViT) -> Iterator[None]:
    """No gradient for the weights inside; as they were after."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
