"""What the answers become when states are read through dictionaries, lose a feature, or the FFN is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.data.stream import Batch
from models.hooks import replace
from models.loop import generator
from models.vit import BViT
from probes.methods import means, parts
from probes.methods.activations import TOKENS, Scale, ffn_input, tokens
from probes.methods.coding import Coded, Trained
from probes.methods.dictionaries import Dictionary
from probes.methods.reading import states_from
from probes.walk import Pass, Reading

AT_ONCE = 4  # features switched off in one batch
N_SWITCHED, N_RANKED, N_MEAN = 200, 64, 500  # images that features are switched off on, ranked on; behind means
KINDS = ("switched off", "another feature", "random direction")
Change = Callable[[Tensor, int], Tensor]


def run(model: BViT, z: Tensor, change: Change) -> Tensor:
    """Logits [batch class] when every state, z_0 [batch pos d_model] and the last one too, is changed on the way."""
    for state in range(model.config.n_steps + 1):
        z = change(z, state)
        if state < model.config.n_steps:
            z = model.run_steps(z, state, state + 1)
    return model.read_out(z)


def without(coded: Coded, token: str, features: Tensor, seed: int) -> Change:
    """For a batch of [kind feature image]: wherever a feature fires, its part of the state is taken out; or as much
    along another feature's direction, or a random one.
    """
    dictionary, n = coded.dictionaries[token], len(features)
    draw = generator(seed, n)
    other = torch.randint(1, max(2, dictionary.n_features), (n,), generator=draw).to(features)
    random = torch.nn.functional.normalize(torch.randn(n, dictionary.decoder.shape[-1], generator=draw), dim=-1)
    own, others = (dictionary.decoder[0][i % dictionary.n_features] for i in (features, features + other))
    direction = torch.stack([own, others, random.to(own)])[:, :, None, None]
    encoder, bias = dictionary.encoder[0][:, features], dictionary.bias[0][features]
    place, scale = tokens(coded.model)[token], coded.scales[token]

    def change(z: Tensor, state: int) -> Tensor:
        z = z.unflatten(0, (len(KINDS), n, -1)).clone()
        rising = torch.einsum("knbpd,dn->knbp", coded.rows(z, token, state), encoder) + bias[:, None, None]
        fired = rising * (rising > dictionary.threshold)
        z[..., place, :] -= scale.size[state] * fired[..., None] * direction
        return z.flatten(0, 2)

    return change


def importance(coded: Coded, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """How much the class's logit above the others would change without each feature, to first order, summed over
    images: [feature] by kind of token. Only good for choosing: a state holds what the one before it held.
    """
    with torch.enable_grad():
        start = coded.model.embed(images.to(coded.model.pos_embed.device)).detach().requires_grad_()
        states = list(states_from(coded.model, start))
        gradients = torch.autograd.grad(margins(coded.model.read_out(states[-1]), labels).sum(), states)
    total: dict[str, Any] = dict.fromkeys(coded.dictionaries, 0)
    with torch.no_grad():
        for token, dictionary in coded.dictionaries.items():
            for state, (z, gradient) in enumerate(zip(states, gradients, strict=True)):
                codes = dictionary.codes(coded.rows(z, token, state), state)
                slope = gradient[:, tokens(coded.model)[token]] @ dictionary.decoder[0].T
                total[token] = total[token] + (coded.scales[token].size[state] * codes * slope).sum(1)
    return {token: of.abs().double().sum(0) for token, of in total.items()}


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit of the class less the mean of the others, [... image], from [... image class]."""
    of_class = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])[..., 0]
    return of_class - (logits.sum(-1) - of_class) / (logits.shape[-1] - 1)


