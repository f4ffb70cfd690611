"""A receipt for a model: what can be checked without data or a reference of its own, line by line.

    python -m models.verify runs/demo        # or ckpt.pt, timm:NAME, timm:NAME@FILE, hf:REPO, a preset's name

Everything runs in float64 on two random images, so that a difference of rounding (1e-15) and one of arithmetic (1e-3)
cannot be mistaken for each other. Each line is a largest difference over the largest value it is compared with. Exit
code 1 where one line does not hold, 2 where there is nothing to check: no model, or weights that are not finite.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epy
from tyro.conf import Positional

from models import command
from models.errors import InputError, require

with epy.lazy_imports():
    import torch

    from models import masks, plain_forward, source, timm_bridge

EXACT, ROUNDED, STEP = 1e-6, 1e-3, 1e-5  # allowed in float64 and in float32; the step of finite differences


@dataclass(frozen=True)
class Subject:
    """What is verified: the model in float64, and two images."""

    model: Any
    images: Any
    named: str  # as it was asked for
    loaded: Any = None  # as it was loaded, in float32

    @property
    def last(self) -> int:
        return self.model.config.n_steps

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        return {name: value.detach() for name, value in self.model.state_dict().items()}

    @functools.cached_property
    def masks(self) -> Any:
        """A pruned model's masks by step and matrix, or None."""
        rows_of_steps = masks.taken_from(self.model)
        if rows_of_steps is None:
            return None
        rows = (masks.split(row, self.model.config) for row in rows_of_steps)
        return [{masks.WEIGHTS[name]: mask for name, mask in row.items()} for row in rows]

    @functools.cached_property
    def logits(self) -> Any:
        """What the plain forward answers."""
        return plain_forward.logits(self.weights, self.model.config, self.images, self.masks)

    @functools.cached_property
    def heard(self) -> tuple[Any, Any]:
        """The hooked model's answer and its cache of everything."""
        return self.model.run_with_cache(self.images)


class NotHere(Exception):
    """A line that says nothing about this model, and why."""


def apart(one: Any, other: Any) -> float:
    """The largest difference over the largest value of `other`; infinite where anything is not finite."""
    largest = float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))
    return largest if math.isfinite(largest) else math.inf


# The lines


def against_plain(of: Subject) -> float:
    return apart(of.model(of.images), of.logits)


def in_float32(of: Subject) -> float:
    return apart(of.loaded(of.images.float()).double(), of.logits)


def against_timm(of: Subject) -> float:
    """A ``timm:`` source against timm's own module, others against timm's ViT with their weights."""
    if of.masks is not None:
        raise NotHere("a pruned model's steps have weights of their own, timm's export has not")
    try:
        name, _, file = of.named.removeprefix("timm:").partition("@")
        is_theirs = of.named.startswith("timm:")
        made = timm_bridge.create(name, Path(file) if file else None)[0] if is_theirs else timm_bridge.to_timm(of.model)
    except InputError as error:
        raise NotHere(str(error)) from None
    return apart(made.double().eval()(of.images), of.logits)


def calls(of: Subject) -> float:
    """How far any hook point is from one call in one run."""
    counted: Counter[str] = Counter()

    def count(activation: Any, hook: Any) -> None:
        counted[hook.name] += 1

    of.model.run_with_hooks(of.images, fwd_hooks=[(name, count) for name in of.model.hook_dict])
    return float(max(abs(counted[name] - 1) for name in of.model.hook_dict))


def unchanged(of: Subject) -> float:
    """The answer while every hook point is heard, with the inputs of heads and without."""

    def hear(activation: Any, hook: Any) -> None:
        pass

    inputs = ("q_input", "k_input", "v_input", "mlp_in", "result")
    usual = [(name, hear) for name in of.model.hook_dict if not name.endswith(inputs)]
    every = [(name, hear) for name in of.model.hook_dict]
    return max(apart(of.model.run_with_hooks(of.images, fwd_hooks=hooks), of.logits) for hooks in (usual, every))


