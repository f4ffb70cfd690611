"""The shape of a model: one frozen dataclass for bViT, the stacked ViT, and everything between.

``n_blocks`` = 1 is bViT, ``n_blocks`` = ``n_steps`` the stacked ViT; step t uses block
``t * n_blocks // n_steps``. Parameter counts are those of the paper's table (224 px, patch 16,
1000 classes): bViT-Ti/S/B/L 0.824 / 2.532 / 8.601 / 14.613 M.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from beartype.door import is_bearable

from models.errors import InputError, quoted, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(d_model=192, n_heads=3, n_steps=12),
    "small": dict(d_model=384, n_heads=6, n_steps=12),
    "base": dict(d_model=768, n_heads=12, n_steps=12),
    "large": dict(d_model=1024, n_heads=16, n_steps=24),
    # small images: the embedded data and photographs of 96 px
    "shapes": dict(
        d_model=96, n_heads=3, n_steps=12, image_size=64, patch_size=8, init="xavier", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    "easy": dict(
        d_model=64, n_heads=4, n_steps=12, image_size=32, patch_size=8, init="xavier", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
    "photos": dict(d_model=192, n_heads=6, n_steps=12, image_size=96, patch_size=8, init="xavier"),
}


# What a field may hold: far more than anybody trains, and less than what stops a machine
LIMITS = {
    "n_steps": (1, 1024),
    "n_blocks": (1, 1024),
    "d_model": (1, 65_536),
    "n_heads": (1, 4096),
    "d_mlp": (1, 1_048_576),
    "image_size": (1, 8192),
    "patch_size": (1, 8192),
    "n_classes": (0, 1_000_000),
    "n_registers": (0, 4096),
}
MEANING = dict.fromkeys(("norm_eps", "layer_scale", "drop_path"), "a number")
MEANING |= {"classes": "a list of names", "mean": "three numbers", "std": "three numbers"}
MEANING |= dict.fromkeys(("pre_norm", "qk_norm"), "true or false")

# Fields that came later: a stored config that does not use them leaves them out, so that older code reads it
LATER = ("position", "activation", "pre_norm", "qk_norm")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_text(value: str) -> bool:
    """Whether a text can be printed and written: no half of a pair of surrogates, no end of a C string."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)


