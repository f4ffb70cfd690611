"""BViT: one block (or K of them) applied T times, every step watched.

``model.blocks[t]`` is step t: TransformerLens' names work with layer = step. ``model.core`` holds
the blocks' weights once. Forward cost is that of the stacked ViT of the same width and steps.
"""

import copy
import math
import operator
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.fx
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from models.block import Block, Norm, Stream
from models.cache import StepCache
from models.config import ViTConfig
from models.errors import InputError
from models.hooks import NormHooks, Shared, Step
from models.hub import Shareable
from models.origin import Origin
from models.watching import Names, Watched, step_of

torch.fx.wrap("rearrange")  # torch.fx must not trace into einops

Images = Float[Tensor, "batch 3 height width"]
Logits = Float[Tensor, "batch class"]


class PatchEmbed(nn.Module):
    """Cuts an image into patches and maps each to d_model."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.d_model, config.patch_size, config.patch_size)

    def forward(self, images: Images) -> Stream:
        return rearrange(self.proj(images), "batch d row column -> batch (row column) d")


class BViT(Watched, Shareable):
    """A Vision Transformer that runs in steps (bViT, arXiv 2605.10661), or its stacked baseline.

    ``model(images, n_steps=k)`` reads out after k steps; beyond T it needs one block. Tokens are
    [CLS, registers, patches]. Images are `[batch 3 height width]`, normalised with config.mean, std.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = self.trained = config  # `at_steps` changes the first; the second stays what was trained
        self.origin = Origin()
        d = config.d_model
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        if config.n_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.n_registers, d))
        if config.position == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, config.n_tokens, d))
        else:  # nothing is added, see `models.block.rotated`
            self.register_buffer("pos_embed", torch.zeros(1, config.n_tokens, d))
        if config.pre_norm:
            self.norm_pre = Norm(config)
        if config.step_embedding == "learned":
            self.step_embed = nn.Parameter(torch.zeros(config.n_steps, d))
        self.core = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.norm = Norm(config)
        self.head = nn.Linear(d, config.n_classes) if config.n_classes else nn.Identity()
        if config.pool == "distilled":
            self.head_dist = nn.Linear(d, config.n_classes) if config.n_classes else nn.Identity()
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()
        self.ln_final = NormHooks(config.norm == "ln", config.norm_eps)
        self.blocks = nn.ModuleList(self._new_step(t) for t in range(config.n_steps))
        self._initialise()
        self.setup()

    def _new_step(self, t: int) -> Step:
        """Step t with hook points of its own, under the mask and adapter that step t of this model has, if any."""
        config = self.trained
        step = Step(
            Shared(self, config.block_of(t)),
            is_centred=config.norm == "ln",
            eps=config.norm_eps,
            has_step_embedding=config.step_embedding != "none",
        )
        if "blocks" in self._modules:  # not while the model is being built
            before = self.blocks[min(t, len(self.blocks) - 1)]  # beyond T the last step's are used
            for new, old in ((step.attn, before.attn), (step.mlp, before.mlp)):
                new.adapter = old.adapter
                for name, mask in old.named_buffers(recurse=False):
                    new.register_buffer(name, mask, persistent=False)
        return step

    def _initialise(self) -> None:
        """Truncated normal 0.02 (or Xavier uniform for narrow models) and zero biases, as timm's."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if self.config.init == "xavier":
                    nn.init.xavier_uniform_(module.weight.flatten(1))
                else:
                    nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name in ("pos_embed", "reg_token", "step_embed", "cls_token"):
            if isinstance(getattr(self, name, None), nn.Parameter):
                nn.init.trunc_normal_(getattr(self, name), std=0.02)

    # Forward

    def forward(
        self, images: Tensor, n_steps: int | None = None, *, stop_at_step: int | None = None
    ) -> Logits | Stream:
        """Logits `[batch class]` after `n_steps` steps (default T); 0 reads out the embedding.

        `stop_at_step` = s runs steps 0..s-1 and returns the stream that enters step s; negative counts from the end.
        """
        if torch.compiler.is_dynamo_compiling() and not is_exporting():
            return torch.compiler.disable(self._run_uncompiled)(images, n_steps, stop_at_step)
        n_steps = self.config.n_steps if n_steps is None else self._checked_n_steps(n_steps)
        if n_steps > len(self.blocks) and any(step.is_watched for step in self.blocks):
            self._refuse_unwatched(n_steps)
        if stop_at_step is not None:
            return self.run_steps(self.embed(images), 0, self._from_start(stop_at_step, n_steps))
        return self.read_out(self.run_steps(self.embed(images), 0, n_steps))

    def _run_uncompiled(self, images: Tensor, n_steps: int | None, stop_at_step: int | None) -> Tensor:
        """What ``torch.compile(model)`` runs: compiled whole, it would hear the hooks of its first call only.

        Kept from the compiler where it is called: a decorator would load the compiler, a second, with this class.
        """
        warnings.warn(
            "torch.compile(model) runs a BViT as it is, so that hooks are heard; model.compile() compiles its blocks",
            stacklevel=2,
        )
        return self.forward(images, n_steps, stop_at_step=stop_at_step)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks, in a time that does not grow with T; a step with hooks on it runs uncompiled."""
        self.__dict__["unwatched"] = self._new_step(0)  # one for all steps, so that a block is compiled once
        for block in self.core:
            block.compile(*args, **kwargs)

    def embed(self, images: Tensor) -> Stream:
        """z_0: CLS, registers and patches plus the position embedding; with `pre_norm`, the norm of that sum."""
        refuse_other_images(images, self.config.image_size)
        patches = self.patch_embed(images.to(self.pos_embed.dtype))
        learned = [self.cls_token, self.reg_token] if self.config.n_registers else [self.cls_token]
        prefix = [token.expand(patches.shape[0], -1, -1).to(patches.dtype) for token in learned]
        tokens = torch.cat([*prefix, patches], dim=1)
        position = self.pos_embed.expand_as(tokens)
        if self.config.pre_norm:
            tokens, position = self.norm_pre.shares(tokens, position)
        return self.hook_embed(tokens) + self.hook_pos_embed(position)

    def run_steps(self, z: Stream, first: int, last: int) -> Stream:
        """The stream after steps `first` .. `last` - 1, from the stream that enters step `first`."""
        for t in range(first, last):
            z = self.step(t)(z, self.step_embedding(t))
        return z

    def step(self, t: int) -> Step:
        """Step t with its hook points; beyond those of this model, a step that nobody watches."""
        return self.blocks[t] if t < len(self.blocks) else self._new_step(t)

    def step_embedding(self, t: int) -> Float[Tensor, " d_model"] | None:
        """What is added to every token before step t; a learned one holds its last row beyond T."""
        if self.config.step_embedding == "learned":
            return self.step_embed[min(t, len(self.step_embed) - 1)]
        if self.config.step_embedding == "sinusoidal":
            return sinusoid(t, self.config.d_model, self.pos_embed)
        return None

    def read_out(self, z: Stream) -> Logits:
        """Final norm and head on CLS, on the mean of the patches, or on CLS and DeiT's distillation token, averaged."""
        if self.config.pool == "cls":
            return self.head(self.norm(z, self.ln_final)[:, 0])
        if self.config.pool == "distilled":
            z = self.norm(z, self.ln_final)
            return (self.head(z[:, 0]) + self.head_dist(z[:, 1])) / 2
        mean_patch = z[:, self.config.n_prefix :].mean(1, keepdim=True)
        return self.head(self.norm(mean_patch, self.ln_final)[:, 0])

    def _checked_n_steps(self, n_steps: int) -> int:
        """`n_steps`, if this model can run that many; else `InputError`."""
        trained, n_steps = self.trained, whole("n_steps", n_steps)
        if n_steps < 0:
            raise InputError(f"n_steps is {n_steps}, it cannot be negative")
        if n_steps > trained.n_steps and trained.n_blocks > 1:
            raise InputError(
                f"n_steps = {n_steps} is beyond the {trained.n_steps} steps of a model with {trained.n_blocks} blocks; "
                "only a model of one block (n_blocks = 1) can run further"
            )
        return n_steps

    def _from_start(self, step: int, n_steps: int) -> int:
        """A `stop_at_step` counted from the start, of a run of `n_steps`; `InputError` where it is out of range."""
        step = whole("stop_at_step", step)
        stop = step + n_steps if step < 0 else step
        if not 0 <= stop <= n_steps:
            raise InputError(f"stop_at_step = {step} is out of range for {n_steps} steps")
        return stop

    def at_steps(self, n_steps: int) -> "BViT":
        """The same weights (shared, not copied) in a model whose hook points cover `n_steps` steps."""
        if self._checked_n_steps(n_steps) < 1:
            raise InputError("at_steps: a model needs at least one step")
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other.config = self.trained.at_steps(n_steps)
        other.hook_embed, other.hook_pos_embed = HookPoint(), HookPoint()
        other.ln_final = NormHooks(self.config.norm == "ln", self.config.norm_eps)
        other.blocks = nn.ModuleList(other._new_step(t) for t in range(n_steps))
        other.setup()
        return other.train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm's optimisers leave undecayed, beside biases and norms."""
        return {"cls_token", "reg_token", "pos_embed", "step_embed"}

    # Watching

    def run_with_cache(  # type: ignore[override]
        self,
        images: Tensor,
        *,
        names_filter: Names = None,
        n_steps: int | None = None,
        stop_at_step: int | None = None,
        remove_batch_dim: bool = False,
        **options: Any,
    ) -> tuple[Tensor, StepCache]:
        """Output and a cache of the named activations.

        `names_filter` as in `names`, or a dict name-or-glob -> function: the cache then holds ``function(activation)``,
        computed inside the hook, so nothing larger is ever kept. Other arguments as TransformerLens'. Raises
        `InputError` for steps beyond the hook points (see `at_steps`) and for names that would never be reached.
        """
        n_run = self.config.n_steps if n_steps is None else self._checked_n_steps(n_steps)
        self._refuse_unwatched(n_run)
        n_run = n_run if stop_at_step is None else self._from_start(stop_at_step, n_run)
        self._refuse_unreached(names_filter, n_run)
        if remove_batch_dim and len(images) != 1:
            raise InputError(f"remove_batch_dim needs a batch of one image, it has {len(images)}")
        output, activations = self.cached(
            lambda: self(images, n_steps=n_steps, stop_at_step=stop_at_step),
            names_filter,
            remove_batch_dim=remove_batch_dim,
            **options,
        )
        of_run = self if n_run in (0, self.config.n_steps) else self.at_steps(n_run)  # whose last step is the last run
        return output, StepCache(activations, of_run, n_run, has_batch_dim=not remove_batch_dim)

    def run_with_hooks(self, images: Tensor, *args: Any, n_steps: int | None = None, **kwargs: Any) -> Tensor:
        """As TransformerLens'; raises `InputError` for steps beyond the hook points (see `at_steps`)."""
        if n_steps is not None:
            self._refuse_unwatched(self._checked_n_steps(n_steps))
        return super().run_with_hooks(images, *args, n_steps=n_steps, **kwargs)

    def _refuse_unwatched(self, n_run: int) -> None:
        """`InputError` for a watched run beyond the model's hook points: the steps would run, and nobody would hear."""
        if n_run > len(self.blocks):
            raise InputError(
                f"only {len(self.blocks)} of {n_run} steps have hook points; watch all of them in "
                f"model.at_steps({n_run}), which has the same weights"
            )

    def _refuse_unreached(self, names: Names, n_run: int) -> None:
        """A hook point spelt out at a step that will not run is an error, not an empty cache."""
        for name in [names] if isinstance(names, str) else names if isinstance(names, Iterable) else ():
            step = step_of(name)
            if step is not None and n_run <= step < self.config.n_steps:
                raise InputError(f"{name} would never be reached: only {n_run} steps run")

    # What TransformerLens' ActivationCache asks of a model

    @property
    def cfg(self) -> ViTConfig:
        return self.config

    @property
    def W_U(self) -> Float[Tensor, "d_model class"]:
        """The head with the final norm's affine folded in."""
        if self.config.pool == "distilled":
            raise InputError(
                "W_U: this model reads two tokens with two heads, so a class has no one direction; read states out "
                "with model.read_out, or use model.head and model.head_dist"
            )
        return self.norm.weight[:, None] * self.head.weight.T

    @property
    def b_U(self) -> Float[Tensor, " class"]:
        return self.head.bias if self.norm.bias is None else self.head.bias + self.head.weight @ self.norm.bias

    def to_single_token(self, class_name: str) -> int:
        """The index of a class name."""
        if class_name not in (self.config.classes or ()):
            raise InputError(f"the model has no class {class_name!r}")
        return self.config.classes.index(class_name)

    def tokens_to_residual_directions(
        self, labels: str | int | Iterable[str | int] | Int[Tensor, "..."]
    ) -> Float[Tensor, "... d_model"]:
        """The direction in the normalised stream that raises each class's logit."""
        if isinstance(labels, list | tuple):
            labels = [self.to_single_token(label) if isinstance(label, str) else label for label in labels]
        labels = torch.as_tensor(self.to_single_token(labels) if isinstance(labels, str) else labels)
        if labels.numel() and not (labels.min() >= 0 and labels.max() < self.config.n_classes):
            raise InputError(f"the model has classes 0 to {self.config.n_classes - 1}, not {labels.tolist()}")
        return self.W_U.T[labels]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """The sum of what biases and step embeddings have added to the stream that enters step `layer`."""
        total = torch.zeros_like(self.norm.weight)
        for t in range(min(layer + 1, self.config.n_steps)):
            embedding = self.step_embedding(t)
            total = total if embedding is None else total + embedding
        for t in range(layer):
            total = total + self.blocks[t].attn.b_O + (self.blocks[t].mlp.b_out if include_mlp_biases else 0)
        return total + self.blocks[layer].attn.b_O if mlp_input else total


