"""A model whose states are encoded by sparse dictionaries: which dictionaries there are, and their joint training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models import checkpoint
from models.config import ViTConfig
from models.vit import BViT
from probes.methods import activations
from probes.methods.activations import TOKENS, Scale, tokens
from probes.methods.dictionaries import Dictionary, Plan, fitted
from probes.methods.moments import Moments
from probes.walk import Pass


@dataclass(frozen=True)
class Coded:
    """A model whose states are encoded by one dictionary for each kind of token."""

    model: BViT
    dictionaries: Mapping[str, Dictionary]
    scales: Mapping[str, Scale]

    def rows(self, z: Tensor, token: str, state: int) -> Tensor:
        """Rows of one kind of token, scaled as its dictionary expects them: [... row d_model]."""
        return self.scales[token].inward(z[..., tokens(self.model)[token], :], state)

    def replaced(self, z: Tensor, state: int) -> Tensor:
        """A state with every row replaced by its dictionary's reconstruction; registers stay unchanged."""
        z = z.clone()
        for token, dictionary in self.dictionaries.items():
            rows = dictionary.decoded(dictionary.codes(self.rows(z, token, state), state), state)
            z[..., tokens(self.model)[token], :] = self.scales[token].outward(rows, state)
        return z


@dataclass(frozen=True)
class Trained:
    """Dictionaries by (kind, token), the transcoder, and the scales of rows."""

    model: BViT
    dictionaries: dict[tuple[str, str], Dictionary]
    transcoder: Dictionary
    scales: dict[str, Scale]
    principal: dict[str, Tensor]  # principal directions [state d_model component] by token
    ffn_mean: Tensor  # mean output of the FFN at each step: [step d_model]

    @property
    def coded(self) -> dict[str, Coded]:
        """The model with the dictionary that all states share, and with the same dictionary rotated (the null)."""
        kinds = {"dictionary": "shared", "rotated": "rotated"}
        return {
            name: Coded(self.model, {token: self.dictionaries[kind, token] for token in TOKENS}, self.scales)
            for name, kind in kinds.items()
        }


def train(model: BViT, fitting: Pass, options: dict[str, Any]) -> Trained:
    """Trains all dictionaries on one stream of activations; every process gets the same ones.

    `options`: expansion, k, updates, and separate (whether each state also gets dictionaries of its own).
    """
    moments = activations.moments_of(model, fitting)
    scales = {site: Scale.of(moment, common=site.startswith("ffn")) for site, moment in moments.items()}
    buffer = activations.Buffer(model, fitting, scales)
    sha256 = checkpoint.state_sha256(model.state_dict())
    key = dict(model=sha256, data=fitting.about.fingerprint, seed=fitting.seed, images=len(fitting)) | options
    k = options["k"]
    trained = fitted(
        plans_of(model.config, options["expansion"], options["separate"]),
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


def plans_of(config: ViTConfig, expansion: int, has_separate: bool) -> dict[str, Plan]:
    """The dictionaries to train, by name.

    Each token has a dictionary that all states share; with `has_separate` also one per state, of the same number of
    features in total ("separate") or in each state ("larger").
    """
    n_states, width = config.n_steps + 1, config.d_model
    n_features = expansion * width
    plans = {}
    for token in TOKENS:
        plans[f"shared {token}"] = Plan(token, 1, n_features, width)
        if has_separate:
            plans[f"separate {token}"] = Plan(token, n_states, n_features // n_states, width)
            plans[f"larger {token}"] = Plan(token, n_states, n_features, width)
    plans["transcoder"] = Plan("ffn", 1, n_features, width, is_transcoder=True)
    return plans


def principal(moments: Moments, n: int) -> Tensor:
    """The n directions of largest variance of each state: [state d_model component]."""
    eigenvectors = [torch.linalg.eigh(moments.covariance(state)).eigenvectors for state in range(len(moments.count))]
    return torch.stack([directions[:, -n:] for directions in eigenvectors]).float()
