"""A run as a graph: who may write to whom, and circuits as sets of its edges."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

SLOTS = ("q", "k", "v")


@dataclass(frozen=True)
class Graph:
    """Who may write to whom: numbers and names of sources and targets of a model of T steps.

    Sources: the embedding; of every step its heads, then its FFN. Targets: of every step q, k, v of its heads, then its
    FFN; last the read-out.
    """

    n_steps: int
    n_heads: int

    @property
    def n_sources(self) -> int:
        return 1 + self.n_steps * (self.n_heads + 1)

    @property
    def n_targets(self) -> int:
        return self.n_steps * (3 * self.n_heads + 1) + 1

    @property
    def parts(self) -> list[str]:
        return [*(f"h{head}" for head in range(self.n_heads)), "ffn"]

    @property
    def sources(self) -> list[str]:
        return ["embedding", *(f"blocks.{step} {part}" for step in range(self.n_steps) for part in self.parts)]

    @property
    def targets(self) -> list[str]:
        own = [*(f"{slot}{head}" for slot in SLOTS for head in range(self.n_heads)), "ffn"]
        return [*(f"blocks.{step} {part}" for step in range(self.n_steps) for part in own), "logits"]

    def before(self, step: int) -> int:
        """How many sources come before the heads of a step."""
        return 1 + step * (self.n_heads + 1)

    def before_ffn(self, step: int) -> int:
        return self.before(step) + self.n_heads

    def heads(self, step: int) -> slice:
        return slice(self.before(step), self.before_ffn(step))

    def ffn(self, step: int) -> slice:
        return slice(self.before_ffn(step), self.before(step + 1))

    def step_of_source(self, source: int) -> int:
        return (source - 1) // (self.n_heads + 1)

    def is_ffn(self, source: int) -> bool:
        return source > 0 and source % (self.n_heads + 1) == 0

    def reading(self, step: int, slot: int) -> slice:
        """The targets that are q, k or v (slot 0, 1, 2) of a step's heads."""
        first = step * (3 * self.n_heads + 1) + slot * self.n_heads
        return slice(first, first + self.n_heads)

    def ffn_reading(self, step: int) -> int:
        return (step + 1) * (3 * self.n_heads + 1) - 1

    def place_of_target(self, target: int) -> tuple[int, int | None, int]:
        """Step, slot (None for the FFN) and head of a target that is not the read-out."""
        step, place = divmod(target, 3 * self.n_heads + 1)
        return (step, None, 0) if place == 3 * self.n_heads else (step, *divmod(place, self.n_heads))

    @property
    def is_edge(self) -> np.ndarray:
        """[source target]"""
        allowed = np.zeros((self.n_sources, self.n_targets), bool)
        for step in range(self.n_steps):
            for slot in range(3):
                allowed[: self.before(step), self.reading(step, slot)] = True
            allowed[: self.before_ffn(step), self.ffn_reading(step)] = True
        allowed[:, -1] = True
        return allowed


# Circuits


def sizes(graph: Graph, n: int = 14) -> list[int]:
    """Numbers of edges at which circuits are tried, from few to all."""
    total = int(graph.is_edge.sum())
    return np.unique(np.geomspace(min(4, total), total, n).round().astype(int)).tolist()


def ranked(edge: np.ndarray, graph: Graph) -> np.ndarray:
    """Flat places of all edges, strongest first; an edge against the answer is strong too."""
    strength = np.where(graph.is_edge, np.abs(edge), -1).ravel()
    return np.argsort(-strength, kind="stable")[: graph.is_edge.sum()]


def strongest(edge: np.ndarray, graph: Graph, n: int) -> np.ndarray:
    """The circuit of the n strongest edges: [source target]."""
    kept = np.zeros(edge.size, bool)
    kept[ranked(edge, graph)[:n]] = True
    return kept.reshape(edge.shape)


def drawn(graph: Graph, n: int, rng: np.random.Generator) -> np.ndarray:
    """A circuit of n edges drawn at random: [source target]."""
    kept = np.zeros_like(graph.is_edge)
    kept.ravel()[rng.choice(np.flatnonzero(graph.is_edge), n, replace=False)] = True
    return kept


def to_check(
    edge: np.ndarray, graph: Graph, n: int, rng: np.random.Generator
) -> tuple[list[tuple[int, int]], list[str]]:
    """The n strongest edges and n of the others drawn at random, as (source, target); which is which."""
    order = ranked(edge, graph)
    strong, others = order[:n], order[n:]
    random = rng.choice(others, min(n, len(others)), replace=False)
    places = [divmod(int(place), graph.n_targets) for place in (*strong, *random)]
    return places, ["strongest"] * len(strong) + ["random"] * len(random)


# Edges of a result


def graph_of(result: xr.Dataset) -> Graph:
    return Graph(result.sizes["step"], result.sizes["part"] - 1)


def between_heads(result: xr.Dataset) -> xr.DataArray:
    """Edges from a head (step, head) to q, k or v of a later one: [how slot step head other_step other_head]."""
    graph, edge = graph_of(result), result["edge"].values
    n = graph.n_steps, graph.n_heads
    of_heads = edge[:, 1:].reshape(len(edge), n[0], n[1] + 1, -1)[:, :, : n[1], :-1]
    cells = of_heads.reshape(len(edge), *n, n[0], 3 * n[1] + 1)[..., :-1].reshape(len(edge), *n, n[0], 3, n[1])
    values = np.moveaxis(cells, 4, 1)
    dims = ("how", "slot", "step", "head", "other_step", "other_head")
    coords = dict(how=result["how"].values, slot=list(SLOTS), step=range(n[0]), other_step=range(n[0]))
    return xr.DataArray(values, dims=dims, coords=coords)


def step_to_step(result: xr.Dataset, how: str = "integrated") -> np.ndarray:
    """Sum of |effect| of the edges between any two steps: [step other_step], of all heads and FFNs."""
    graph, edge = graph_of(result), np.abs(result["edge"].sel(how=how).values)
    written = edge[1:].reshape(graph.n_steps, graph.n_heads + 1, -1).sum(1)[:, :-1]
    return written.reshape(graph.n_steps, graph.n_steps, -1).sum(-1)
