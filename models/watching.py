"""How a model that runs in steps is watched: names and globs of hook points, and caches that may reduce on the spot."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedRootModule

from models.cache import Reduced
from models.errors import InputError

ON_REQUEST = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
Names = str | Iterable[str] | Callable[[str], bool] | dict[str, Callable[[Tensor], Any]] | None


class Watched(HookedRootModule):
    """TransformerLens' hooked module, where ``blocks.{t}`` is step t and a misspelt name is an error."""

    def names(self, names: Names = None) -> list[str]:
        """The hook names meant by a str, glob, several of them, or a predicate; None is all but those ON_REQUEST.

        A name or glob that matches nothing is an `InputError` that names the nearest match.
        """
        if names is None:
            return [name for name in self.hook_dict if not name.endswith(ON_REQUEST)]
        if callable(names):
            return [name for name in self.hook_dict if names(name)]
        if not isinstance(names, Iterable):
            raise InputError(f"names of hook points are a text, a glob, several of them or a function, not {names!r}")
        patterns = [names] if isinstance(names, str) else list(names)
        for pattern in patterns:
            if not fnmatch.filter(self.hook_dict, pattern):
                raise InputError(self._unknown(pattern))
        return [name for name in self.hook_dict if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def _unknown(self, name: str) -> str:
        nearest = difflib.get_close_matches(name, self.hook_dict, n=1, cutoff=0)
        step = step_of(name)
        if step is not None and step >= len(self.blocks):
            return f"no hook point {name!r}: the model has steps 0 to {len(self.blocks) - 1}"
        return f"no hook point matches {name!r}; the nearest is {nearest[0]!r}"

    def hooks(self, fwd_hooks: Iterable = (), bwd_hooks: Iterable = (), *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' context of hooks, where a name may be a glob, and a misspelt one is an error, as is what a
        hook returns in an activation's place and does not fit there.
        """
        fitting = [(point, fitted(hook)) for point, hook in self._spelt_out(fwd_hooks)]
        return super().hooks(fitting, self._spelt_out(bwd_hooks), *args, **kwargs)

    def _spelt_out(self, hooks: Iterable) -> list:
        hooks = list(hooks)
        for pair in hooks:
            if not (isinstance(pair, tuple | list) and len(pair) == 2 and callable(pair[1])):
                raise InputError(f"hooks are pairs of a name and a function, as in ('hook_embed', zero), not {pair!r}")
        return [(point, hook) for name, hook in hooks for point in self.names(name)]

    def cached(
        self,
        run: Callable[[], Any],
        names_filter: Names = None,
        *,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
    ) -> tuple[Any, dict[str, Any]]:
        """What `run` gives, and the named activations, or what the functions of a dict `names_filter` make of them.

        Functions are called inside the hook, so that nothing larger is ever kept. Other arguments as TransformerLens'
        ``run_with_cache``; with `incl_bwd`, a gradient that did not arrive is an `InputError`.
        """
        if isinstance(names_filter, dict):
            functions = {name: function for key, function in names_filter.items() for name in self.names(key)}
        else:
            functions = dict.fromkeys(self.names(names_filter), lambda activation: activation)
        kept, fwd, bwd = self.get_caching_hooks(
            functions.__contains__, incl_bwd, device, remove_batch_dim, Reduced(functions), pos_slice
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            output = run()
            if incl_bwd:
                _refuse_no_gradient(output)
                output.backward()
        lost = [name for name in kept if incl_bwd and not name.endswith("_grad") and f"{name}_grad" not in kept]
        if lost:
            raise InputError(
                f"no gradient was recorded at {lost[0]} (of {len(lost)} such names): nothing there needs one; let "
                "weights or images require gradients, or name other activations"
            )
        return output, dict(kept)


def _refuse_no_gradient(output: Any) -> None:
    """`incl_bwd` goes back from the output itself."""
    if not isinstance(output, Tensor) or output.numel() != 1:
        given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"incl_bwd goes back from one number, the output is {given}; give bwd_hooks to model.hooks and call "
            "backward on a loss inside"
        )
    if not output.requires_grad:
        raise InputError("no gradient can be recorded: let weights or images require gradients, without no_grad")


MAY_DROP_TOKENS = ("hook_resid_pre", "hook_resid_post")


def fitted(hook: Callable[..., Any]) -> Callable[..., Any]:
    """`hook`, whose answer must fit in the activation's place: one of another shape would be spread over a batch
    without a word. At the states that enter and leave a step tokens may be left out.
    """

    @functools.wraps(hook)
    def called(activation: Tensor, hook: Any, _hook: Callable[..., Any] = hook) -> Any:
        answer = _hook(activation, hook=hook)
        if answer is None:
            return None
        if not isinstance(answer, Tensor):
            raise InputError(f"{hook.name}: the hook returned a {type(answer).__name__}, not a tensor or None")
        ours, theirs = list(activation.shape), list(answer.shape)
        if hook.name.endswith(MAY_DROP_TOKENS) and len(theirs) == 3:
            ours[1] = theirs[1]
        if ours != theirs:
            raise InputError(
                f"{hook.name}: the hook returned {theirs} in place of {list(activation.shape)}; give it that shape, "
                "as with expand_as(activation)"
            )
        if answer.dtype != activation.dtype and not torch.is_autocast_enabled(activation.device.type):
            raise InputError(f"{hook.name}: the hook returned {answer.dtype} in place of {activation.dtype}")
        return answer

    return called


def step_of(name: str) -> int | None:
    """The step of a hook point's name; None for what belongs to no step."""
    step = re.match(r"blocks\.(\d+)\.", name)
    return int(step[1]) if step else None