@dataclass(frozen=True)
class ViTConfig:
    """Everything that decides a model's parameters and its arithmetic."""

    n_steps: int = 12  # T: how often a block is applied
    n_blocks: int = 1  # K: how many different blocks there are, 1 <= K <= T
    d_model: int = 768
    n_heads: int = 12
    d_mlp: int | None = None  # None = 4 * d_model
    image_size: int = 224  # pixels, square
    patch_size: int = 16  # pixels, divides image_size
    n_classes: int = 1000  # 0 = no head, the model returns the pooled features
    n_registers: int = 0  # learned tokens between CLS and the patches, left out of the read-out
    step_embedding: Literal["none", "learned", "sinusoidal"] = "none"  # added to every token before step t
    norm: Literal["ln", "rms"] = "ln"
    norm_eps: float = 1e-6
    layer_scale: float | None = None  # initial value of LayerScale, None = none
    pool: Literal["cls", "mean", "distilled"] = "cls"  # mean: of the patches, before the norm; distilled: as DeiT's
    drop_path: float = 0.0  # the same rate at every step, because the weights are shared
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"  # of linear weights; xavier trains narrow models
    classes: tuple[str, ...] | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of the input, per RGB channel in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD
    position: Literal["learned", "rotary"] = "learned"  # rotary: turns queries and keys (DINOv3), adds nothing
    activation: Literal["gelu", "quick_gelu"] = "gelu"  # of the MLP; quick_gelu: OpenAI's CLIP
    pre_norm: bool = False  # a norm before the first step (CLIP)
    qk_norm: bool = False  # queries and keys are normalised, each head on its own

    def __post_init__(self) -> None:
        self._refuse_endless()
        for name in ("classes", "mean", "std"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                items = (float(item) if name != "classes" and is_whole(item) else item for item in value)
                object.__setattr__(self, name, tuple(items))
        self._refuse_other_types()
        if self.d_mlp is None:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        self._refuse_out_of_range()

    def _refuse_endless(self) -> None:
        """`InputError` for numbers of any length and letters that cannot be written: a damaged or hostile file's."""
        for field in fields(self):
            value = getattr(self, field.name)
            for item in value if isinstance(value, list | tuple) else (value,):
                if is_whole(item) and abs(item) >= 2**63:
                    raise InputError(f"ViTConfig: {field.name} holds a number of {item.bit_length()} bits")
                if isinstance(item, str) and not is_text(item):
                    raise InputError(f"ViTConfig: {field.name} holds {quoted(item)}, which is no text")

    def _refuse_other_types(self) -> None:
        """`InputError` for a field that does not hold what its annotation says; a whole number will do for a float."""
        for field in fields(self):
            value = getattr(self, field.name)
            as_float = float(value) if is_whole(value) and field.type in (float, float | None) else value
            is_confused = isinstance(value, bool) is not (field.type is bool)  # Python takes True for 1
            if is_confused or not is_bearable(as_float, field.type):
                options = [str(option) for option in get_args(field.type) if isinstance(option, str)]
                wanted = " or ".join(options) or MEANING.get(field.name, "a whole number")
                raise InputError(f"ViTConfig: {field.name} is {quoted(value)}, it must be {wanted}")

    def _refuse_out_of_range(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise InputError(f"ViTConfig: {name} is {value}, it must lie between {least} and {most}")
        requirements = [
            (self.n_blocks <= self.n_steps, f"n_blocks is {self.n_blocks}, it cannot exceed n_steps = {self.n_steps}"),
            (
                self.d_model % self.n_heads == 0,
                f"d_model = {self.d_model} is not a multiple of n_heads = {self.n_heads}",
            ),
            (
                self.image_size % self.patch_size == 0,
                f"image_size = {self.image_size} is not a multiple of patch_size = {self.patch_size}",
            ),
            (0 <= self.drop_path < 1, f"drop_path is {self.drop_path}, it must lie in [0, 1)"),
            (0 < self.norm_eps < 1, f"norm_eps is {self.norm_eps}, it must lie between 0 and 1"),
            (math.isfinite(self.layer_scale or 0), f"layer_scale is {self.layer_scale}, it must be finite"),
            (
                self.pool != "distilled" or self.n_registers > 0,
                f"pool is distilled, which reads the first register beside CLS: n_registers is {self.n_registers}",
            ),
            (
                self.position != "rotary" or self.d_head % 4 == 0,
                f"position is rotary, which turns channels by fours: d_model / n_heads is {self.d_head}",
            ),
            (
                self.classes is None or len(self.classes) == self.n_classes,
                f"classes names {len(self.classes or ())} classes, n_classes is {self.n_classes}",
            ),
            (all(map(math.isfinite, self.mean)), f"mean is {self.mean}, it must be three finite numbers"),
            (all(0 < s < math.inf for s in self.std), f"std is {self.std}, it must be three numbers above 0"),
        ]
        require(*((holds, f"ViTConfig: {complaint}") for holds, complaint in requirements))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ViTConfig":
        """A named size, ``bvit_SIZE`` or ``vit_SIZE`` (the stacked baseline); any field can be overridden."""
        family, _, size = name.partition("_")
        if family not in ("bvit", "vit") or size not in SIZES:
            raise InputError(f"no preset named {name!r}; there are {', '.join(presets())}")
        values = SIZES[size] | overrides
        if family == "vit":
            values.setdefault("n_blocks", values["n_steps"])
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ViTConfig":
        """The config of a checkpoint; a field that this version does not know is an error."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(
                f"ViTConfig has no field {', '.join(sorted(unknown))}; the fields are "
                f"{', '.join(f.name for f in fields(cls))}"
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only, as a checkpoint stores them; fields that came later only where they are used."""
        unused = {f.name for f in fields(self) if f.name in LATER and getattr(self, f.name) == f.default}
        values = {name: value for name, value in asdict(self).items() if name not in unused}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def at_steps(self, n_steps: int) -> "ViTConfig":
        """The same model unrolled over `n_steps` steps."""
        return replace(self, n_steps=n_steps, n_blocks=min(self.n_blocks, n_steps))

    def block_of(self, step: int) -> int:
        """Which block step `step` (from 0) uses: ``step * K // T``; beyond T the last one."""
        return min(step * self.n_blocks // self.n_steps, self.n_blocks - 1)

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def side(self) -> int:
        """Patches along one side of an image."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.side**2

    @property
    def n_prefix(self) -> int:
        """Tokens before the patches: CLS and the registers."""
        return 1 + self.n_registers

    @property
    def n_tokens(self) -> int:
        return self.n_prefix + self.n_patches

    # What TransformerLens asks of a model's cfg; a layer is a step

    @property
    def n_layers(self) -> int:
        return self.n_steps

    @property
    def normalization_type(self) -> str:
        return "LN" if self.norm == "ln" else "RMS"

    @property
    def final_rms(self) -> bool:
        return self.norm == "rms"

    @property
    def attn_only(self) -> bool:
        return False


def presets() -> list[str]:
    """Names that `ViTConfig.preset` accepts."""
    return [f"{family}_{size}" for family in ("bvit", "vit") for size in SIZES]
