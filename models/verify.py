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
    source: str  # what it was loaded from
    loaded: Any = None  # the model as it was loaded, in float32

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

    def hooked(self, hooks: list[tuple[str, Callable[..., Any]]]) -> Any:
        """The hooked model's answer under forward hooks, as pairs of name and function."""
        return self.model.run_with_hooks(self.images, fwd_hooks=hooks)

    def plain_state(self, first: int, last: int, z: Any = None) -> Any:
        """The plain forward's stream after steps `first` .. `last` - 1, from `z`, by default z_0."""
        config = self.model.config
        z = plain_forward.embed(self.weights, config, self.images) if z is None else z
        return plain_forward.run(self.weights, config, z, first, last, self.masks)

    @functools.cached_property
    def recorded(self) -> tuple[Any, Any]:
        """The hooked model's answer and its cache of everything."""
        return self.model.run_with_cache(self.images)


class NotApplicable(Exception):
    """A line of the receipt does not apply to this model; the message says why."""


def relative_difference(value: Any, expected: Any) -> float:
    """The largest difference over the largest expected value; infinite where anything is not finite."""
    largest = float((value - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    return largest if math.isfinite(largest) else math.inf


def listen(activation: Any, hook: Any) -> None:
    """A hook that changes nothing."""


# The lines


def against_plain(subject: Subject) -> float:
    return relative_difference(subject.model(subject.images), subject.logits)


def in_float32(subject: Subject) -> float:
    return relative_difference(subject.loaded(subject.images.float()).double(), subject.logits)


def against_timm(subject: Subject) -> float:
    """A ``timm:`` source against timm's own module, others against timm's ViT with their weights."""
    if subject.masks is not None:
        raise NotApplicable("a pruned model's steps have weights of their own, timm's export has not")
    try:
        if subject.source.startswith("timm:"):
            name, _, file = subject.source.removeprefix("timm:").partition("@")
            vit, _ = timm_bridge.create(name, Path(file) if file else None)
        else:
            vit = timm_bridge.to_timm(subject.model)
    except InputError as error:
        raise NotApplicable(str(error)) from None
    return relative_difference(vit.double().eval()(subject.images), subject.logits)


def calls(subject: Subject) -> float:
    """How far any hook point is from one call in one run."""
    counted: Counter[str] = Counter()

    def count(activation: Any, hook: Any) -> None:
        counted[hook.name] += 1

    subject.hooked([(name, count) for name in subject.model.hook_dict])
    return float(max(abs(counted[name] - 1) for name in subject.model.hook_dict))


def unchanged(subject: Subject) -> float:
    """The answer while every hook point is heard, with the inputs of heads and without."""
    inputs = ("q_input", "k_input", "v_input", "mlp_in", "result")
    all_hooks = [(name, listen) for name in subject.model.hook_dict]
    without_inputs = [(name, hook) for name, hook in all_hooks if not name.endswith(inputs)]
    return max(relative_difference(subject.hooked(hooks), subject.logits) for hooks in (without_inputs, all_hooks))


def sum_of_stream(subject: Subject) -> float:
    """The components that a cache decomposes the last state into, summed."""
    _, cache = subject.recorded
    return relative_difference(cache.decompose_resid().sum(0), subject.plain_state(0, subject.last))


def sum_of_parts(subject: Subject) -> float:
    """Heads to attention's output, neurons to the MLP's, at every step."""
    _, cache = subject.recorded
    differences = []
    for t, step in enumerate(subject.model.blocks):
        z, post = cache[f"blocks.{t}.attn.hook_z"], cache[f"blocks.{t}.mlp.hook_post"]
        heads = sum(z[:, :, head] @ step.attn.W_O[head] for head in range(subject.model.config.n_heads)) + step.attn.b_O
        differences += [
            relative_difference(heads, cache[f"blocks.{t}.hook_attn_out"]),
            relative_difference(post @ step.mlp.W_out + step.mlp.b_out, cache[f"blocks.{t}.hook_mlp_out"]),
        ]
    return max(differences)


def sum_of_logits(subject: Subject) -> float:
    """What the components add to a class's logit, and the bias, for as many classes as there are images."""
    config, (_, cache) = subject.model.config, subject.recorded
    if not config.n_classes or config.pool == "distilled":
        raise NotApplicable("the model has no head" if not config.n_classes else "two heads read two tokens")
    classes = torch.arange(min(config.n_classes, len(subject.images)))
    parts, options = cache.decompose_resid(), {}
    if config.pool == "cls":
        parts, options = cache.decompose_resid(pos_slice=0), dict(pos_slice=0, has_batch_dim=True)
    differences = []
    for label in classes:
        added = cache.logit_attrs(parts, label.expand(len(subject.images)), **options).sum(0) + subject.model.b_U[label]
        differences.append(relative_difference(added, subject.logits[:, label]))
    return max(differences)


def explicit(subject: Subject) -> float:
    """Fused attention against explicit one, at every step alone and at all of them."""
    fused = subject.model(subject.images)
    names = [f"blocks.{t}.attn.hook_pattern" for t in range(subject.last)]
    together = [(name, listen) for name in names]
    alone = [[hook] for hook in together]
    return max(relative_difference(subject.hooked(hooks), fused) for hooks in (*alone, together))


def gradients(subject: Subject) -> float:
    """The derivative of a weighted sum of logits along a random direction at a hook point: what a backward hook gets
    there against central differences of fourth order, whose error a sharply curved model does not lift to the limit.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(subject.logits.shape, generator=generator, dtype=torch.float64)
    differences = []
    for name in differentiated(subject.last):
        direction = torch.randn(subject.recorded[1][name].shape, generator=generator, dtype=torch.float64)
        size = subject.recorded[1][name].abs().max() * STEP

        def moved(by: float, name: str = name, direction: Any = direction) -> Any:
            hooks = [(name, lambda activation, hook: activation + by * direction)]
            return (subject.hooked(hooks) * weight).sum()

        near, far = moved(size) - moved(-size), moved(2 * size) - moved(-2 * size)
        slope, gradient = (8 * near - far) / (12 * size), backward(subject, name, weight)
        largest = max(float(gradient.norm()), abs(float(slope)), 1e-30)  # what a random direction is expected to give
        differences.append(abs(float((gradient * direction).sum() - slope)) / largest)
    return max(differences)


def differentiated(n_steps: int) -> Iterator[str]:
    """Hook points of the first, a middle and the last step."""
    for t in sorted({0, n_steps // 2, n_steps - 1}):
        for point in ("hook_resid_pre", "attn.hook_pattern", "attn.hook_z", "mlp.hook_post"):
            yield f"blocks.{t}.{point}"


def backward(subject: Subject, name: str, weight: Any) -> Any:
    """The gradient that a backward hook gets."""
    kept = {}

    def keep(gradient: Any, hook: Any) -> None:
        kept["gradient"] = gradient.detach()

    with torch.enable_grad(), subject.model.hooks(bwd_hooks=[(name, keep)]):
        images = subject.images.clone().requires_grad_()
        (subject.model(images) * weight).sum().backward()
    subject.model.zero_grad(set_to_none=True)
    return kept["gradient"]


def patch(subject: Subject) -> float:
    """The CLS state of one image put into another's run before a middle step, by a hook and by the plain forward."""
    config, t = subject.model.config, subject.last // 2
    z = subject.plain_state(0, t)
    added = plain_forward.step_embedding(subject.weights, config, t)
    swapped = z.clone()
    swapped[:, 0] = z.flip(0)[:, 0]
    expected = plain_forward.read_out(subject.weights, config, subject.plain_state(t, subject.last, swapped))

    def put(activation: Any, hook: Any) -> Any:
        activation = activation.clone()
        activation[:, 0] = (z + added).flip(0)[:, 0]
        return activation

    return relative_difference(subject.hooked([(f"blocks.{t}.hook_resid_pre", put)]), expected)


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


def receipt(model: Any, loaded_from: str = "", seed: int = 0) -> list[Line]:
    """Every line for a model as `models.load` gives it; `loaded_from` is the source it was loaded from."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    shape = (2, 3, config.image_size, config.image_size)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    subject = Subject(copy.deepcopy(model).double().eval(), images, loaded_from, model)
    lines = []
    with torch.no_grad():
        for what, (check, allowed) in LINES.items():
            try:
                lines.append(Line(what, check(subject), allowed))
            except NotApplicable as reason:
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
    for name, value in loaded.state_dict().items():
        is_finite = bool(value.isfinite().all())
        require((is_finite, f"{model}: {name} is not finite; the checkpoint diverged, use an earlier one"))
    print(f"{loaded.origin.source} ({loaded.origin.weights} weights): two random images, float64")
    lines = receipt(loaded, model, seed)
    print(*lines, sep="\n")
    failed = [line.what for line in lines if not line.holds]
    verdict = f"{len(failed)} of {len(lines)} lines fail" if failed else "all of it holds"
    print(f"{verdict}; differences are over the largest value compared with")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    command.run(verify, "python -m models.verify")
