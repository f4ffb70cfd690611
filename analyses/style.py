"""How every figure of the toolkit looks and names things: steps, colours, axes."""

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MAIN, SECOND, CONTROL, CHANCE = "#2a6f97", "#d1495b", "#8d99ae", "#6c757d"
MAP = "viridis"  # of ratios and attention, in matplotlib and plotly alike
SEQUENCE = ("#2a6f97", "#d1495b", "#edae49", "#3a7d44", "#7b4b94", "#00798c")


def step_label(step: int) -> str:
    """How a step is printed: counted from 1 for readers, with its hook name counted from 0."""
    return f"step {step + 1} (blocks.{step})"


def panels(rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.1, **kwargs: object) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot's state, and its axes row by row."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained", dpi=120)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=0.8 * rcParams["font.size"])
    return figure, axes


def step_axis(ax: Axes, n_steps: int) -> None:
    """Steps from 1 on the horizontal axis."""
    ax.set_xticks(range(1, n_steps + 1), [str(t) for t in range(1, n_steps + 1)])
    ax.set_xlabel("step")
