"""What the boxes of interactive figures say under the mouse, and how they look."""

LIGHT, DARK = (  # boxes in plain ink: plotly's own are filled with the line's colour, some too light to read
    dict(bgcolor=ground, bordercolor="#868e96", font=dict(color=ink, size=13))
    for ground, ink in (("#ffffff", "#1b1f24"), ("#2b2f36", "#f1f3f5"))
)


def placed(axis: str, where: str) -> str:
    """A place on an axis in words: the axis' name without what stands in brackets, and `where` (at its "...")."""
    name = axis.partition(" (")[0]
    return name.replace("...", where) if "..." in name else f"{name} {where}".strip()


def number(of: str, variable: str) -> str:
    """Plotly's pattern for a variable: a digit after the point for what is in per cent, else four that count."""
    return f"%{{{variable}:.1f}} %" if "(%)" in of else f"%{{{variable}:.4~g}}"
