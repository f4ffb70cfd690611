"""A run as a graph: what each head and FFN adds to the stream, who reads it, and what a circuit of such edges computes.

Sources add to the stream: the embedding, then of every step its heads and its FFN. Targets read it: of every step q, k
and v of each head and the FFN, and last the read-out. An edge is a (source, target) pair where the source comes first.
`delta` is what a source adds on clean images minus what it adds in its reference run: [source batch pos d_model].
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
    """The graph of a model's run; every method runs the steps from a state, with hooks where it has to."""

    model: models.BViT

    @property
    def graph(self) -> Graph:
        return Graph(self.model.config.n_steps, self.model.config.n_heads)

    def sources(self, z: Tensor) -> Tensor:
        """What every source adds when steps start from z_0: [source batch pos d_model]."""
        parts = [z[None]]
        with torch.no_grad(), self.model.hooks(self._collecting(parts)):
            self.logits(z)
        return torch.cat(parts)

    def _collecting(self, parts: list[Tensor]) -> list[tuple[str, Callable]]:
        """Hooks that append each source's addition in the order of the run; constants (biases) belong to none."""
        return [
            ("blocks.*.attn.hook_result", lambda result, hook: parts.append(result.movedim(2, 0))),
            ("blocks.*.hook_mlp_out", lambda out, hook: parts.append(out[None])),
        ]

    def logits(self, z: Tensor, first: int = 0) -> Tensor:
        return self.model.read_out(self.model.run_steps(z, first, self.model.config.n_steps))

    # Attribution

    def nodes(self, z: Tensor, delta: Tensor, metric: Metric) -> Tensor:
        """First-order effect of every source, (clean - reference) . gradient at z's run: [batch source].

        Attribution patching (Nanda, 2023). The gradient at what a head adds is that at the sum of all heads.
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
        """First-order effect of every edge, (clean - reference) . gradient at the target's own input:
        [batch source target], 0 where there is no edge.

        Edge attribution patching (Syed et al., 2023): one backward pass, reduced inside its hooks.
        """
        graph = self.graph
        effect = z.new_zeros(z.shape[0], len(delta), graph.n_targets)

        def of_heads(slot: int) -> Callable:
            def add(gradient: Tensor, hook: Any) -> None:
                step = hook.layer()
                there, before = graph.reading(step, slot), graph.before(step)
                effect[:, :before, there] = torch.einsum("sbpd,bphd->bsh", delta[:before], gradient)

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
        """One forward and backward with backward hooks; the gradient at z_0."""
        z = z.detach().requires_grad_()
        with frozen(self.model), self.model.hooks(bwd_hooks=hooks), torch.enable_grad():
            return torch.autograd.grad(metric(self.logits(z)).sum(), z)[0]

    # Exact effects

    def states(self, z: Tensor) -> list[Tensor]:
        """z_0 .. z_T of a clean run from z_0."""
        return list(states_from(self.model, z))

    def without_node(self, states: list[Tensor], delta: Tensor, source: int) -> Tensor:
        """Logits where one source adds what it adds in the reference, from the clean state before it: [batch class]."""
        if source == 0:
            return self.logits(states[0] - delta[0])
        step = self.graph.step_of_source(source)
        name = "mlp_out" if self.graph.is_ffn(source) else "attn_out"
        with self.model.hooks([(f"blocks.{step}.hook_{name}", lambda out, hook: out - delta[source])]):
            return self.logits(states[step], step)

    def without_edge(self, states: list[Tensor], delta: Tensor, source: int, target: int) -> Tensor:
        """Logits where one target alone reads the source's reference: [batch class]."""
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
        """Logits where every target reads its `kept` [source target] edges as the run goes, and the reference through
        all others: [batch class].
        """
        graph, cut = self.graph, (~kept).to(z).T
        delta = z.new_zeros(graph.n_sources, *z.shape)  # of the sources that have run, from their reference
        delta[0] = z - reference[0]

        def read(x: Tensor, targets: slice, n_before: int) -> Tensor:
            lost = (cut[targets, :n_before] @ delta[:n_before].flatten(1)).unflatten(1, z.shape)
            return x - (lost.movedim(0, 2) if x.ndim == 4 else lost[0])

        def moved(out: Tensor, own: slice) -> None:
            delta[own] = out - reference[own]

        def heads(slot: int) -> Callable:
            return lambda x, hook: read(x, graph.reading(hook.layer(), slot), graph.before(hook.layer()))

        def at(index: int) -> slice:
            return slice(index, index + 1)

        last = f"blocks.{graph.n_steps - 1}.hook_resid_post"
        hooks = [(f"blocks.*.hook_{slot}_input", heads(i)) for i, slot in enumerate(SLOTS)] + [
            ("blocks.*.attn.hook_result", lambda x, hook: moved(x.movedim(2, 0), graph.heads(hook.layer()))),
            (
                "blocks.*.hook_mlp_in",
                lambda x, hook: read(x, at(graph.ffn_reading(hook.layer())), graph.before_ffn(hook.layer())),
            ),
            ("blocks.*.hook_mlp_out", lambda x, hook: moved(x[None], graph.ffn(hook.layer()))),
            (last, lambda x, hook: read(x, at(graph.n_targets - 1), graph.n_sources)),
        ]
        with self.model.hooks(hooks):
            return self.logits(z)


def minus(x: Tensor, head: int, what: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, head] -= what
    return x
