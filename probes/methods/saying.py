"""What class every patch says, and whether those that say the image's class are those of the object."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.methods import pointing
from probes.methods.reading import Readout

Values = dict[str, tuple[tuple[str, ...], Tensor]]


def kinds_of(n_prefix: int, has_masks: bool) -> list[str]:
    """The kinds of tokens beside CLS that are told apart."""
    return ["patches", *(["registers"] if n_prefix > 1 else []), *(["object", "background"] if has_masks else [])]


def of_tokens(readout: Readout, state: Tensor, labels: Tensor, table: pointing.Table | None) -> Values:
    """Of a state [batch pos d_model]: the share of each kind of tokens that say the class, and with masks how those
    agree with the object: [... batch].

    A patch is of the object where its centre pixel is, as in the pointing game; where that is ignored, of neither. The
    agreement is the area under the ROC curve of the class's probability over the patches; a hit, that the patch surest
    of the class is of the object.
    """
    n_prefix = readout.model.config.n_prefix
    logits = readout.of_tokens(state[:, 1:])
    says = (logits.argmax(-1) == labels[:, None]).double()
    patches = says[:, n_prefix - 1 :]
    kinds = [patches.mean(1), *([says[:, : n_prefix - 1].mean(1)] if n_prefix > 1 else [])]
    if table is None:
        return {"patch_share": (("where",), torch.stack(kinds))}
    hit = table.hit[0, 0]
    for value in (1, 0):
        of_kind = (hit == value).double()
        kinds.append((patches * of_kind).sum(1) / of_kind.sum(1))  # NaN where there is none
    sure = logits[:, n_prefix - 1 :].log_softmax(-1)
    sure = sure.gather(-1, labels[:, None, None].expand(*sure.shape[:2], 1))[..., 0]
    return {
        "patch_share": (("where",), torch.stack(kinds)),
        "patch_agreement": ((), roc_area(sure, hit)),
        "patch_hit": ((), pointing.hits(sure[:, None, None], table)[0, 0, :, 0, 0]),
    }


def baselines(table: pointing.Table) -> Values:
    """What being near the middle, and a patch drawn at random, would reach: [batch]."""
    hit = table.hit[0, 0]
    side = round(hit.shape[1] ** 0.5)
    place = torch.arange(side, device=hit.device) - (side - 1) / 2
    nearness = -(place[:, None].square() + place.square()).flatten()
    return {
        "centre_agreement": ((), roc_area(nearness.expand_as(hit), hit)),
        "random_hit": ((), table.baseline[1, 0, 0]),
    }


def roc_area(score: Tensor, hit: Tensor) -> Tensor:
    """Chance that a patch of the object scores higher than another one (ties half): [batch]; NaN where one is missing.

    score, hit: [batch patch], hit NaN where a patch counts for nothing. By ranks (Mann and Whitney).
    """
    ranked = score.masked_fill(hit.isnan(), torch.inf).contiguous()  # above all others, whose ranks they leave alone
    rising = ranked.sort(-1).values
    below, up_to = (torch.searchsorted(rising, ranked, right=right) for right in (False, True))
    is_object = (hit == 1).double()
    n, m = is_object.sum(-1), (hit == 0).double().sum(-1)
    wins = ((below + up_to + 1) / 2 * is_object).sum(-1) - n * (n + 1) / 2
    return wins / (n * m)
