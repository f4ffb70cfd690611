"""TransformerLens' cache, which also knows step embeddings, steps that did not run, and image classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from models.errors import InputError


class Reduced(dict):
    """A cache that holds ``function(activation)`` under each name that has a function."""

    def __init__(self, functions: dict[str, Callable[[Tensor], Any]]):
        super().__init__()
        self.functions = functions

    def __setitem__(self, name: str, activation: Tensor) -> None:
        super().__setitem__(name, self.functions[name.removesuffix("_grad")](activation))


class StepCache(ActivationCache):
    """Activations of a run of `n_steps` steps: ``cache["pattern", 3]``, decompositions, the logit lens."""

    def __init__(self, cache_dict: dict[str, Any], model: Any, n_steps: int, has_batch_dim: bool = True):
        super().__init__(cache_dict, model, has_batch_dim)
        self.n_steps = n_steps

    def decompose_resid(self, layer: int | None = None, *args: Any, return_labels: bool = False, **kwargs: Any) -> Any:
        """As TransformerLens', with one more component per step that has a step embedding.

        `layer` is by default the state after the last step that ran. Raises `InputError` for a step that did not run.
        """
        layer = self.n_steps if layer in (None, -1) else layer
        if layer > self.n_steps:
            raise InputError(f"decompose_resid({layer}): only {self.n_steps} steps ran")
        parts, labels = super().decompose_resid(layer, *args, return_labels=True, **kwargs)
        if self.model.config.step_embedding != "none" and kwargs.get("incl_embeds", True):
            if kwargs.get("apply_ln"):
                raise InputError(
                    "decompose_resid: apply_ln is not offered for a model with a step embedding; divide by ln scale "
                    "after the call"
                )
            steps = range(min(layer + 1, self.n_steps))
            embeddings = torch.stack([self.model.step_embedding(t) for t in steps]).to(parts)
            embeddings = embeddings.reshape(len(steps), *[1] * (parts.ndim - 2), -1).expand(-1, *parts.shape[1:])
            parts = torch.cat([parts, embeddings])
            labels += [f"{t}_step_embed" for t in steps]
        return (parts, labels) if return_labels else parts

    def logit_attrs(self, residual_stack: Tensor, tokens: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As TransformerLens', what each component adds to the logits of classes; `tokens` are classes.

        A model that reads out the mean of its patches has one answer an image, not one a position: components
        [component batch pos d_model] are pooled as the model pools, giving [component batch].
        """
        config = self.model.config
        if config.pool != "mean":
            return super().logit_attrs(residual_stack, tokens, *args, **kwargs)
        if args or kwargs.get("pos_slice") is not None:
            raise InputError(
                "logit_attrs: this model reads out the mean of its patches, not a position; leave pos_slice out"
            )
        pooled = residual_stack[..., config.n_prefix :, :].mean(-2, keepdim=True)
        return super().logit_attrs(pooled, tokens, **kwargs)[..., 0]

    def logit_lens(self) -> Float[Tensor, "state *batch class"]:
        """Logits read out of every state z_0 .. z_n that ran; the last is the answer (nostalgebraist, 2020).

        Needs ``hook_embed``, ``hook_pos_embed`` and every ``hook_resid_post`` in the cache, with all positions.
        """
        names = ["hook_embed", "hook_pos_embed", *(f"blocks.{t}.hook_resid_post" for t in range(self.n_steps))]
        missing = [name for name in names if name not in self.cache_dict]
        if missing:
            raise InputError(f"logit_lens: the cache lacks {missing[0]}; cache it too, or leave names_filter out")
        n_tokens, shape = self.model.config.n_tokens, self[names[-1]].shape
        if len(shape) < 2 or shape[-2] != n_tokens:
            raise InputError(f"logit_lens: the cache holds states {list(shape)}, not whole ones of {n_tokens} tokens")
        embedded, position, *after = (self[name] for name in names)
        with torch.no_grad():
            states = [state if self.has_batch_dim else state[None] for state in (embedded + position, *after)]
            logits = torch.stack([self.model.read_out(state) for state in states])
        return logits if self.has_batch_dim else logits[:, 0]
