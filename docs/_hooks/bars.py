# ruff: noqa: INP001 - loaded by its path, not imported
"""Bar charts, as SVG."""

from html import escape

_WIDTH, _LINE, _NAMES, _NUMBERS = 760, 22, 290, 90
_OURS, _FLOOR, _THEIRS = "#3f51b5", "#9e9e9e", "#ff9800"


def bars(title: str, values: dict[str, float], unit: str, ours: str = "decodekit") -> str:
    """An SVG with one bar per value; the longest bar takes the full width.

    Args:
        title: Title above the bars.
        values: Values by name. The bar named "floor" is grey.
        unit: Unit after every number.
        ours: Prefix of the names of decodekit's bars, which have their own colour.
    """
    longest = max(*values.values(), 1e-9)
    height = _LINE * (len(values) + 1) + 8
    style = "max-width:100%;font:13px sans-serif;fill:currentColor"
    lines = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}" style="{style}">',
        f'<text x="0" y="15" font-weight="bold">{escape(title)}</text>',
    ]
    for place, (name, value) in enumerate(values.items(), start=1):
        top = place * _LINE
        colour = _FLOOR if name == "floor" else _OURS if name.startswith(ours) else _THEIRS
        width = max(1.0, (_WIDTH - _NAMES - _NUMBERS) * value / longest)
        lines += [
            f'<text x="{_NAMES - 8}" y="{top + 15}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_NAMES}" y="{top + 3}" width="{width:.1f}" height="{_LINE - 6}" fill="{colour}"/>',
            f'<text x="{_NAMES + width + 6:.1f}" y="{top + 15}">{value:.3g} {escape(unit)}</text>',
        ]
    return "\n".join([*lines, "</svg>"])
