"""A model as a repository of the Hugging Face hub, through huggingface_hub's own mixin.

``model.save_pretrained(FOLDER)``, ``BViT.from_pretrained(FOLDER or REPO)`` and ``model.push_to_hub(REPO)`` write and
read ``model.safetensors``, ``config.json`` and a card; ``models.load("hf:REPO")`` reads them too. Nothing that is read
is executed. ``python -m models.share`` lays a run's checkpoint and results beside.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download

from models import masks, run_folder
from models.config import ViTConfig, is_text
from models.errors import InputError, brief
from models.origin import Origin, State, relative, state_sha256

WEIGHTS, CONFIG, OURS = "model.safetensors", "config.json", "bvit_toolkit"
MASKS = "step_masks"  # among the tensors: a pruned model's, packed
PAPER = "https://arxiv.org/abs/2605.10661"


class Shareable(ModelHubMixin, library_name="bvit-toolkit", paper_url=PAPER):
    """Saving to and loading from the hub's layout, mixed into `BViT`."""

    config: ViTConfig
    trained: ViTConfig
    origin: Origin

    @classmethod
    def filled(cls, config: ViTConfig, state: State, path: Path) -> Self:
        """A model with the given weights in float32, made without drawing any of its own; their shapes are compared
        before any is read.
        """
        with torch.device("meta"):
            model = cls(config)  # type: ignore[call-arg]
        ours = model.state_dict()  # type: ignore[attr-defined]
        expected, stored = ({name: tuple(value.shape) for name, value in tensors.items()} for tensors in (ours, state))
        for name in sorted(expected.keys() | stored.keys()):
            if expected.get(name) != stored.get(name):
                here, wanted = (shapes.get(name, "none") for shapes in (stored, expected))
                raise InputError(
                    f"{path}: the weights do not fit the config stored beside them ({name} is {here}, it should be "
                    f"{wanted})"
                )
        for name, value in state.items():
            if not value.is_floating_point():
                raise InputError(f"{path}: its {name} is {str(value.dtype).removeprefix('torch.')}, no fractions")
        weights = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
        model.load_state_dict(weights, assign=True)  # type: ignore[attr-defined]
        return model

    # Out

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        if any(".lora_" in name for name in state):
            raise InputError("a model with adapters is not shared as one; save them with models.adapters.save")
        own_masks, tensors = masks.taken_from(self), dict(state)
        if own_masks is not None:
            tensors[MASKS] = masks.packed(own_masks)
        about = {
            "weights": self.origin.weights,
            "state_sha256": state_sha256(tensors),
            "data": None if self.origin.data is None else relative(self.origin.data),
            "metrics": self.origin.metrics,
            "provenance": self.origin.provenance,
        }
        try:
            config = json.dumps(self.trained.to_dict() | {OURS: about}, indent=1)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.origin.source}: its metrics or provenance are no plain values ({brief(error)}); set "
                "model.origin without them"
            ) from None
        with run_folder.atomic(save_directory / WEIGHTS) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        with run_folder.atomic(save_directory / CONFIG) as temporary:
            temporary.write_text(config, encoding="utf-8")

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What the model is, its data and their licence, its accuracy and the command that made it, from its origin."""
        data = ModelCardData(library_name="bvit-toolkit", pipeline_tag="image-classification", tags=["bvit", "vision"])
        text = card(self.trained, self.origin, sum(value.numel() for value in self.parameters()))
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")

    # In

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **where: Any) -> Self:
        """The model in a folder or a repository, in eval mode; `where` is what `huggingface_hub` takes: revision,
        cache_dir, force_download, local_files_only, token.

        The mixin's own reads config.json before anybody can refuse it. Raises `InputError`.
        """
        model_id = str(pretrained_model_name_or_path)
        weights, about = (fetched(model_id, name, where) for name in (WEIGHTS, CONFIG))
        config, metadata = read_config(about)
        try:
            state = safetensors.torch.load_file(weights)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{weights} is not readable as safetensors ({brief(error)}); fetch it anew") from None
        if metadata.get("state_sha256", state_sha256(state)) != state_sha256(state):
            raise InputError(f"{weights} is damaged: its weights are not those that were saved; fetch it anew")
        packed = state.pop(MASKS, None)
        model = cls.filled(config, state, weights)
        if packed is not None:
            masks.put_on(model, masks.unpacked(packed, config, path=weights))
        folder = Path(model_id)
        model.origin = Origin(
            str(folder / WEIGHTS) if folder.is_dir() else f"hf:{model_id}",
            metadata.get("weights", "raw"),
            state_sha256(model.state_dict()),
            run=folder if folder.is_dir() else Path("runs") / model_id.replace("/", "--"),
            data=metadata.get("data"),
            metrics=metadata.get("metrics", {}),
            provenance=metadata.get("provenance", {}),
        )
        return model.eval()


def fetched(repo: str, name: str, where: dict[str, Any]) -> Path:
    """A file of a repository, or of a folder that looks like one."""
    if Path(repo).is_dir():
        if not (Path(repo) / name).is_file():
            raise InputError(f"{Path(repo)} holds no {name}; write it with model.save_pretrained")
        return Path(repo) / name
    try:
        options = {key: value for key, value in where.items() if key in OPTIONS}
        return Path(hf_hub_download(repo, name, **options))
    except Exception as error:  # the hub's errors have no common class
        raise InputError(
            f"hf:{repo}: its {name} cannot be fetched ({type(error).__name__}); download it and name the file"
        ) from None


OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def read_config(path: Path) -> tuple[ViTConfig, dict[str, Any]]:
    """The config in a config.json, and what else it says; `InputError` for one that is none of ours."""
    kinds = {"weights": str, "state_sha256": str, "data": str | None, "metrics": dict, "provenance": dict}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        metadata = content.pop(OURS)
        sound = all(isinstance(metadata[name], kind) for name, kind in kinds.items() if name in metadata)
        sound &= all(is_text(value) for value in metadata.values() if isinstance(value, str))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{path} is no config of this toolkit; write it with model.save_pretrained")
    return ViTConfig.from_dict(content), metadata


# The card

LICENCES = {  # of data, by how their spec starts
    "shapes": "rendered from a seed by this toolkit, MIT",
    "imagenet-s": "ImageNet's terms of access: research and education, not commercial",
    "voc": "those of the photographs on Flickr that Pascal VOC is made of",
}
UNKNOWN = "not known to the toolkit; say it here before you publish"
CARD = """# {name}

