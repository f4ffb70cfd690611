"""Which heads and FFNs cause the answer, at which step, and through whom? All nodes and edges from gradients.

    python -m probes.attribution runs/demo
    python -m probes.attribution runs/demo --corrupt image --points 10

The effect of a head at a step is what the answer's logit difference loses when that head adds what it adds on average
(or on another image). To first order it is the difference of its activations times the gradient: one backward pass for
all heads (Nanda, 2023) and all edges from a head to q, k or v of a later one (Syed et al., 2023). Gradients vanish
where a softmax is saturated, so they are also averaged on the way from the reference's embedding to the image's
(integrated gradients; Hanna et al., 2024). Both are held against exact patches, and the strongest edges against random
ones, on images that they were not chosen on. Which heads could write into which by their weights stands beside. A batch
is read in parts, so that memory does not grow with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from etils import epy

from models.errors import require
from probes import probe

with epy.lazy_imports():
    import numpy as np
    import torch
    import xarray as xr

    import models
    from analyses import attribution as analysis
    from analyses import graph as graphs
    from models.data import stream
    from probes.methods import circuits, composition, reading, references

N_DRAWS = 3  # random circuits of every size
BYTES = 2**29  # of the split streams of all steps at once
MOST_POINTS = 1000  # of the integral, all of which are kept until it is taken


def of_untrained(result: xr.Dataset) -> xr.Dataset:
    kept = ("node", "clean", "corrupted")
    return result[[name for name in result.data_vars if name in kept or name.startswith("composition")]]


@probe.measurement(control=of_untrained, lighter=dict(edges=False, exact=0))
def measure(
    model: models.BViT,
    data: Any,
    *,
    corrupt: Literal["mean", "image"] = "mean",
    images: int = 256,
    points: int = 5,
    edges: bool = True,
    exact: int = 32,
    checked: int = 40,
) -> xr.Dataset:
    """What does each head and FFN add to the answer, at each step and along each edge?

    The answer is the logit of the true class minus that of the best other class of the unchanged run. Raises
    `InputError` for a model without two classes to tell apart, classes that it lacks, and too few images.

    Args:
        corrupt: what a node adds in its place: the mean over the images (CLS, registers and patches apart), or what it
            adds on an image of another class.
        images: at most this many to attribute on, spread evenly over the data.
        points: between reference and image, over which integrated gradients average.
        edges: also the edges between nodes; without them only nodes, at the price of a plain forward and backward.
        exact: other images on which exact patches and circuits are run; 0 for none.
        checked: strongest edges patched exactly, and as many random ones.
    """
    refuse(model, images, points, exact, checked)
    attributed, held_out = halves(data, images, exact)
    run = Run.of(model, data, attributed, corrupt, points)
    measured = attributed.over(run.with_edges if edges else run.with_nodes)
    result = xr.Dataset(
        {
            "node": measured["node_of_image"].mean("image").variable,
            "node_of_image": measured["node_of_image"].astype(np.float32).variable,
            "clean": ((), float(measured["clean"].mean())),
            "corrupted": ((), float(measured["corrupted"].mean())),
            "index": ("image", attributed.indices(measured["position"])),
        }
        | composition.variables(model, data.seed),
        coords={
            "how": list(analysis.HOWS),
            "slot": list(graphs.SLOTS),
            "step": np.arange(run.graph.n_steps),
            "part": run.graph.parts,
        },
        attrs=dict(corrupt=corrupt, points=points, n_unreadable=measured.attrs["n_unreadable"], note=""),
    )
    if edges:
        result["edge"] = measured["edge_sums"].variable / measured.sizes["image"]
        result = result.assign_coords(source=run.graph.sources, target=run.graph.targets)
    if held_out is not None:
        result = result.assign(held_against(run, held_out, result, checked))
    return result


def refuse(model: models.BViT, images: int, points: int, exact: int, checked: int) -> None:
    require(
        (model.config.n_classes >= 2, "the model tells no two classes apart, so there is no logit difference"),
        (images >= 1, f"--images is {images}, it must be at least 1"),
        (1 <= points <= MOST_POINTS, f"--points is {points}, it must lie between 1 and {MOST_POINTS}"),
        (exact >= 0, f"--exact is {exact}, it cannot be negative"),
        (checked >= 1, f"--checked is {checked}, it must be at least 1"),
    )


def halves(data: probe.Pass, images: int, exact: int) -> tuple[probe.Pass, probe.Pass | None]:
    """Images to attribute on, and others to check on, both spread evenly over the data."""
    if not exact:
        return data.sample(images), None
    sample = data.sample(images + exact)
    n, kept_back = len(sample), min(exact, len(sample) // 2)
    require((n >= 2, "one image is too few: attributions are checked on others; use more images, or --exact 0"))
    others = set(stream.evenly(n, kept_back))
    parts = ([i for i in range(n) if i not in others], sorted(others))
    attributed, held_out = (replace(sample, data=torch.utils.data.Subset(sample.data, part)) for part in parts)
    return attributed, held_out


@dataclass(frozen=True)
class Run:
    """How batches are read: the model's graph, the reference, the classes, and the points of the integral."""

    wires: circuits.Circuits
    reference: references.Reference
    class_of_label: torch.Tensor
    points: int

    @classmethod
    def of(cls, model: models.BViT, data: probe.Pass, attributed: probe.Pass, corrupt: str, points: int) -> Run:
        wires = circuits.Circuits(model)
        make = {"mean": references.mean, "image": references.other_image}[corrupt]
        reference = make(wires, replace(attributed, label="reference"))
        return cls(wires, reference, data.classes_of(model), points)

    @property
    def graph(self) -> graphs.Graph:
        return self.wires.graph

    def parts(self, batch: stream.Batch) -> Iterator[Part]:
        """A batch in parts that fit into memory."""
        config = self.wires.model.config
        bytes_of_image = 4 * config.n_steps * 3 * config.n_heads * config.n_tokens * config.d_model * 4
        size = max(1, BYTES // bytes_of_image)
        reference, z = self.reference(batch), references.embedded(self.wires, batch.images)
        target = self.class_of_label[batch.labels].to(z.device)
        for first in range(0, len(z), size):
            rows = slice(first, first + size)
            own_reference = reference if reference.shape[1] == 1 else reference[:, rows]
            yield Part.of(self.wires, z[rows], own_reference, target[rows])

    def effects(self, part: Part, attribute: Callable[..., torch.Tensor]) -> torch.Tensor:
        """By the gradient at the image, and by its mean on the way from the reference: [how batch ...]."""
        path = [part.between((i + 0.5) / self.points) for i in range(self.points)]
        gradient, *on_the_path = (attribute(z, part.delta, part.metric).double() for z in (part.z, *path))
        return torch.stack([gradient, sum(on_the_path) / self.points])

    def with_nodes(self, batch: stream.Batch) -> probe.Reading:
        """Effects of nodes alone: [how image step part]."""
        effects, parts = [], []
        for part in self.parts(batch):
            effects.append(self.effects(part, self.wires.nodes))
            parts.append(part)
        return self.reading(torch.cat(effects, 1), parts)

    def with_edges(self, batch: stream.Batch) -> probe.Reading:
        """Effects of edges, summed over images [how source target], and of nodes, the sums of their edges."""
        node, parts, sums = [], [], 0
        for part in self.parts(batch):
            edge = self.effects(part, self.wires.edges)
            node.append(edge.sum(-1))
            parts.append(part)
            sums = sums + edge.sum(1)
        return self.reading(torch.cat(node, 1), parts) | {"edge_sums": (("how", "source", "target"), sums)}

    def reading(self, node: torch.Tensor, parts: list[Part]) -> dict[str, Any]:
        cells = node[..., 1:].unflatten(-1, (self.graph.n_steps, -1))
        probe.refuse_nonfinite(cells.sum((0, 1, 3)))
        return {
            "node_of_image": (("how", "image", "step", "part"), cells),
            "clean": ("image", torch.cat([part.clean for part in parts]).double()),
            "corrupted": ("image", torch.cat([part.corrupted for part in parts]).double()),
        }


@dataclass(frozen=True)
class Part:
    """Some images: z_0, what the sources add there and in the reference, and the logit difference [batch]."""

    z: torch.Tensor
    reference: torch.Tensor
    delta: torch.Tensor
    metric: circuits.Metric
    clean: torch.Tensor
    corrupted: torch.Tensor  # where every target reads the reference alone

    @classmethod
    def of(cls, wires: circuits.Circuits, z: torch.Tensor, reference: torch.Tensor, target: torch.Tensor) -> Part:
        delta, rows = wires.sources(z) - reference, torch.arange(len(z), device=z.device)
        with torch.no_grad():
            final = wires.model.run_steps(z, 0, wires.graph.n_steps)
            logits, corrupted = wires.model.read_out(final), wires.model.read_out(final - delta.sum(0))
        other = reading.best_other(logits, target)

        def difference(logits: torch.Tensor) -> torch.Tensor:
            return logits[rows, target] - logits[rows, other]

        return cls(z, reference, delta, difference, difference(logits), difference(corrupted))

    def between(self, alpha: float) -> torch.Tensor:
        """z_0 on the straight line from the reference (0) to the image (1)."""
        return self.reference[0] + alpha * (self.z - self.reference[0])

    def lost(self, logits: torch.Tensor) -> torch.Tensor:
        """How much of the logit difference is lost under other logits [batch class], summed over the images."""
        return (self.clean - self.metric(logits)).double().sum()


# Against exact patches, on images held out


def held_against(run: Run, images: probe.Pass, result: xr.Dataset, checked: int) -> dict[str, tuple]:
    """Exact effects of every node and of some edges, and logit differences of circuits: means over the images."""
    rng, graph = np.random.default_rng(images.seed), run.graph
    pairs: list[tuple[int, int]] = []  # edges that are patched exactly, as (source, target)
    masks: dict[str, np.ndarray] = {}  # circuits that are run, by the variable that their logit differences become
    labels: dict[str, tuple] = {}
    if "edge" in result:
        by_how = result["edge"].values  # [how source target]
        pairs, kinds = graphs.to_check(by_how[-1], graph, checked, rng)
        sizes = graphs.sizes(graph)
        masks["kept_difference"] = np.stack([[graphs.strongest(edge, graph, n) for n in sizes] for edge in by_how])
        masks["random_difference"] = np.stack([[graphs.drawn(graph, n, rng) for n in sizes] for _ in range(N_DRAWS)])
        labels = {
            "checked_source": ("checked", [graph.sources[source] for source, _ in pairs]),
            "checked_target": ("checked", [graph.targets[target] for _, target in pairs]),
            "checked_as": ("checked", kinds),
            "n_edges": ("n_edges", sizes),
        }
    measured = replace(images, label="exact patches").over(lambda batch: exact_of(run, batch, pairs, masks))
    n = measured.sizes["image"]
    return {name: (sums.dims, sums.values / n) for name, sums in measured.data_vars.items()} | labels


def exact_of(run: Run, batch: stream.Batch, pairs: list[tuple[int, int]], masks: dict[str, Any]) -> probe.Reading:
    """Sums over a batch: exact effects beside attributed ones, and what circuits keep of the logit difference."""
    sums: dict[str, Any] = {}
    for part in run.parts(batch):
        for name, (dims, values) in exact_of_part(run, part, pairs, masks).items():
            sums[name] = dims, values + sums[name][1] if name in sums else values
    return sums


def exact_of_part(run: Run, part: Part, pairs: list[tuple[int, int]], masks: dict[str, Any]) -> dict[str, Any]:
    """`exact_of` of some of a batch's images."""
    wires, graph = run.wires, run.graph
    with torch.no_grad():
        states = wires.states(part.z)
        node = [part.lost(wires.without_node(states, part.delta, source)) for source in range(1, graph.n_sources)]
        edge = [part.lost(wires.without_edge(states, part.delta, *pair)) for pair in pairs]
        kept = {name: circuits_of(run, part, circuit_masks) for name, circuit_masks in masks.items()}
    sums = {
        "exact_node": (("step", "part"), torch.stack(node).unflatten(0, (graph.n_steps, -1))),
        "exact_clean": ((), part.clean.double().sum()),
        "exact_corrupted": ((), part.corrupted.double().sum()),
    }
    attributed = run.effects(part, wires.edges if pairs else wires.nodes).sum(1)
    of_node = attributed.sum(-1) if pairs else attributed
    sums["sample_node"] = ("how", "step", "part"), of_node[:, 1:].unflatten(-1, (graph.n_steps, -1))
    if pairs:
        sums["exact_edge"] = "checked", torch.stack(edge)
        sums["sample_edge"] = ("how", "checked"), torch.stack([attributed[:, s, t] for s, t in pairs], 1)
    for name, differences in kept.items():
        sums[name] = ("how" if name == "kept_difference" else "draw", "n_edges"), differences
    return sums


def circuits_of(run: Run, part: Part, masks: np.ndarray) -> torch.Tensor:
    """Logit differences of circuits, summed over images, in the shape of the masks [... source target]."""
    differences = [
        part.metric(run.wires.of_circuit(part.z, part.reference, torch.from_numpy(mask).to(part.z.device)))
        for mask in masks.reshape(-1, *masks.shape[-2:])
    ]
    return torch.stack(differences).double().sum(-1).reshape(masks.shape[:-2])


if __name__ == "__main__":
    probe.main(measure)
