"""A run as a graph of components that write to and read from the residual stream, and the effects of its edges.

Sources write to the stream: the embedding, then the heads and the FFN of every step. Targets read it: q, k and v of
each head and the FFN of every step, then the read-out. An edge is a (source, target) pair with the source first in the
run. `delta` is a source's output on clean images minus its output in the reference run: [source batch pos d_model].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import models
from analyses.graph import SLOTS, Graph
from probes.methods.reading import states_from
from probes.methods.visualise import frozen

Metric = Callable[[Tensor], Tensor]  # logits [batch class] -> [batch]


@dataclass(frozen=True)
class Circuits:
    """The graph of a model's run; each method runs the model's steps from a given state, with hooks where needed."""

    model: models.BViT

    @property
    def graph(self) -> Graph:
        return Graph(self.model.config.n_steps, self.model.config.n_heads)

    def sources(self, z: Tensor) -> Tensor:
        """The output of every source when the steps start from z_0: [source batch pos d_model]."""
        outputs = [z[None]]
        with torch.no_grad(), self.model.hooks(self._collecting(outputs)):
            self.logits(z)
        return torch.cat(outputs)

    def _collecting(self, outputs: list[Tensor]) -> list[tuple[str, Callable]]:
        """Hooks that append each source's output in the order of the run; attention's bias belongs to no source."""
        return [
            ("blocks.*.attn.hook_result", lambda result, hook: outputs.append(result.movedim(2, 0))),
            ("blocks.*.hook_mlp_out", lambda out, hook: outputs.append(out[None])),
        ]

    def logits(self, z: Tensor, first: int = 0) -> Tensor:
        return self.model.read_out(self.model.run_steps(z, first, self.model.config.n_steps))

    # Attribution

    def nodes(self, z: Tensor, delta: Tensor, metric: Metric) -> Tensor:
        """First-order effect of every source, (clean - reference) . gradient in the run from z: [batch source].

        Attribution patching (Nanda, 2023). A head's gradient is that at attention's output, which sums the heads.
        """
        graph, effect = self.graph, z.new_zeros(z.shape[0], len(delta))

        def read(sources: Callable[[int], slice]) -> Callable:
            def add(gradient: Tensor, hook: Any) -> None:
                own = sources(hook.layer())
                effect[:, own] = torch.einsum("sbpd,bpd->bs", delta[own], gradient)

            return add

        hooks = [("blocks.*.hook_attn_out", read(graph.heads)), ("blocks.*.hook_mlp_out", read(graph.ffn))]
        start = self._gradient(z, metric, hooks)
        effect[:, 0] = torch.einsum("bpd,bpd->b", delta[0], start)
        return effect

    def edges(self, z: Tensor, delta: Tensor, metric: Metric) -> Tensor:
        """First-order effect of every edge, (clean - reference) . gradient at the target's input.

        Returns [batch source target], 0 where there is no edge. Edge attribution patching (Syed et al., 2023): one
        backward pass, whose gradients are reduced inside the hooks.
        """
        graph = self.graph
        effect = z.new_zeros(z.shape[0], len(delta), graph.n_targets)

        def of_heads(slot: int) -> Callable:
            def add(gradient: Tensor, hook: Any) -> None:
                step = hook.layer()
                n_before, targets = graph.before(step), graph.reading(step, slot)
                effect[:, :n_before, targets] = torch.einsum("sbpd,bphd->bsh", delta[:n_before], gradient)

            return add

        def of_stream(target: Callable[[int], int], before: Callable[[int], int]) -> Callable:
            def add(gradient: Tensor, hook: Any) -> None:
                step = hook.layer()
                own = delta[: before(step)]
                effect[:, : len(own), target(step)] = torch.einsum("sbpd,bpd->bs", own, gradient)

            return add

        last = f"blocks.{graph.n_steps - 1}.hook_resid_post"
        hooks = [(f"blocks.*.hook_{slot}_input", of_heads(i)) for i, slot in enumerate(SLOTS)]
        hooks += [("blocks.*.hook_mlp_in", of_stream(graph.ffn_reading, graph.before_ffn))]
        hooks += [(last, of_stream(lambda step: graph.n_targets - 1, lambda step: len(delta)))]
        self._gradient(z, metric, hooks)
        return effect

    def _gradient(self, z: Tensor, metric: Metric, hooks: list[tuple[str, Callable]]) -> Tensor:
        """The metric's gradient at z_0, from one forward and one backward pass with backward hooks."""
        z = z.detach().requires_grad_()
        with frozen(self.model), self.model.hooks(bwd_hooks=hooks), torch.enable_grad():
            return torch.autograd.grad(metric(self.logits(z)).sum(), z)[0]

    # Exact effects

    def states(self, z: Tensor) -> list[Tensor]:
        """z_0 .. z_T of a clean run from z_0."""
        return list(states_from(self.model, z))

    def without_node(self, states: list[Tensor], delta: Tensor, source: int) -> Tensor:
        """Logits when one source's output is that of the reference run; starts at the clean state before it."""
        if source == 0:
            return self.logits(states[0] - delta[0])
        step = self.graph.step_of_source(source)
        name = "mlp_out" if self.graph.is_ffn(source) else "attn_out"
        with self.model.hooks([(f"blocks.{step}.hook_{name}", lambda out, hook: out - delta[source])]):
            return self.logits(states[step], step)

    def without_edge(self, states: list[Tensor], delta: Tensor, source: int, target: int) -> Tensor:
        """Logits when one target alone reads the source's output of the reference run: [batch class]."""
        graph = self.graph
        if target == graph.n_targets - 1:
            return self.model.read_out(states[-1] - delta[source])
        step, slot, head = graph.place_of_target(target)
        if slot is None:
            hook = f"blocks.{step}.hook_mlp_in", lambda x, hook: x - delta[source]
        else:
            hook = f"blocks.{step}.hook_{SLOTS[slot]}_input", lambda x, hook: minus(x, head, delta[source])
        with self.model.hooks([hook]):
            return self.logits(states[step], step)

    def of_circuit(self, z: Tensor, reference: Tensor, kept: Tensor) -> Tensor:
        """Logits of a circuit: [batch class].

        Each target reads its `kept` [source target] edges from the current run, and all other edges from the reference.
        """
        graph, is_cut = self.graph, (~kept).to(z).T
        delta = z.new_zeros(graph.n_sources, *z.shape)  # current run minus reference, of the sources that have run
        delta[0] = z - reference[0]

        def read(x: Tensor, targets: slice, n_before: int) -> Tensor:
            """A target's input, with the sources of its cut edges set to the reference."""
            removed = (is_cut[targets, :n_before] @ delta[:n_before].flatten(1)).unflatten(1, z.shape)
            return x - (removed.movedim(0, 2) if x.ndim == 4 else removed[0])

        def record(out: Tensor, sources: slice) -> None:
            delta[sources] = out - reference[sources]

        def read_by_heads(slot: int) -> Callable:
            return lambda x, hook: read(x, graph.reading(hook.layer(), slot), graph.before(hook.layer()))

        def read_by_ffn(x: Tensor, hook: Any) -> Tensor:
            target = graph.ffn_reading(hook.layer())
            return read(x, slice(target, target + 1), graph.before_ffn(hook.layer()))

        def read_out(x: Tensor, hook: Any) -> Tensor:
            return read(x, slice(graph.n_targets - 1, graph.n_targets), graph.n_sources)

        hooks = [(f"blocks.*.hook_{slot}_input", read_by_heads(i)) for i, slot in enumerate(SLOTS)]
        hooks += [
            ("blocks.*.attn.hook_result", lambda x, hook: record(x.movedim(2, 0), graph.heads(hook.layer()))),
            ("blocks.*.hook_mlp_in", read_by_ffn),
            ("blocks.*.hook_mlp_out", lambda x, hook: record(x[None], graph.ffn(hook.layer()))),
            (f"blocks.{graph.n_steps - 1}.hook_resid_post", read_out),
        ]
        with self.model.hooks(hooks):
            return self.logits(z)


def minus(x: Tensor, head: int, difference: Tensor) -> Tensor:
    """The inputs of all heads [batch pos head d_model], with `difference` subtracted from one head's input."""
    x = x.clone()
    x[:, :, head] -= difference
    return x
