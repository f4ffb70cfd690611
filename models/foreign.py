"""Weights as people have them, under timm's names.

A file may wrap its state dict (``model``, ``state_dict_ema``, ``teacher``), prefix every name (``module.``,
``_orig_mod.``, ``backbone.``), and name parameters as Hugging Face (ViT, DeiT, DINOv2, DINOv3, CLIP), torchvision,
DINOv2, DINOv3, MAE, OpenAI's CLIP or the original ViT (``.npz``) do. What timm converts, timm's own converters convert.
Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from timm.models import eva, vision_transformer
from torch import Tensor

from models.checkpoint import FORMAT, State, Weights, is_at_hand, load_plain
from models.config import IMAGENET_MEAN, IMAGENET_STD
from models.errors import InputError, brief

# Where a file keeps its state dict, and which of them are averages over training
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher")
PLAIN = ("state_dict", "model_state_dict", "model", "module", "student", "net", "shadow")
IS_AVERAGED = re.compile(r"(^|[._])(ema|teacher|momentum)")  # of a prefix such as teacher.backbone.

# The patch embedding, by which a model is found among all names, and what the names around it are called
PATCHES = {
    "huggingface": r"embeddings\.patch_embeddings?(\.projection)?\.weight",
    "torchvision": r"conv_proj\.weight",
    "openai": r"(?<!embeddings\.)class_embedding",
    "timm": r"patch_embed\.proj\.weight",
}
HEADS = {"classifier": "head", "cls_classifier": "head", "distillation_classifier": "head_dist", "fc": "head"}
HEADS |= {"visual_projection": "head", "head.proj": "head", "head": "head"}
RENAMED = {
    "timm": [(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.")],  # DINOv2's chunks
    "openai": [(r"^", "visual.")],  # as timm's converter knows it
    "torchvision": [
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
        (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
    ],
    "huggingface": [
        (r"^embeddings\.class_embedding$", "cls_token"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.position_embeddings?(\.weight)?$", "pos_embed"),
        (r"^embeddings\.patch_embeddings?(\.projection)?\.", "patch_embed.proj."),
        (r"^embeddings\.", ""),
        (r"^(encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\2."),
        (r"\.(self_attn|attention(\.attention)?)\.([qkv])(_proj|uery|ey|alue)\.", r".attn.\3."),
        (r"\.(attention\.output\.dense|attention\.o_proj|self_attn\.out_proj)\.", ".attn.proj."),
        (r"\.(intermediate\.dense|mlp\.up_proj)\.", ".mlp.fc1."),
        (r"\.(output\.dense|mlp\.down_proj)\.", ".mlp.fc2."),
        (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
        (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"^pre_layrnorm\.", "norm_pre."),
        (r"^(post_)?layernorm\.", "norm."),
    ],
}
INNER = ("vision_config", "pretrained_cfg")  # objects in a config.json
UNUSED = re.compile(r"decoder|pooler\.|embeddings\.position_ids|(heads\.)?pre_logits")
TOKENS = ("cls_token", "dist_token", "pos_embed", "register_tokens", "reg_token")  # [1 token d_model]


@dataclass(frozen=True)
class ForeignWeights:
    """What a file holds: parameters under timm's names, which weights of a training they are, and what else is said of
    them: heads, activation of the MLP (as Hugging Face names it), mean and std of the images.
    """

    state: State
    weights: Weights
    n_heads: int | None = None
    activation: str | None = None
    normalised: dict[str, tuple[float, ...]] | None = None


def read(file: Path, weights: Weights = "ema") -> ForeignWeights:
    """The weights in a file under timm's names; of several, the average over training (``ema``) or the last (``raw``).

    `file`: a state dict in torch's format, .safetensors, the .npz of the original ViT, or a folder that Hugging Face
    saved. Raises `InputError` for anything else.
    """
    said: dict[str, Any] = {}
    if file.is_dir():
        said = said_in(file)
        inside = (file / name for name in ("model.safetensors", "pytorch_model.bin"))
        file = next(filter(Path.exists, inside), file)
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    if file.suffix == ".npz":
        return _original(file)
    content, is_averaged = _unwrapped(_opened(file), weights)
    state = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    naming, prefix = _naming_and_prefix(state, weights, file)
    state = _without_representation(_below(state, prefix), file)
    _refuse_other_numbers(state, file)
    state = _converted(_renamed(state, naming), file)
    if naming == "torchvision":
        said = {"normalised": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}} | said
    return ForeignWeights(state, "ema" if is_averaged or IS_AVERAGED.search(prefix) else "raw", **said)


def said_in(folder: Path) -> dict[str, Any]:
    """What the files beside the weights in a folder that Hugging Face or timm saved say of the model."""
    config, images = (_plain_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    config = config.get("vision_config", config)
    of_timm, of_images = config.get("pretrained_cfg", {}), (images.get("image_mean"), images.get("image_std"))
    if images.get("do_normalize") is False:
        of_images = ([0.0] * 3, [1.0] * 3)
    mean, std = of_images if all(of_images) else (of_timm.get("mean"), of_timm.get("std"))
    said = {"n_heads": config.get("num_attention_heads"), "activation": config.get("hidden_act")}
    return said | ({"normalised": {"mean": tuple(mean), "std": tuple(std)}} if isinstance(mean and std, list) else {})


def _plain_json(file: Path) -> dict[str, Any]:
    """What a JSON file holds, nothing where there is none; `InputError` for one that is no object."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError):
        content = None
    if not isinstance(content, dict) or any(not isinstance(content.get(name, {}), dict) for name in INNER):
        raise InputError(f"{file} does not say what Hugging Face writes there; fetch it anew")
    return content


