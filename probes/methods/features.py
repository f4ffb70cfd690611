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
    model, shuffled = coded["dictionary"].model, {token: of.shuffled(images.seed) for token, of in known.items()}

    def read(batch: Batch) -> dict[str, tuple]:
        held = {
            (against, token): (shuffled if against == "shuffled" else known)[token].held(batch.index)
            for against, token in KEYS
        }
        both, fires = ({key: [] for key in KEYS} for _ in range(2))
        with torch.inference_mode():
            for state, z in enumerate(states_of(model, batch.images)):
                for against, token in KEYS:
                    fired = fired_at(coded["rotated" if against == "rotated" else "dictionary"], z, token, state)
                    of = held[against, token].to(fired.device).expand(*fired.shape[:2], -1).flatten(0, 1)
                    both[against, token].append(fired.flatten(0, 1).T @ of)
                    fires[against, token].append(fired.sum((0, 1)))
        reading: dict[str, tuple] = {}
        for key in KEYS:
            dims, name = ("state", f"{key[1]} feature", f"{key[1]} concept"), " ".join(key)
            n_rows = 1 if key[1] == "cls" else model.config.n_patches
            reading[f"both {name}"] = dims, torch.stack(both[key]).double()
            reading[f"fires {name}"] = dims[:2], torch.stack(fires[key]).double()
            reading[f"holds {name}"] = dims[2:], held[key].expand(-1, n_rows, -1).sum((0, 1)).double()
        return reading

    measured = {name: torch.from_numpy(of.values) for name, of in images.over(read).data_vars.items()}
    score = {
        (against, token): f1(*(measured[f"{what} {against} {token}"] for what in ("both", "fires", "holds")))
        for against, token in KEYS
    }
    return best(score, known)


def fired_at(coded: Coded, z: Tensor, token: str, state: int) -> Tensor:
    """Which features fire: [image row feature], 0 or 1."""
    return (coded.dictionaries[token].codes(coded.rows(z, token, state), state) > 0).float()


def best(score: Mapping[tuple[str, str], Tensor], known: Mapping[str, Known]) -> Choice:
    """From F1 [state feature concept] by what is held against what."""
    feature = {key: of.argmax(1) for key, of in score.items()}
    match, value, state = {}, {}, {}
    for token, of_token in known.items():
        names, parts = of_token.names, []
        for factor in of_token.factors:
            columns = [i for i, (name, _) in enumerate(names) if name == factor.name]
            of = torch.stack(
                [score[against, token][..., columns] for against in AGAINST]
            )  # [against state feature value]
            top, place = of.transpose(1, 2).flatten(2).max(-1)
            parts.append((top, place % len(columns), place // len(columns)))
        match[token], value[token], state[token] = (
            torch.stack(of, -1).cpu().numpy() for of in zip(*parts, strict=True)
        )
    return Choice(feature, match, value, state)


class Telling:
    """Of one batch, how often the chosen features fire, their concepts hold, and both; with bootstrap resamples."""

    def __init__(self, known: Mapping[str, Known], choice: Choice, batch: Batch, images: Pass):
        drawn = torch.from_numpy(intervals.poisson_weights(images.photographs(batch.index), RESAMPLES, images.seed))
        self.weights = torch.cat([torch.ones(1, drawn.shape[1], dtype=drawn.dtype), drawn]).T
        self.choice, shuffled = choice, {token: of.shuffled(images.seed) for token, of in known.items()}
        self.held = {
            (against, token): (shuffled if against == "shuffled" else known)[token].held(batch.index)
            for against, token in KEYS
        }
        self.counts: dict[tuple[str, str], list[Tensor]] = {key: [] for key in KEYS}

    def add(self, token: str, state: int, codes: Mapping[str, Tensor]) -> None:
        """Codes [image row feature] of the dictionary and the rotated one, of one state."""
        for against in AGAINST:
            of = codes["rotated" if against == "rotated" else "dictionary"]
            fires = (of[..., self.choice.feature[against, token][state].to(of.device)] > 0).cpu().float()
            held = self.held[against, token].expand_as(fires)
            self.counts[against, token].append(torch.stack([(fires * held).sum(1), fires.sum(1), held.sum(1)]))

    def sums(self) -> Tensor:
        """[what against concept state draw]: both, fires, holds; the concepts of CLS, then those of patches."""
        every = []
        for against in AGAINST:
            of_tokens = [torch.stack(self.counts[against, token], -1) for token in TOKENS]  # [what image concept state]
            every.append(torch.cat(of_tokens, 2).double())
        return torch.einsum("awics,id->wacsd", torch.stack(every), self.weights)


class Top:
    """The images, and in them the places, where each feature is most active at each state."""

    def __init__(self, n: int):
        self.n, self.of = n, dict.fromkeys(TOKENS)

    def add(self, token: str, batch: Batch, highest: list[tuple[Tensor, Tensor]], n_rows: int) -> None:
        """The highest activation of each image of a batch and its row, [image feature] each, at each state."""
        value, row = zip(*highest, strict=True)
        index = torch.as_tensor(batch.index, device=value[0].device)[:, None] * n_rows
        place = torch.stack([index + of for of in row]).permute(0, 2, 1)
        self.of[token] = top_images.merged(self.of[token], torch.stack(value, 1), place, self.n)

    def gathered(self, images: Pass, token: str) -> tuple[np.ndarray, np.ndarray]:
        """Of all processes: activations, and image x rows + row: [feature state place] each."""
        mine = self.of[token] and [of.cpu().numpy() for of in self.of[token]]
        every = [of for of in images.gathered([(images.shard[0], mine)]) if of is not None]
        value, place = (np.concatenate([of[i] for of in every], -1) for i in (0, 1))
        order = np.lexsort((place, -value))[..., : self.n]
        return tuple(np.take_along_axis(of, order, -1).swapaxes(0, 1) for of in (value, place))
