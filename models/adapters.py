"""Low-rank adapters of a block that serves many steps, in peft's format: one for all its steps, or one for each.

LoRA (Hu et al., 2021, arXiv 2106.09685): a matrix W becomes W + (alpha / rank) B A, of which only A [rank in] and
B [out rank] are trained; B starts at zero, so a fresh adapter changes nothing. Here step t runs with the sum, as its
adapter's name says (`models.hooks.Part`): hooks, caches, W_O and a pruned model's masks all see the adapted weights.
peft makes, names, saves and loads the factors; its layers are left without an active adapter, since a block would run
with the same one at every step.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from etils import epy
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from models import checkpoint, masks, run_folder
from models.errors import InputError, brief, require
from models.hooks import MATRICES
from models.loop import hash_of
from models.vit import BViT

with epy.lazy_imports():  # it takes seconds
    import peft

HEAD, CONFIG, WEIGHTS = "head.safetensors", "adapter_config.json", "adapter_model.safetensors"


def add(model: BViT, rank: int, *, per_step: bool = False, seed: int = 0) -> peft.PeftModel:
    """Put fresh adapters on the four matrices of every block (in place); all else but the head is frozen.

    One adapter, ``default``, whose T uses share its factors; or with `per_step` T of them, ``step0``, ``step1``, ...,
    each on the block of its step. In a stacked ViT both are one adapter a block. Alpha is `rank`, so that the sum is
    W + B A. The adapted model is the same `model`, which peft's wrapper holds for saving.
    """
    refuse_rank(model, rank)
    blocks = {f"step{t}": str(model.trained.block_of(t)) for t in range(model.trained.n_steps)}
    matrices = "|".join(rf"{part}\.{name}" for part, name in MATRICES)
    place, adapted = model.pos_embed.device, None
    with torch.random.fork_rng(devices=[]):
        for i, (name, block) in enumerate(blocks.items() if per_step else [("default", r"\d+")]):
            torch.manual_seed(hash_of(seed, i))
            config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=rf"core\.{block}\.({matrices})")
            if adapted is None:
                adapted = peft.PeftModel(model.cpu(), config, adapter_name=name)
            else:
                adapted.add_adapter(name, config)
    model.to(place)
    use(model, list(blocks) if per_step else ["default"] * len(blocks))
    return adapted


def use(model: BViT, names: Sequence[str]) -> None:
    """Let every step run with the adapter of that name [step]; adapters and head are what is trained."""
    for step, name in zip(model.blocks, names, strict=True):
        step.attn.adapter = step.mlp.adapter = name
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_adapter([])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith("head."))


def save(adapted: peft.PeftModel, folder: Path) -> None:
    """Write adapters and head: peft's own files, a folder per step for per-step adapters, and ``head.safetensors``."""
    model = adapted.get_base_model()
    classes = model.trained.classes or list(map(str, range(model.trained.n_classes)))
    about = {"classes": json.dumps(classes), "base_sha256": base_sha256(model)}
    head = {name: value.detach().cpu().contiguous() for name, value in model.head.state_dict().items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as made:
        adapted.save_pretrained(made)
        save_file(head, Path(made, HEAD), metadata=about)
        for path in Path(made).rglob("*.*"):
            if path.suffix != ".md":  # peft's README is an empty form
                with run_folder.atomic(folder / path.relative_to(made)) as temporary:
                    shutil.move(path, temporary)


def load(model: BViT, folder: str | Path) -> BViT:
    """A copy of `model` with the adapters and the head that `save` wrote; `model` stays as it is.

    Runs, is hooked and is trained on like any other. Nothing is unpickled or fetched. Raises `InputError` for a folder
    that holds no such adapters, for those of another model, and for kinds of adapter that are no sum W + B A.
    """
    folder = Path(folder)
    per_step = {path.parent.name: path.parent for path in folder.glob(f"step*/{CONFIG}")}
    steps = model.trained.n_steps
    wanted = [f"step{t}" for t in range(steps)] if per_step else ["default"]
    require(
        (bool(per_step) or (folder / CONFIG).exists(), f"{folder} holds no {CONFIG}; name a folder of adapters"),
        (not per_step or set(per_step) == set(wanted), f"{folder} has {len(per_step)} steps, the model {steps}"),
    )
    classes, base, head = _head(folder / HEAD)
    other = with_head(model, classes)
    if base != base_sha256(model):
        raise InputError(f"{folder}: its adapters belong to another model; name the one that they were trained on")
    try:
        other.head.load_state_dict(head)
        adapted = None
        for name in wanted:
            adapted = _with_one(other, adapted, per_step.get(name, folder), name)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise InputError(f"{folder}: its adapters cannot be read ({brief(error, -1)}); save them anew") from None
    use(other, wanted if per_step else wanted * steps)
    return other.eval()


def _with_one(model: BViT, adapted: peft.PeftModel | None, folder: Path, name: str) -> peft.PeftModel:
    """The adapter in one folder, put on beside the others."""
    config, weights = peft.LoraConfig.from_pretrained(str(folder)), load_file(folder / WEIGHTS)
    plain = (config.peft_type, config.bias, config.use_dora, config.lora_bias) == ("LORA", "none", False, False)
    require((plain, f"{folder}: only plain LoRA is read, without biases and DoRA; train such an adapter"))
    if adapted is None:
        adapted = peft.PeftModel(model, config, adapter_name=name)
    else:
        adapted.add_adapter(name, config)
    loaded = peft.set_peft_model_state_dict(adapted, weights, adapter_name=name)
    lacking = [key for key in loaded.missing_keys if f".{name}." in key]
    require((not lacking and not loaded.unexpected_keys, f"{folder}: weights of other matrices than its config's"))
    return adapted


def _head(path: Path) -> tuple[list[str], str, checkpoint.State]:
    """A saved head: its classes, the hash of the model that it belongs to, and its weights."""
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata()
        return json.loads(about["classes"]), about["base_sha256"], load_file(path)
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is not the head that belongs to adapters ({brief(error)}); save them anew") from None


def base_sha256(model: BViT) -> str:
    """Hash of the weights that adapters are put on: all but the head, and the positions, which go by the image size."""
    kept = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items()}
    left_out = ("head.", "pos_embed")
    return checkpoint.state_sha256({n: v for n, v in kept.items() if not n.startswith(left_out) and ".lora_" not in n})