def sum_of_stream(of: Subject) -> float:
    _, cache = of.heard
    z = plain_forward.embed(of.weights, of.model.config, of.images)
    final = plain_forward.run(of.weights, of.model.config, z, 0, of.last, of.masks)
    return apart(cache.decompose_resid().sum(0), final)


def sum_of_parts(of: Subject) -> float:
    """Heads to attention's output, neurons to the MLP's, at every step."""
    _, cache = of.heard
    differences = []
    for t, step in enumerate(of.model.blocks):
        z, post = cache[f"blocks.{t}.attn.hook_z"], cache[f"blocks.{t}.mlp.hook_post"]
        heads = sum(z[:, :, head] @ step.attn.W_O[head] for head in range(of.model.config.n_heads)) + step.attn.b_O
        differences += [
            apart(heads, cache[f"blocks.{t}.hook_attn_out"]),
            apart(post @ step.mlp.W_out + step.mlp.b_out, cache[f"blocks.{t}.hook_mlp_out"]),
        ]
    return max(differences)


def sum_of_logits(of: Subject) -> float:
    config, (_, cache) = of.model.config, of.heard
    if not config.n_classes or config.pool == "distilled":
        raise NotHere("the model has no head" if not config.n_classes else "two heads read two tokens")
    classes = torch.arange(min(config.n_classes, len(of.images)))
    parts, options = cache.decompose_resid(), {}
    if config.pool == "cls":
        parts, options = cache.decompose_resid(pos_slice=0), dict(pos_slice=0, has_batch_dim=True)
    differences = []
    for label in classes:
        added = cache.logit_attrs(parts, label.expand(len(of.images)), **options).sum(0) + of.model.b_U[label]
        differences.append(apart(added, of.logits[:, label]))
    return max(differences)


def explicit(of: Subject) -> float:
    """Fused attention against explicit one, at every step alone and at all of them."""

    def hear(activation: Any, hook: Any) -> None:
        pass

    fused = of.model(of.images)
    names = [f"blocks.{t}.attn.hook_pattern" for t in range(of.last)]
    heard = [[(name, hear)] for name in names] + [[(name, hear) for name in names]]
    return max(apart(of.model.run_with_hooks(of.images, fwd_hooks=hooks), fused) for hooks in heard)


def gradients(of: Subject) -> float:
    """The derivative of a weighted sum of logits along a random direction at a hook point: what a backward hook gets
    there against central differences of fourth order, whose error a sharply curved model does not lift to the limit.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(of.logits.shape, generator=generator, dtype=torch.float64)
    differences = []
    for name in differentiated(of.last):
        direction = torch.randn(of.heard[1][name].shape, generator=generator, dtype=torch.float64)
        size = of.heard[1][name].abs().max() * STEP

        def moved(by: float, name: str = name, direction: Any = direction) -> Any:
            hooks = [(name, lambda activation, hook: activation + by * direction)]
            return (of.model.run_with_hooks(of.images, fwd_hooks=hooks) * weight).sum()

        near, far = moved(size) - moved(-size), moved(2 * size) - moved(-2 * size)
        slope, gradient = (8 * near - far) / (12 * size), backward(of, name, weight)
        largest = max(float(gradient.norm()), abs(float(slope)), 1e-30)  # what a random direction is expected to give
        differences.append(abs(float((gradient * direction).sum() - slope)) / largest)
    return max(differences)


def differentiated(n_steps: int) -> Iterator[str]:
    """Hook points of the first, a middle and the last step."""
    for t in sorted({0, n_steps // 2, n_steps - 1}):
        for point in ("hook_resid_pre", "attn.hook_pattern", "attn.hook_z", "mlp.hook_post"):
            yield f"blocks.{t}.{point}"


def backward(of: Subject, name: str, weight: Any) -> Any:
    """The gradient that a backward hook gets."""
    got = {}

    def keep(gradient: Any, hook: Any) -> None:
        got["gradient"] = gradient.detach()

    with torch.enable_grad(), of.model.hooks(bwd_hooks=[(name, keep)]):
        images = of.images.clone().requires_grad_()
        (of.model(images) * weight).sum().backward()
    of.model.zero_grad(set_to_none=True)
    return got["gradient"]


def patch(of: Subject) -> float:
    """The CLS state of one image put into another's run before a middle step, by a hook and by the plain forward."""
    config, t = of.model.config, of.last // 2
    z = plain_forward.run(of.weights, config, plain_forward.embed(of.weights, config, of.images), 0, t, of.masks)
    added = plain_forward.step_embedding(of.weights, config, t)
    swapped = z.clone()
    swapped[:, 0] = z.flip(0)[:, 0]
    brute = plain_forward.read_out(
        of.weights, config, plain_forward.run(of.weights, config, swapped, t, of.last, of.masks)
    )

    def put(activation: Any, hook: Any) -> Any:
        activation = activation.clone()
        activation[:, 0] = (z + added).flip(0)[:, 0]
        return activation

    return apart(of.model.run_with_hooks(of.images, fwd_hooks=[(f"blocks.{t}.hook_resid_pre", put)]), brute)


