"""How a dictionary's features behave on images: when and where they fire, and which concepts they match."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from analyses import intervals
from models.data.stream import Batch
from probes.methods import top_images
from probes.methods.activations import TOKENS
from probes.methods.coding import Coded
from probes.methods.concepts import Known
from probes.methods.means import RESAMPLES
from probes.methods.reading import states_of
from probes.walk import Pass

# What is compared: the dictionary's features with an image's concepts; as nulls, the same features with another image's
# concepts, and a rotated dictionary's features with an image's concepts.
AGAINST = ("dictionary", "shuffled", "rotated")
KEYS = tuple((against, token) for against in AGAINST for token in TOKENS)


def dictionary_of(against: str) -> str:
    """The dictionary whose features a comparison uses; "rotated" uses the rotated one, the others the trained one."""
    return "rotated" if against == "rotated" else "dictionary"


@dataclass(frozen=True)
class Concepts:
    """The concepts of each image and, as the null, those of another image, by kind of token."""

    known: Mapping[str, Known]
    shuffled: Mapping[str, Known]

    @classmethod
    def of(cls, known: Mapping[str, Known], seed: int) -> Concepts:
        return cls(known, {token: concepts.shuffled(seed) for token, concepts in known.items()})

    def present(self, batch: Batch) -> dict[tuple[str, str], Tensor]:
        """Whether each concept is present in a batch, by comparison and token: [image patch concept], 0 or 1."""
        return {
            (against, token): (self.shuffled if against == "shuffled" else self.known)[token].present(batch.index)
            for against, token in KEYS
        }


def f1(both: Tensor, fires: Tensor, holds: Tensor) -> Tensor:
    """F1 of a feature's firing as a detector of a concept.

    Counts of rows: both [... feature concept], where the feature fires and the concept is present; fires [... feature];
    holds [concept].
    """
    return 2 * both / (fires[..., None] + holds).clamp(min=1e-12)


@dataclass(frozen=True)
class Choice:
    """The feature that detects each concept best at each state, chosen by its F1 on the choosing images.

    feature: by (against, token), the chosen feature [state concept]. match: by token, the best F1 of each feature over
    the values of a factor and the states [against feature factor]; value, state: the value and the state that reach it.
    """

    feature: dict[tuple[str, str], Tensor]
    match: dict[str, np.ndarray]
    value: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


def chosen(coded: Mapping[str, Coded], images: Pass, known: Mapping[str, Known]) -> Choice:
    """Chooses features by one pass over images that counts how often each feature and each concept occur together.

    `coded` holds the model read by "dictionary" and by "rotated".
    """
    model, concepts = coded["dictionary"].model, Concepts.of(known, images.seed)

    def read(batch: Batch) -> dict[str, tuple]:
        present = concepts.present(batch)
        both: dict[tuple[str, str], list[Tensor]] = {key: [] for key in KEYS}
        fires: dict[tuple[str, str], list[Tensor]] = {key: [] for key in KEYS}
        with torch.inference_mode():
            for state, z in enumerate(states_of(model, batch.images)):
                for against, token in KEYS:
                    fired = fired_at(coded[dictionary_of(against)], z, token, state)
                    holds = present[against, token].to(fired.device).expand(*fired.shape[:2], -1).flatten(0, 1)
                    both[against, token].append(fired.flatten(0, 1).T @ holds)
                    fires[against, token].append(fired.sum((0, 1)))
        reading: dict[str, tuple] = {}
        for against, token in KEYS:
            key, name = (against, token), f"{against} {token}"
            dims = ("state", f"{token} feature", f"{token} concept")
            n_rows = 1 if token == "cls" else model.config.n_patches
            reading[f"both {name}"] = dims, torch.stack(both[key]).double()
            reading[f"fires {name}"] = dims[:2], torch.stack(fires[key]).double()
            reading[f"holds {name}"] = dims[2:], present[key].expand(-1, n_rows, -1).sum((0, 1)).double()
        return reading

    counts = {name: torch.from_numpy(count.values) for name, count in images.over(read).data_vars.items()}
    score = {}
    for against, token in KEYS:
        name = f"{against} {token}"
        score[against, token] = f1(counts[f"both {name}"], counts[f"fires {name}"], counts[f"holds {name}"])
    return best(score, known)


def fired_at(coded: Coded, z: Tensor, token: str, state: int) -> Tensor:
    """Which features fire: [image row feature], 0 or 1."""
    return (coded.dictionaries[token].codes(coded.rows(z, token, state), state) > 0).float()


def best(score: Mapping[tuple[str, str], Tensor], known: Mapping[str, Known]) -> Choice:
    """The choice that follows from F1 scores [state feature concept], by (against, token)."""
    feature = {key: scores.argmax(1) for key, scores in score.items()}
    match, value, state = {}, {}, {}
    for token, concepts in known.items():
        tops, values, states = [], [], []  # of each factor
        for factor in concepts.factors:
            columns = [i for i, (name, _) in enumerate(concepts.names) if name == factor.name]
            by_state = torch.stack([score[against, token][..., columns] for against in AGAINST])
            top, index = by_state.transpose(1, 2).flatten(2).max(-1)  # [against feature], over states and values
            tops.append(top)
            values.append(index % len(columns))
            states.append(index // len(columns))
        match[token] = torch.stack(tops, -1).cpu().numpy()
        value[token] = torch.stack(values, -1).cpu().numpy()
        state[token] = torch.stack(states, -1).cpu().numpy()
    return Choice(feature, match, value, state)


class MatchCounts:
    """Counts on one batch: how often chosen features fire, their concepts hold, and both; with bootstrap resamples."""

    def __init__(self, known: Mapping[str, Known], choice: Choice, batch: Batch, images: Pass):
        resamples = torch.from_numpy(intervals.poisson_weights(images.photographs(batch.index), RESAMPLES, images.seed))
        unweighted = torch.ones(1, resamples.shape[1], dtype=resamples.dtype)
        self.weights = torch.cat([unweighted, resamples]).T  # [image draw]; draw 0 is the sample itself
        self.choice = choice
        self.present = Concepts.of(known, images.seed).present(batch)
        self.counts: dict[tuple[str, str], list[Tensor]] = {key: [] for key in KEYS}

    def add(self, token: str, state: int, codes: Mapping[str, Tensor]) -> None:
        """Counts one state; codes [image row feature] are by name of the dictionary, "dictionary" and "rotated"."""
        for against in AGAINST:
            code = codes[dictionary_of(against)]
            chosen_features = self.choice.feature[against, token][state].to(code.device)
            fires = (code[..., chosen_features] > 0).cpu().float()
            holds = self.present[against, token].expand_as(fires)
            self.counts[against, token].append(torch.stack([(fires * holds).sum(1), fires.sum(1), holds.sum(1)]))

    def sums(self) -> Tensor:
        """Counts [what against concept state draw], what: both, fires, holds; CLS's concepts, then the patches'."""
        by_against = []
        for against in AGAINST:
            by_token = [torch.stack(self.counts[against, token], -1) for token in TOKENS]  # [what image concept state]
            by_against.append(torch.cat(by_token, 2).double())
        return torch.einsum("awics,id->wacsd", torch.stack(by_against), self.weights)


class Top:
    """The `n` images, and the row within each, where each feature is most active at each state."""

    def __init__(self, n: int):
        self.n, self.best = n, dict.fromkeys(TOKENS)

    def add(self, token: str, batch: Batch, highest: list[tuple[Tensor, Tensor]], n_rows: int) -> None:
        """Adds a batch; `highest` gives, per state, each image's highest activation and its row [image feature]."""
        values, rows = zip(*highest, strict=True)
        first_row = torch.as_tensor(batch.index, device=values[0].device)[:, None] * n_rows
        place = torch.stack([first_row + row for row in rows]).permute(0, 2, 1)
        self.best[token] = top_images.merged(self.best[token], torch.stack(values, 1), place, self.n)

    def gathered(self, images: Pass, token: str) -> tuple[np.ndarray, np.ndarray]:
        """The best over all processes, [feature state place] each: activations, and image number x rows + row."""
        own = None if self.best[token] is None else [values.cpu().numpy() for values in self.best[token]]
        by_process = [best for best in images.gathered([(images.shard[0], own)]) if best is not None]
        values, places = zip(*by_process, strict=True)
        value, place = np.concatenate(values, -1), np.concatenate(places, -1)
        order = np.lexsort((place, -value))[..., : self.n]
        return tuple(np.take_along_axis(array, order, -1).swapaxes(0, 1) for array in (value, place))