def with_head(model: BViT, classes: Sequence[str], seed: int = 0) -> BViT:
    """A copy of a model with a fresh head for other classes, drawn from `seed`, and without drop path."""
    refuse_without_cls(model)
    config = replace(model.trained, n_classes=len(classes), classes=tuple(classes), drop_path=0.0)
    state = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("head.")}
    drawn = checkpoint.fresh(config, seed).head.state_dict()
    state |= {f"head.{name}": value.to(model.pos_embed) for name, value in drawn.items()}
    other = masks.handed_on(model, checkpoint.filled(config, state, Path(model.origin.source)))
    other.origin = model.origin
    return other.train(model.training)


def refuse_without_cls(model: BViT) -> None:
    """Raise `InputError` for a model that does not answer from its CLS token."""
    pool = model.trained.pool
    read = {"mean": "the mean of its patches", "distilled": "two tokens"}
    require((pool == "cls", f"the model answers from {read.get(pool)}, not from CLS; name one with pool = cls"))


def refuse_rank(model: BViT, rank: int) -> None:
    """Raise `InputError` for a rank that no matrix of the block has."""
    d = model.trained.d_model
    require((1 <= rank <= d, f"--rank is {rank}, it must lie between 1 and the model's width, {d}"))


def n_parameters(model: BViT, n_classes: int) -> int:
    """Parameters of the model without adapters, with a head for `n_classes` classes."""
    return checkpoint.n_parameters(replace(model.trained, n_classes=n_classes, classes=None))
