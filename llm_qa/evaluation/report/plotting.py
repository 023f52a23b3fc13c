"""The style of the report's plots: SVG by matplotlib with text kept as text, so that Korean uses the reader's fonts.

The same drawing is used as a file in plain colours (`Plot.svg`) and inside the page, where each colour becomes a CSS
variable (`inline_svg`) for light, dark and print. Without dates and random ids: the same scores give the same bytes.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llm_qa.evaluation.metrics.catalogue import is_number
from llm_qa.evaluation.report.escaping import visible
from llm_qa.language import tr
from llm_qa.widths import display_width

# name -> (light, dark). inline_svg finds a colour by the light value, so these must be distinct.
PALETTE = {
    "page": ("#ffffff", "#15181d"),
    "ink": ("#1b1f24", "#e3e6ea"),
    "muted": ("#5b636e", "#9aa3af"),
    "rule": ("#e1e4e8", "#30363e"),
    "base": ("#8c6a3f", "#d0a56a"),
    "tuned": ("#0b5fa5", "#6cb2f0"),
    "run1": ("#0b5fa6", "#6cb2f1"),
    "run2": ("#b5531c", "#f0965a"),
    "run3": ("#2e7d4f", "#6cc793"),
    "run4": ("#8a3f8f", "#d08fd6"),
    "run5": ("#a3872a", "#dcc25c"),
    "run6": ("#3f7f8c", "#7cc3d1"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
RUN_COLOURS = [name for name in PALETTE if name.startswith("run")]
FONTS = (
    "system-ui, -apple-system, 'Segoe UI', 'Apple SD Gothic Neo', 'Malgun Gothic', 'Noto Sans KR', "
    "'Noto Sans CJK KR', NanumGothic, sans-serif"
)
_WIDTH_INCHES = 8.6
Dash = Literal["-", "--", ":", "-."]  # how a line is drawn
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a category may contain dollar signs
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["rule"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.unicode_minus": True,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["ink"],
    "xtick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": LIGHT["page"],
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """`name` is the file's stem; `title` is read by screen readers; `svg` is a whole file in plain colours."""

    name: str
    title: str
    svg: str


def styled(draw):
    """Run a drawing function under _STYLE and matplotlib's defaults, without the user's matplotlibrc."""

    @functools.wraps(draw)
    def with_style(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return with_style


def shorten(text: str, width: int = 24) -> str:
    """At most `width` terminal columns, with an ellipsis; line breaks become spaces."""
    text = " ".join(visible(text).split())
    if display_width(text) <= width:
        return text
    while display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def inline_svg(plot: Plot, prefix: str) -> str:
    """The drawing for inclusion in a page: CSS variables for colours, ids with `prefix`, the page's fonts."""
    svg = plot.svg[plot.svg.index("<svg") :]
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL
    )  # a rule that would apply to the whole page
    variables = {light: f"var(--{name})" for name, (light, _) in PALETTE.items()}

    def adapt(tag: str) -> str:
        tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
        tag = tag.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
        return re.sub(r"#[0-9a-f]{6}\b", lambda colour: variables.get(colour[0], colour[0]), tag)

    svg = _in_tags(svg, adapt)
    opening = svg[: svg.index(">") + 1]
    view = re.findall(r'viewBox="[^"]*"', opening)[0]
    return (
        f'<svg class="plot" role="img" aria-labelledby="{prefix}-title" {view} '
        f'xmlns:xlink="http://www.w3.org/1999/xlink"><title id="{prefix}-title">{_escape(plot.title)}</title>'
        + svg[len(opening) :]
    )


def new_figure(panels: int, *, height: float, label_width: int, legend_rows: int = 1, x_label: bool = False):
    """A figure whose margins are computed from the text: layout must not depend on which fonts are installed."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height))
    FigureCanvasSVG(figure)
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    figure.subplots_adjust(
        left=min(0.45, (0.075 * label_width + 0.15) / _WIDTH_INCHES),
        right=0.985,
        top=1 - (0.38 + 0.19 * legend_rows) / height,
        bottom=(0.45 if x_label else 0.25) / height,
        wspace=0.16,
    )
    return figure, axes


def draw_dots(panel, rows: list[tuple[dict | None, dict]]) -> None:
    """One row each: base above (hollow), tuned below (filled), lines for the intervals."""
    for y, pair in enumerate(rows):
        for values, colour, shift in zip(pair, ("base", "tuned"), (-0.15, 0.15), strict=True):
            if not values or not is_number(values["value"]):
                continue
            if is_number(values["low"]) and is_number(values["high"]):
                panel.plot([values["low"], values["high"]], [y + shift] * 2, color=LIGHT[colour], linewidth=1.6)
            face = LIGHT["page" if colour == "base" else colour]
            panel.plot(values["value"], y + shift, "o", color=LIGHT[colour], markerfacecolor=face, markersize=5)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    panel.margins(x=0.08)


def largest_value(parts: list[dict], key: str) -> float:
    """The largest score or upper interval end of one measure; each of `parts` has 'metrics'."""
    ends = [part["metrics"][key][end] for part in parts for end in ("value", "high")]
    return max((end for end in ends if is_number(end)), default=0.0) or 1.0


def from_zero(panel, largest: float) -> None:
    """An axis from 0 to `largest`, with a little room."""
    panel.set_xlim(-0.03 * largest, 1.06 * largest)


def base_tuned_legend(figure, with_base: bool) -> None:
    """The legend of `draw_dots`."""

    def dot(colour: str, face: str):
        return line(LIGHT[colour], "-", marker="o", markersize=5, markerfacecolor=LIGHT[face])

    handles, labels = [dot("tuned", "tuned")], [tr("tuned")]
    if with_base:
        handles, labels = [dot("base", "page"), *handles], [tr("base"), *labels]
    figure.legend(handles, labels, loc="upper left", ncols=2, bbox_to_anchor=(0, 1), borderaxespad=0.1)


def line(colour: str, dash: Dash, **more):
    """A line for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=dash, linewidth=1.6, **more)


def legend_above(figure, handles: list, names: list[str]) -> None:
    """One row per name, above the panels."""
    labels = [legend_label(name) for name in names]
    figure.legend(handles, labels, loc="upper left", ncols=1, bbox_to_anchor=(0, 1), borderaxespad=0.1)


def legend_label(name: str) -> str:
    """A run's name as matplotlib will show it."""
    # matplotlib leaves labels that begin with an underscore out of a legend; a zero-width space hides that start
    return shorten(name, 60) if not name.startswith("_") else "\u200b" + shorten(name, 60)


def finished(figure, name: str, title: str) -> Plot:
    """The figure as SVG text, without date or random ids."""
    import matplotlib

    buffer = io.StringIO()
    matplotlib.rcParams["svg.hashsalt"] = name
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # fonts of the reader draw it
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = _in_tags(buffer.getvalue(), lambda tag: re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", tag))
    return Plot(name, visible(title), svg)


def _in_tags(svg: str, change: Callable[[str], str]) -> str:
    """Change tags only: a category may be called "#ffffff". matplotlib escapes < and > in text."""
    return re.sub(r"<[^>]*>", lambda tag: change(tag[0]), svg)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