def _refuse_other_numbers(state: State, file: Path) -> None:
    """Raise `InputError` for weights that are quantised, sparse, complex or left out: they are not the model's own."""
    for name, value in state.items():
        if not (value.is_floating_point() and is_at_hand(value)):
            kind = f"{value.dtype}, {value.layout}, {value.device}".replace("torch.", "")
            raise InputError(f"{file}: its {name} holds no plain fractions ({kind}); export the weights in float32")


def _opened(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        try:
            return load_safetensors(file)
        except SafetensorError as error:
            raise InputError(f"{file} is not readable as safetensors, it may be truncated ({brief(error)})") from None
    with torch.serialization.safe_globals([argparse.Namespace]):  # plain values; beside the weights in many files
        content = load_plain(file)
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a state dict of tensors; export the model's state_dict()")
    if content.get("format") == FORMAT:
        raise InputError(f"{file} is a checkpoint of this toolkit; load it as {file}, without timm:")
    return content


def _unwrapped(content: dict[str, Any], weights: Weights) -> tuple[dict[str, Any], bool]:
    """The state dict inside of whatever it was saved with, and whether it is an average over training."""
    for key in PLAIN + AVERAGED if weights == "raw" else AVERAGED + PLAIN:
        if isinstance(content.get(key), dict):
            inner, is_averaged = _unwrapped(content[key], weights)
            if any(isinstance(value, Tensor) for value in inner.values()):
                return inner, is_averaged or key in AVERAGED
    return content, False


def _naming_and_prefix(state: State, weights: Weights, file: Path) -> tuple[str, str]:
    """Whose names (a key of `PATCHES`) a model's parameters have, and the prefix before them."""
    places = []
    for naming, patches in PATCHES.items():
        pattern = re.compile(rf"((?:.*\.)?){patches}")
        places += [(naming, match[1]) for match in map(pattern.fullmatch, state) if match]
    if not places:
        some = f"its first names are {', '.join(list(state)[:3])}" if state else "it holds no tensors"
        raise InputError(
            f"{file} holds no ViT under a name of timm, Hugging Face, torchvision, DINOv2, CLIP or MAE ({some}); "
            "rename its parameters as timm does"
        )
    wanted = weights != "raw"
    return min(places, key=lambda place: (bool(IS_AVERAGED.search(place[1])) != wanted, len(place[1])))


def _below(state: State, prefix: str) -> State:
    """The parameters under `prefix`, and the head where it lies beside or above them."""
    parts = prefix.split(".")[:-1]
    above = [".".join([*parts[:n], ""]) for n in range(len(parts))]
    head = re.compile(rf"({'|'.join(map(re.escape, HEADS))})\.(weight|bias)")
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    for outer in above:
        for name, value in state.items():
            match = head.fullmatch(name.removeprefix(outer)) if name.startswith(outer) else None
            if match:
                inside.setdefault(f"{HEADS[match[1]]}.{match[2]}", value)
    return inside


def _without_representation(state: State, file: Path) -> State:
    """Without what has no place in a ViT; a head on a layer of its own goes with it."""
    kept = {name: value for name, value in state.items() if not UNUSED.match(name)}
    if any("pre_logits" in name for name in state):
        warnings.warn(
            f"{file}: its head reads a representation layer (pre_logits), which timm's ViT has not; both are left out, "
            "the model returns features",
            stacklevel=4,
        )
        return {name: value for name, value in kept.items() if not re.match(r"(heads\.)?head\.", name)}
    return kept


def _renamed(state: State, naming: str) -> State:
    """The state under timm's names, or those that its converters read; separate q, k, v joined (without a bias: 0)."""
    out: State = {}
    for name, value in state.items():
        for pattern, replacement in RENAMED[naming]:
            name = re.sub(pattern, replacement, name)
        out[name] = value.reshape(1, -1, value.shape[-1]) if name in TOKENS else value
    for name in [name for name in out if re.search(r"\.attn\.[qkv]\.", name)]:
        block, kind = re.match(r"(.*\.attn\.)[qkv]\.(.*)", name).groups()
        parts = [out.get(f"{block}{part}.{kind}", torch.zeros_like(out[name])) for part in "qkv"]
        out.setdefault(f"{block}qkv.{kind}", torch.cat(parts))
    return {name: value for name, value in out.items() if not re.search(r"\.attn\.[qkv]\.", name)}


def _converted(state: State, file: Path) -> State:
    """What timm makes of official names (DINOv2, DINOv3, CLIP); with the file's own sizes, so nothing is resampled."""
    if "pos_embed" not in state and "register_tokens" in state:
        state["storage_tokens"] = state.pop("register_tokens")  # DINOv3
    if "register_tokens" in state:
        state.setdefault("mask_token", state["register_tokens"])  # by which timm knows DINOv2
    patches = next(value for name, value in state.items() if re.search(r"(patch_embed\.proj|conv1)\.weight$", name))
    if patches.ndim != 4:
        raise InputError(f"{file}: its patch embedding {list(patches.shape)} is no convolution; export it as one")
    embedding = SimpleNamespace(proj=SimpleNamespace(weight=patches))
    own = SimpleNamespace(patch_embed=embedding, pos_embed=None, get_parameter=lambda name: None)
    family = eva if "storage_tokens" in state else vision_transformer
    state = family.checkpoint_filter_fn(state, own)
    if "head.weight" in state:
        state.setdefault("head.bias", torch.zeros(len(state["head.weight"])))
    return {name: value for name, value in state.items() if name != "mask_token"}


# The original ViT's files


def _original(file: Path) -> ForeignWeights:
    """A .npz of the original ViT through timm's reader, into a ViT of the file's own size."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            shapes = {name: arrays[name].shape for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} is not readable as arrays of numbers, it may be truncated ({brief(error)})") from None
    tops = [top for top in ("opt/target/", "params/img/", "params/", "") if f"{top}embedding/kernel" in shapes]
    if not tops or f"{tops[0]}cls" not in shapes or any("conv_root" in name for name in shapes):
        raise InputError(f"{file} holds no plain ViT with a class token under the original names; convert it with timm")
    shapes = {name.removeprefix(tops[0]): shape for name, shape in shapes.items()}
    try:
        model = _of_size(shapes)
        model.load_pretrained(str(file))
    except (LookupError, RuntimeError, ValueError) as error:
        raise InputError(f"{file} is no ViT under the original names that timm reads ({brief(error)})") from None
    state = {name: value.detach() for name, value in model.state_dict().items()}
    representation = {name: state["norm.bias"] for name in shapes if name.startswith("pre_logits")}
    state = _without_representation(state | representation, file)
    return ForeignWeights(state, "raw", model.blocks[0].attn.num_heads)


def _of_size(shapes: dict[str, tuple[int, ...]]) -> vision_transformer.VisionTransformer:
    """timm's ViT of the size that the original's arrays have."""
    length = (shapes.get("pos_embedding") or shapes["Transformer/posembed_input/pos_embedding"])[1]
    query = next(shapes[name] for name in shapes if name.endswith("query/kernel"))  # [.. d_model head d_head]
    hidden = next(shapes[name] for name in shapes if name.endswith("Dense_0/kernel"))  # [.. d_model d_mlp]
    layers = {name.split("/")[1] for name in shapes if "/encoderblock_" in name}
    patch = shapes["embedding/kernel"][0]
    return vision_transformer.VisionTransformer(
        img_size=math.isqrt(length) * patch,
        patch_size=patch,
        embed_dim=query[-3],
        depth=len(layers) or query[0],
        num_heads=query[-2],
        mlp_ratio=(hidden[-1] + 0.5) / query[-3],
        num_classes=shapes.get("head/bias", (0,))[-1],
        no_embed_class=math.isqrt(length) ** 2 == length,
        weight_init="skip",
    )


# Which of timm's models is it?

OTHERS = re.compile(r"siglip|_gap_|rope|rel|_r\d|_r_|resnet|_xp_|_pe_|sapiens|radio|rpn|18x2|mci|sam")
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}  # timm's word for a width


def looks_like(state: State, asked: str = "", n_heads: int | None = None) -> str | None:
    """The name of timm's model that has the shapes of `state`, head and position embedding apart; near `asked`, which
    is not the one.
    """
    shapes = _shapes(state)
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    first = {name: shape for name, shape in shapes.items() if not re.match(r"blocks\.[1-9]", name)}
    length, family, fitting = len(state.get("pos_embed", [[]])[0]), asked.partition("_")[0], []
    for name in timm.list_models(["vit_*", "deit*", "eva_*"]):
        is_possible = f"patch{patch}_" in name and SIZES.get(width, "") in name and name != asked.partition(".")[0]
        if OTHERS.search(name) or not is_possible or _shapes(_on_meta(name, depth=1).state_dict()) != first:
            continue
        whole = _on_meta(name)
        if _shapes(whole.state_dict()) == shapes and n_heads in (None, whole.blocks[0].attn.num_heads):
            is_other_size = len(whole.state_dict().get("pos_embed", [[]])[0]) != length
            fitting.append((is_other_size, not name.startswith(f"{family}_"), len(name), name))
    return min(fitting)[-1] if fitting else None


def shape_of(state: State) -> str:
    """What a state dict tells of its model, in words."""
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    registers = f", {len(state['reg_token'][0])} registers" if "reg_token" in state else ""
    return f"it has width {width}, {depth} blocks, patches of {patch} px{registers}"


def _on_meta(name: str, **options: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False, num_classes=0, **options)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {
        name.replace("fc_norm.", "norm."): tuple(value.shape)
        for name, value in state.items()
        if not name.startswith(("head", "pos_embed"))
    }