def ffn_by(model: BViT, transcoder: Dictionary, scales: Mapping[str, Scale]) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that put the transcoder in the place of the FFN at every step."""
    inputs: dict[int, Tensor] = {}  # of the FFN, by step

    def keep(x: Tensor, hook: Any) -> None:
        inputs[hook.layer()] = ffn_input(model, hook.layer(), x)

    def put(x: Tensor, hook: Any) -> Tensor:
        step = hook.layer()
        rows = scales["ffn_in"].inward(inputs.pop(step), step)
        return scales["ffn_out"].outward(through(transcoder, rows, step), step)

    return [("blocks.*.hook_resid_mid", keep), ("blocks.*.hook_mlp_out", put)]


def through(dictionary: Dictionary, rows: Tensor, place: int) -> Tensor:
    """What a dictionary makes of rows [... width]."""
    return dictionary.decoded(dictionary.codes(rows, place), place)


# Over a pass of images


def switched(trained: Trained, fitting: Pass, images: Pass, class_of_label: Tensor, n: int) -> dict[str, Any]:
    """What is lost without the features that matter most to first order, beside as large a change elsewhere."""
    coded = trained.coded["dictionary"]

    def rank(batch: Batch) -> Reading:
        labels = class_of_label[batch.labels].to(trained.scales["cls"].mean.device)
        by_token = importance(coded, batch.images, labels)
        return {"importance": (("token", "feature"), torch.stack(list(by_token.values())))}

    ranked = fitting.sample(N_RANKED).over(rank)["importance"].values / min(N_RANKED, len(fitting))
    tested = torch.from_numpy(np.argsort(-ranked, 1, kind="stable")[:, :n].copy())

    def read(batch: Batch) -> Reading:
        labels = class_of_label[batch.labels].to(trained.scales["cls"].mean.device)
        changes = []
        with torch.inference_mode():
            z = trained.model.embed(batch.images.to(labels.device))
            before = scores(trained.model.read_out(trained.model.run_steps(z, 0, trained.model.config.n_steps)), labels)
            for token, of_token in zip(TOKENS, tested.to(labels.device), strict=True):
                after = []
                for first in range(0, n, AT_ONCE):
                    features = of_token[first : first + AT_ONCE]
                    change = without(coded, token, features, images.seed + first)
                    copies = z.expand(len(KINDS), len(features), *z.shape).flatten(0, 2)
                    logits = run(trained.model, copies, change)
                    after.append(scores(logits.unflatten(0, (len(KINDS), len(features), -1)), labels))
                changes.append(torch.cat(after, 2) - before[:, None, None])
        effect, effect_accuracy = torch.stack(changes, 2)  # [how token rank image] each
        dims = ("how", "token", "rank")
        values = {"effect": (dims, effect), "effect_accuracy": (dims, effect_accuracy)}
        return means.sums(values, images.photographs(batch.index), images.seed)

    variables: dict[str, Any] = {"importance": (("token", "feature"), ranked.astype(np.float32))}
    if n:
        measured = images.sample(N_SWITCHED).over(read)
        drawn = means.drawn(measured)
        variables |= means.with_interval("effect", drawn["effect"])
        n_images = len(measured["position"])
        variables |= means.with_interval("effect_accuracy", drawn["effect_accuracy"], n_images, least=-1)
        variables |= {"tested": (("token", "rank"), tested.numpy()), "how": list(KINDS)}
    return variables


def scores(logits: Tensor, labels: Tensor) -> Tensor:
    """The class's logit above the others, and whether the answer is right: [metric ... image]."""
    return torch.stack([margins(logits, labels), (logits.argmax(-1) == labels).float()])


def replaced(trained: Trained, fitting: Pass, images: Pass, class_of_label: Tensor) -> dict[str, Any]:
    """Answers that stay right, and the same, when all states or the FFN of all steps are replaced."""
    model, mean = trained.model, parts.substitute(trained.model, fitting.sample(N_MEAN), "mean")
    put_mean = [
        (f"blocks.{t}.hook_mlp_out", replace(mean.values["hook_mlp_out"][t, 0])) for t in range(model.config.n_steps)
    ]
    ways = {
        "nothing": (lambda z, state: z, []),
        "states, dictionary": (trained.coded["dictionary"].replaced, []),
        "states, rotated": (trained.coded["rotated"].replaced, []),
        "FFN, transcoder": (lambda z, state: z, ffn_by(model, trained.transcoder, trained.scales)),
        "FFN, mean": (lambda z, state: z, put_mean),
    }

    def read(batch: Batch) -> Reading:
        labels, answers = class_of_label[batch.labels].to(mean.values["hook_mlp_out"].device), []
        with torch.inference_mode():
            for change, of_ffn in ways.values():
                with model.hooks(of_ffn):
                    z = model.embed(batch.images.to(labels.device))
                    answers.append(run(model, z, change).argmax(-1))
        by_way = torch.stack(answers)
        values = {"accuracy": (("replaced",), by_way == labels), "agreement": (("replaced",), by_way == by_way[0])}
        return means.sums(values, images.photographs(batch.index), images.seed)

    variables: dict[str, Any] = {"replaced": list(ways)}
    measured = images.over(read)
    for name, of in means.drawn(measured).items():
        variables |= means.with_interval(name, of, len(measured["position"]))
    return variables