A Vision Transformer that runs in steps ([bViT]({paper})): **{blocks} block(s) applied {steps} times**, width {width},
{heads} heads, {size} px in patches of {patch} px, {classes} classes, {parameters:,} parameters.

| | |
|---|---|
| trained on | `{data}` |
| licence of the data | {licence} |
| accuracy | {metrics} |
| weights | {weights} |
| made with | `{command}` |
| versions | {versions} |

```python
from models import load  # pip install bvit-toolkit

model = load("hf:REPOSITORY")
logits, cache = model.run_with_cache(images)  # every head at every step
```

`python -m models.verify hf:REPOSITORY` holds it against plain arithmetic. Whether its heads look at the object, how far
it can be run and what its steps share are measurements with chance levels: `python -m probes.pointing_game
hf:REPOSITORY`, and the results beside this card where there are any.
"""


def card(config: ViTConfig, origin: Origin, n_parameters: int) -> str:
    """The text of a model's card."""
    spec, provenance = origin.data or "", origin.provenance
    licence_of_data = next((licence for start, licence in LICENCES.items() if spec.startswith(start)), UNKNOWN)
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in origin.metrics.items() if is_number(value))
    versions = provenance.get("versions") if isinstance(provenance.get("versions"), dict) else {}
    return CARD.format(
        name=f"{'bViT' if config.n_blocks == 1 else 'ViT in steps'}, {config.n_steps} steps, width {config.d_model}",
        paper=PAPER,
        steps=config.n_steps,
        blocks=config.n_blocks,
        width=config.d_model,
        heads=config.n_heads,
        size=config.image_size,
        patch=config.patch_size,
        classes=config.n_classes,
        parameters=n_parameters,
        data=in_code(relative(spec) or "not said"),
        licence=licence_of_data,
        metrics=metrics or "not said",
        weights=origin.weights,
        command=in_code(str(provenance.get("command", "not said"))),
        versions=", ".join(f"{in_code(str(name))} {in_code(str(value))}" for name, value in versions.items()) or "-",
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_code(text: str) -> str:
    """A text that cannot end the cell or the code that it stands in."""
    return " ".join(text.split()).replace("`", "'").replace("|", "/")