@torch.fx.wrap
def refuse_other_images(images: Any, size: int) -> None:
    """Raise `InputError` for anything but a batch of floating-point RGB images of the model's size."""
    is_tensor = isinstance(images, Tensor)
    if not is_tensor or images.ndim != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
        given = (
            f"{images.dtype} {list(images.shape)}" if is_tensor else f"a {type(images).__name__}, which is no tensor"
        )
        raise InputError(
            f"the model takes floating-point images [batch 3 {size} {size}], it was given {given}; open the data with "
            "like=model, and put one image in a batch with image[None]"
        )


def whole(name: str, value: Any) -> int:
    """A number of steps, also one of NumPy or torch."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} is {value!r}, it must be a whole number") from None


def is_exporting() -> bool:
    """Whether torch.export is tracing; torch before 2.7 cannot tell."""
    return getattr(torch.compiler, "is_exporting", lambda: False)()


def sinusoid(t: int, d_model: int, like: Tensor) -> Float[Tensor, " d_model"]:
    """The sinusoidal embedding of step t (Vaswani et al., 2017), scaled like a learned one at its initialisation."""
    frequency = torch.exp(-math.log(10_000) * torch.arange(0, d_model, 2, device=like.device) / d_model)
    angles = t * frequency
    return (0.02 * torch.stack([angles.sin(), angles.cos()], -1).flatten()[:d_model]).to(like.dtype)
