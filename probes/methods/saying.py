"""The class read out at every patch, and whether the patches that predict the image's class lie on the object."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.methods import pointing
from probes.methods.reading import Readout

Values = dict[str, tuple[tuple[str, ...], Tensor]]


def kinds_of(n_prefix: int, has_masks: bool) -> list[str]:
    """The kinds of tokens besides CLS that are measured separately."""
    registers = ["registers"] if n_prefix > 1 else []
    regions = ["object", "background"] if has_masks else []
    return ["patches", *registers, *regions]


def of_tokens(readout: Readout, state: Tensor, labels: Tensor, table: pointing.Table | None) -> Values:
    """Measures of the per-token read-out of a state [batch pos d_model], each [... batch].

    patch_share: the share of each kind of token that predicts the class. With masks also patch_agreement: the area
    under the ROC curve of the class's probability as a detector of object patches; and patch_hit: whether the patch
    with the highest probability of the class lies on the object. A patch lies on the object if its centre pixel does,
    as in the pointing game; patches with an ignored centre count neither as object nor as background.
    """
    n_prefix = readout.model.config.n_prefix
    logits = readout.of_tokens(state[:, 1:])
    is_correct = (logits.argmax(-1) == labels[:, None]).double()
    patches = is_correct[:, n_prefix - 1 :]
    shares = [patches.mean(1)]
    if n_prefix > 1:
        shares.append(is_correct[:, : n_prefix - 1].mean(1))
    if table is None:
        return {"patch_share": (("where",), torch.stack(shares))}
    hit = table.hit[0, 0]
    for value in (1, 0):  # object, background
        in_region = (hit == value).double()
        shares.append((patches * in_region).sum(1) / in_region.sum(1))  # NaN if the region is empty
    log_probability = logits[:, n_prefix - 1 :].log_softmax(-1)
    of_class = labels[:, None, None].expand(*log_probability.shape[:2], 1)
    log_probability = log_probability.gather(-1, of_class)[..., 0]
    return {
        "patch_share": (("where",), torch.stack(shares)),
        "patch_agreement": ((), roc_area(log_probability, hit)),
        "patch_hit": ((), pointing.hits(log_probability[:, None, None], table)[0, 0, :, 0, 0]),
    }


def baselines(table: pointing.Table) -> Values:
    """Baselines [batch]: the agreement of closeness to the centre, and the hit rate of a random patch."""
    hit = table.hit[0, 0]
    side = round(hit.shape[1] ** 0.5)
    offset = torch.arange(side, device=hit.device) - (side - 1) / 2
    closeness = -(offset[:, None].square() + offset.square()).flatten()
    return {
        "centre_agreement": ((), roc_area(closeness.expand_as(hit), hit)),
        "random_hit": ((), table.baseline[1, 0, 0]),
    }


def roc_area(score: Tensor, hit: Tensor) -> Tensor:
    """Area under the ROC curve: the probability that an object patch scores higher than another one (ties half).

    score, hit: [batch patch], hit NaN where a patch is ignored. Returns [batch], NaN if either kind is missing. It is
    computed from ranks (Mann and Whitney).
    """
    score = score.masked_fill(hit.isnan(), torch.inf).contiguous()  # ignored patches rank last and change no other rank
    ascending = score.sort(-1).values
    n_below = torch.searchsorted(ascending, score, right=False)
    n_up_to = torch.searchsorted(ascending, score, right=True)
    mean_rank = (n_below + n_up_to + 1) / 2
    is_object = (hit == 1).double()
    n_object, n_other = is_object.sum(-1), (hit == 0).double().sum(-1)
    wins = (mean_rank * is_object).sum(-1) - n_object * (n_object + 1) / 2
    return wins / (n_object * n_other)
