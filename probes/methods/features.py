"""What the features of a dictionary do over a pass of images: how often, how much, where, and for which concepts."""

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

AGAINST = ("dictionary", "shuffled", "rotated")  # whose features are held against concepts; shuffled: other images'
KEYS = tuple((against, token) for against in AGAINST for token in TOKENS)


def dictionary_of(against: str) -> str:
    """Which dictionary's features are held against concepts: the rotated one's for itself alone."""
    return "rotated" if against == "rotated" else "dictionary"


@dataclass(frozen=True)
class Concepts:
    """What holds in each image and, as the null, what holds in another image; by kind of token."""

    known: Mapping[str, Known]
    shuffled: Mapping[str, Known]

    @classmethod
    def of(cls, known: Mapping[str, Known], seed: int) -> Concepts:
        return cls(known, {token: of_token.shuffled(seed) for token, of_token in known.items()})

    def held(self, batch: Batch) -> dict[tuple[str, str], Tensor]:
        """Whether each concept holds in a batch, by what is held against it and token: [image patch concept]."""
        return {
            (against, token): (self.shuffled if against == "shuffled" else self.known)[token].held(batch.index)
            for against, token in KEYS
        }


def f1(both: Tensor, fires: Tensor, holds: Tensor) -> Tensor:
    """F1 of firing as a sign of a concept, from counts [... feature concept], [... feature], [concept]."""
    return 2 * both / (fires[..., None] + holds).clamp(min=1e-12)


@dataclass(frozen=True)
class Choice:
    """The feature that tells each concept best at each state, as far as the images it was chosen on say.

    feature: [against token] -> [state concept]; match, value, state: [token] -> [against feature factor], the best F1
    of each feature over the values of a factor and the states, and where that is.
    """

    feature: dict[tuple[str, str], Tensor]
    match: dict[str, np.ndarray]
    value: dict[str, np.ndarray]
    state: dict[str, np.ndarray]


def chosen(coded: Mapping[str, Coded], images: Pass, known: Mapping[str, Known]) -> Choice:
    """One pass over images: how often each feature and each concept go together. `coded` has dictionary and rotated."""
    model, concepts = coded["dictionary"].model, Concepts.of(known, images.seed)

    def read(batch: Batch) -> dict[str, tuple]:
        held = concepts.held(batch)
        both, fires = ({key: [] for key in KEYS} for _ in range(2))
        with torch.inference_mode():
            for state, z in enumerate(states_of(model, batch.images)):
                for against, token in KEYS:
                    fired = fired_at(coded[dictionary_of(against)], z, token, state)
                    holds = held[against, token].to(fired.device).expand(*fired.shape[:2], -1).flatten(0, 1)
                    both[against, token].append(fired.flatten(0, 1).T @ holds)
                    fires[against, token].append(fired.sum((0, 1)))
        reading: dict[str, tuple] = {}
        for key in KEYS:
            dims, name = ("state", f"{key[1]} feature", f"{key[1]} concept"), " ".join(key)
            n_rows = 1 if key[1] == "cls" else model.config.n_patches
            reading[f"both {name}"] = dims, torch.stack(both[key]).double()
            reading[f"fires {name}"] = dims[:2], torch.stack(fires[key]).double()
            reading[f"holds {name}"] = dims[2:], held[key].expand(-1, n_rows, -1).sum((0, 1)).double()
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
    """From F1 [state feature concept] by what is held against what."""
    feature = {key: of_key.argmax(1) for key, of_key in score.items()}
    match, value, state = {}, {}, {}
    for token, of_token in known.items():
        of_factors = []
        for factor in of_token.factors:
            columns = [i for i, (name, _) in enumerate(of_token.names) if name == factor.name]
            by_state = torch.stack([score[against, token][..., columns] for against in AGAINST])
            top, place = by_state.transpose(1, 2).flatten(2).max(-1)  # [against feature], over states and values
            of_factors.append((top, place % len(columns), place // len(columns)))
        tops, values, states = zip(*of_factors, strict=True)
        match[token] = torch.stack(tops, -1).cpu().numpy()
        value[token] = torch.stack(values, -1).cpu().numpy()
        state[token] = torch.stack(states, -1).cpu().numpy()
    return Choice(feature, match, value, state)


class Telling:
    """Of one batch, how often the chosen features fire, their concepts hold, and both; with bootstrap resamples."""

    def __init__(self, known: Mapping[str, Known], choice: Choice, batch: Batch, images: Pass):
        drawn = torch.from_numpy(intervals.poisson_weights(images.photographs(batch.index), RESAMPLES, images.seed))
        self.weights = torch.cat([torch.ones(1, drawn.shape[1], dtype=drawn.dtype), drawn]).T
        self.choice, self.held = choice, Concepts.of(known, images.seed).held(batch)
        self.counts: dict[tuple[str, str], list[Tensor]] = {key: [] for key in KEYS}

    def add(self, token: str, state: int, codes: Mapping[str, Tensor]) -> None:
        """Codes [image row feature] of the dictionary and the rotated one, of one state."""
        for against in AGAINST:
            code = codes[dictionary_of(against)]
            fires = (code[..., self.choice.feature[against, token][state].to(code.device)] > 0).cpu().float()
            held = self.held[against, token].expand_as(fires)
            self.counts[against, token].append(torch.stack([(fires * held).sum(1), fires.sum(1), held.sum(1)]))

    def sums(self) -> Tensor:
        """[what against concept state draw]: both, fires, holds; the concepts of CLS, then those of patches."""
        by_against = []
        for against in AGAINST:
            of_tokens = [torch.stack(self.counts[against, token], -1) for token in TOKENS]  # [what image concept state]
            by_against.append(torch.cat(of_tokens, 2).double())
        return torch.einsum("awics,id->wacsd", torch.stack(by_against), self.weights)


class Top:
    """The images, and in them the places, where each feature is most active at each state."""

    def __init__(self, n: int):
        self.n, self.best = n, dict.fromkeys(TOKENS)

    def add(self, token: str, batch: Batch, highest: list[tuple[Tensor, Tensor]], n_rows: int) -> None:
        """The highest activation of each image of a batch and its row, [image feature] each, at each state."""
        values, rows = zip(*highest, strict=True)
        first_row = torch.as_tensor(batch.index, device=values[0].device)[:, None] * n_rows
        place = torch.stack([first_row + row for row in rows]).permute(0, 2, 1)
        self.best[token] = top_images.merged(self.best[token], torch.stack(values, 1), place, self.n)

    def gathered(self, images: Pass, token: str) -> tuple[np.ndarray, np.ndarray]:
        """Of all processes: activations, and image x rows + row: [feature state place] each."""
        own = None if self.best[token] is None else [values.cpu().numpy() for values in self.best[token]]
        of_processes = [best for best in images.gathered([(images.shard[0], own)]) if best is not None]
        values, places = zip(*of_processes, strict=True)
        value, place = np.concatenate(values, -1), np.concatenate(places, -1)
        order = np.lexsort((place, -value))[..., : self.n]
        return tuple(np.take_along_axis(array, order, -1).swapaxes(0, 1) for array in (value, place))
