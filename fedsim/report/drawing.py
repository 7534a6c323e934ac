"""Figures as pieces of a page that needs no network: the plotting library comes along once, packed. Knows no run.

A browser unpacks the library, and draws each figure when a reader comes near it, or prints the page.
"""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from string import Template
from typing import Any

from fedsim.report.axes import readable

INK, GRID, ALARM = "#808080", "rgba(128,128,128,0.22)", "#d55e00"  # Grey reads on white and on black.
COLOURS = ("#1f8fd0", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#a89200", "#808080")
"""Okabe and Ito's, for colour-blind eyes; blue and yellow such that they read on white and on black."""
MARGIN = {"l": 48, "r": 12, "t": 56, "b": 44}
"""Pixels around a plot. At the top the buttons have room above the legend: on a phone one would cover the other."""
ROW, NARROW, LETTER = 19, 360, 7
"""Pixels of a row of a legend, of the width that it has on a phone or beside another figure, and of a letter in it."""
LADDER = ("#3f7fd6", "#0f9bb0", "#1fa35f", "#9c9a00", "#dd8500", "#e05a3a")
"""From first to last, none so dark that it vanishes on black, none so light that it does on white; what is seen by red- and green-blind
eyes goes from blue to yellow."""


def ladder(count: int) -> list[str]:
    """Return *count* colours in an order that reads: of classes, of sizes.

    >>> ladder(2), len(set(ladder(30)))
    (['#3f7fd6', '#e05a3a'], 30)
    """
    steps = len(LADDER) - 1
    found: list[str] = []
    for i in range(count):
        at = steps * i / max(1, count - 1)
        low = min(int(at), steps - 1)
        ends = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in LADDER[low : low + 2]]
        found.append("#" + "".join(f"{round(a + (b - a) * (at - low)):02x}" for a, b in zip(*ends, strict=True)))
    return found


class Drawing:
    """Turns figures into HTML; the first one brings the plotting library along."""

    def __init__(self) -> None:
        self.drawn = 0

    def html(self, figure: Any, height: int) -> str:
        """Return *figure*, *height* pixels tall, as a piece of HTML."""
        figure.update_layout(
            template="none", height=height, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
            font={"color": INK, "size": 12, "family": "system-ui, sans-serif"},
            margin={**MARGIN, "t": MARGIN["t"] + ROW * (_rows(figure) - 1)},
            dragmode=False, modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": ALARM},  # Off, so that a thumb scrolls.
            legend={"orientation": "h", "x": 0, "xanchor": "left", "yanchor": "bottom", "y": figure.layout.legend.y or 1.0},
        )  # fmt: skip
        figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
        figure.update_yaxes(gridcolor=GRID, zeroline=False, automargin=True)
        readable(figure)  # Whoever draws.
        self.drawn += 1
        said = inert(json.loads(figure.to_json()))
        brought = LIBRARY.substitute(packed=packed(), config=inert(CONFIG)) if self.drawn == 1 else ""
        return f'{brought}<div class=plot style="height:{height}px"><script type="application/json">{said}</script></div>'


def _rows(figure: Any) -> int:
    """Return how many rows the legend of *figure* takes where it is narrow."""
    names = [str(trace.name) for trace in figure.data if trace.name and getattr(trace, "showlegend", False) is not False]
    if not figure.layout.showlegend or figure.layout.legend.y not in (None, 1.0):  # Whoever puts it elsewhere makes room for it.
        return 1
    wide = sum(LETTER * len(name) + 46 for name in names)
    return max(1, min(4, -(-wide // NARROW)))


CONFIG = {
    # No button that sends a run to somebody's cloud, and no address to send it to.
    "displaylogo": False, "responsive": True, "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
}  # fmt: skip


def inert(value: Any) -> str:
    """Return *value* as JSON that ends no script and begins no comment."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


@cache
def packed() -> str:
    """Return the plotting library, deflated, in base64: 2 MB in the place of 4.8."""
    from plotly.offline import get_plotlyjs

    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(squeeze.compress(get_plotlyjs().encode()) + squeeze.flush()).decode()


LIBRARY = Template("""<script type="text/plain" id=plotly>$packed</script>
<script>
const ready = (async () => {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
})();
ready.catch(() => document.querySelectorAll(".plot").forEach(plot => plot.textContent =
  "This chart wants a browser of 2023 or later (DecompressionStream)."));
function draw(plot) {  // At once, or never again.
  if (plot.begun) return;
  plot.begun = true;
  const figure = JSON.parse(plot.querySelector("script").textContent);
  if (plot.change) plot.change(figure.data, figure.layout);
  plot.textContent = "";
  Plotly.newPlot(plot, figure.data, figure.layout, $config);
}
function change(plot, how) {  // Of what is drawn, and of what is not yet.
  if (!plot.begun) { plot.change = how; return; }
  how(plot.data, plot.layout);
  Plotly.react(plot, plot.data, plot.layout, $config);
}
const near = new IntersectionObserver(all => all.forEach(each => {
  if (each.isIntersecting) { near.unobserve(each.target); ready.then(() => draw(each.target)); }
}), {rootMargin: "800px"});
addEventListener("DOMContentLoaded", () => document.querySelectorAll(".plot").forEach(plot => near.observe(plot)));
addEventListener("beforeprint", () => {
  document.body.classList.add("printed");
  for (const plot of document.querySelectorAll(".plot")) { if (window.Plotly) { draw(plot); Plotly.Plots.resize(plot); } }
});
addEventListener("afterprint", () => {
  document.body.classList.remove("printed");
  for (const plot of document.querySelectorAll(".plot")) { if (plot.begun) Plotly.Plots.resize(plot); }
});
</script>""")