LINES: dict[str, tuple[Callable[[Subject], float], float]] = {
    "logits against the plain forward": (against_plain, EXACT),
    "logits in float32 against it": (in_float32, ROUNDED),
    "logits of timm's ViT against it": (against_timm, EXACT),
    "every hook point is called once": (calls, 0.0),
    "hooks change nothing": (unchanged, EXACT),
    "parts of the stream sum to it": (sum_of_stream, EXACT),
    "heads and neurons sum to theirs": (sum_of_parts, EXACT),
    "parts of the logits sum to them": (sum_of_logits, EXACT),
    "explicit attention against fused": (explicit, EXACT),
    "gradients against differences": (gradients, EXACT),
    "one patch against brute force": (patch, EXACT),
}


# The receipt


@dataclass(frozen=True)
class Line:
    """One line: the largest difference, or why there is none."""

    what: str
    largest: float | None
    allowed: float
    why: str = ""

    @property
    def holds(self) -> bool:
        return self.largest is None or self.largest <= self.allowed

    def __str__(self) -> str:
        if self.largest is None:
            return f"-     {self.what:34}{self.why}"
        return f"{'ok' if self.holds else 'FAILS':6}{self.what:34}{self.largest:10.1e}   at most {self.allowed:.0e}"


def receipt(model: Any, named: str = "", seed: int = 0) -> list[Line]:
    """Every line for a model as `models.load` gives it; `named` is the source it was loaded from."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = (2, 3, config.image_size, config.image_size)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    of = Subject(copy.deepcopy(model).double().eval(), images, named, model)
    lines = []
    with torch.no_grad():
        for what, (check, allowed) in LINES.items():
            try:
                lines.append(Line(what, check(of), allowed))
            except NotHere as reason:
                lines.append(Line(what, None, allowed, str(reason)))
    return lines


def verify(model: Positional[str], *, weights: str = "ema", seed: int = 0) -> None:
    """Hold a model against what it must be: plain arithmetic, timm, its own decompositions, finite differences.

    Args:
        model: run folder, ckpt.pt, timm:NAME, timm:NAME@FILE, hf:REPO, or a preset's name.
        weights: which weights of the checkpoint: ema, raw or init.
        seed: of the two random images.
    """
    require((0 <= seed < 2**32, f"--seed is {seed}, it must lie between 0 and {2**32 - 1}"))
    loaded = source.load(model, weights)
    strange = [name for name, value in loaded.state_dict().items() if not value.isfinite().all()]
    require(
        (not strange, f"{model}: {', '.join(strange[:1])} is not finite; the checkpoint diverged, use an earlier one")
    )
    print(f"{loaded.origin.source} ({loaded.origin.weights} weights): two random images, float64")
    lines = receipt(loaded, model, seed)
    print(*lines, sep="\n")
    failed = [line.what for line in lines if not line.holds]
    said = f"{len(failed)} of {len(lines)} lines fail" if failed else "all of it holds"
    print(f"{said}; differences are over the largest value compared with")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    command.run(verify, "python -m models.verify")
