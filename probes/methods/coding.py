"""A model whose states are read by sparse dictionaries: which ones there are, and how they are trained together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import checkpoint
from models.vit import BViT
from probes.methods import activations
from probes.methods.activations import TOKENS, Scale, tokens
from probes.methods.dictionaries import Dictionary, Plan, fitted
from probes.methods.moments import Moments
from probes.walk import Pass


@dataclass(frozen=True)
class Coded:
    """A model whose states are read by a dictionary for each kind of tokens."""

    model: BViT
    dictionaries: Mapping[str, Dictionary]
    scales: Mapping[str, Scale]

    def rows(self, z: Tensor, token: str, state: int) -> Tensor:
        """Rows of one kind of tokens as the dictionary takes them: [... row d_model]."""
        return self.scales[token].inward(z[..., tokens(self.model)[token], :], state)

    def replaced(self, z: Tensor, state: int) -> Tensor:
        """Every row as its dictionary gives it back; registers as they are."""
        z = z.clone()
        for token, dictionary in self.dictionaries.items():
            rows = dictionary.decoded(dictionary.codes(self.rows(z, token, state), state), state)
            z[..., tokens(self.model)[token], :] = self.scales[token].outward(rows, state)
        return z


@dataclass(frozen=True)
class Trained:
    """Dictionaries by (kind, token), the transcoder, and what rows are scaled by."""

    model: BViT
    dictionaries: dict[tuple[str, str], Dictionary]
    transcoder: Dictionary
    scales: dict[str, Scale]
    principal: dict[str, Tensor]  # [state d_model component] by token
    ffn_mean: Tensor  # what comes out of the FFN at each step: [step d_model]

    @property
    def coded(self) -> dict[str, Coded]:
        """The model read by the dictionary of all states, and by the same one rotated."""
        kinds = {"dictionary": "shared", "rotated": "rotated"}
        return {
            name: Coded(self.model, {token: self.dictionaries[kind, token] for token in TOKENS}, self.scales)
            for name, kind in kinds.items()
        }


def train(model: BViT, fitting: Pass, options: dict[str, Any]) -> Trained:
    """All dictionaries, from one stream; on every process alike.

    `options`: expansion, k, updates, and separate, whether there are also dictionaries for each state.
    """
    config, moments = model.config, activations.moments_of(model, fitting)
    scales = {site: Scale.of(of_site, common=site.startswith("ffn")) for site, of_site in moments.items()}
    n_states, width, k = config.n_steps + 1, config.d_model, options["k"]
    n_features = options["expansion"] * width
    plans = {}
    for token in TOKENS:
        plans[f"shared {token}"] = Plan(token, 1, n_features, width)
        if options["separate"]:
            plans[f"separate {token}"] = Plan(token, n_states, n_features // n_states, width)
            plans[f"larger {token}"] = Plan(token, n_states, n_features, width)
    plans["transcoder"] = Plan("ffn", 1, n_features, width, is_transcoder=True)
    sha256, buffer = checkpoint.state_sha256(model.state_dict()), activations.Buffer(model, fitting, scales)
    key = dict(model=sha256, data=fitting.about.fingerprint, seed=fitting.seed, images=len(fitting)) | options
    trained = fitted(
        plans,
        buffer.batches,
        k=k,
        updates=options["updates"],
        seed=fitting.seed,
        device=model.pos_embed.device,
        kept=fitting.unfinished(f"dictionary-{sha256[:8]}"),
        key=key,
        label=fitting.label,
    )
    transcoder = trained.pop("transcoder")
    dictionaries = {tuple(name.split()): dictionary for name, dictionary in trained.items()}
    samples = list(buffer.batches(0, 1))
    for token in TOKENS:
        rotated = dictionaries["shared", token].rotated(fitting.seed)
        dictionaries["rotated", token] = rotated.calibrated([batch[token][0] for batch in samples], k)
    components = {token: principal(moments[token], k) for token in TOKENS}
    return Trained(model, dictionaries, transcoder, scales, components, moments["ffn_out"].mean.float())


def principal(moments: Moments, n: int) -> Tensor:
    """The n directions of largest variance of each state: [state d_model component]."""
    directions = [torch.linalg.eigh(moments.covariance(state)).eigenvectors for state in range(len(moments.count))]
    return torch.stack([of_state[:, -n:] for of_state in directions]).float()
