"""The picture of the first page: one scenario with three deadlines, drawn from its runs. Run by hand: python docs/picture.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import fedsim

HERE = Path(__file__).parent
DEADLINES = {5.0: "#b5540b", 10.0: "#00796b", 600.0: "#3949ab"}
WIDE, TALL, LEFT, TOP, GAP = 720, 300, 48, 34, 66
PANEL = (WIDE - LEFT - GAP - 20) / 2
FLOOR = TALL - 44
LEAST = 0.8
"""Where the axis of accuracies begins: what lies below is over in some seconds."""


def main() -> None:
    """Run the scenario with each deadline and write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            deadline: fedsim.run(HERE.parent / "scenarios" / "stragglers.toml", overrides={"server.round_timeout_s": deadline},
                                 out=Path(folder) / str(deadline))
            for deadline in DEADLINES
        }  # fmt: skip
        (HERE / "assets" / "deadline.svg").write_text(drawn(runs) + "\n", encoding="utf-8")


def drawn(runs: dict[float, fedsim.Run]) -> str:
    """Return the picture of *runs*, by deadline, as SVG: accuracy over virtual time, and the share of replies that came too late."""
    scores = {deadline: run.series("accuracy") for deadline, run in runs.items()}
    longest = max(float(each.now_s.max()) for each in scores.values())
    right = LEFT + PANEL + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {TALL}" font-family="system-ui, sans-serif" font-size="12">',
        "<style>text{fill:#444}.axis{stroke:#999;stroke-width:1}.grid{stroke:#999;stroke-opacity:.3}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>",
        f'<clipPath id="panel"><rect x="{LEFT}" y="{TOP}" width="{PANEL}" height="{FLOOR - TOP}"/></clipPath>',
        f'<text x="{LEFT}" y="16" font-weight="bold">accuracy over virtual time</text>',
        f'<text x="{right}" y="16" font-weight="bold">replies that came too late</text>',
    ]  # fmt: skip
    for share in (0.8, 0.85, 0.9, 0.95, 1.0):
        y = _height(share)
        parts += [_line(LEFT, y, LEFT + PANEL, y, "grid"), f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{share:g}</text>']
    step = next(each for each in (30, 60, 120, 300, 600, 1200) if longest / each <= 6)
    for moment in range(0, int(longest) + 1, step):
        x = LEFT + moment / longest * PANEL
        parts += [_line(x, FLOOR, x, FLOOR + 4, "axis"), f'<text x="{x:.0f}" y="{FLOOR + 18}" text-anchor="middle">{moment} s</text>']
    for row, (deadline, run) in enumerate(runs.items()):
        color, line = DEADLINES[deadline], scores[deadline]
        points = " ".join(
            f"{LEFT + now / longest * PANEL:.1f},{_height(value):.1f}" for now, value in zip(line.now_s, line.value, strict=True)
        )
        parts.append(f'<polyline clip-path="url(#panel)" fill="none" stroke="{color}" stroke-width="2" points="{points}"/>')
        late = float((run.tasks.outcome == "late").mean())
        y, wide = TOP + 20 + row * 66, PANEL - 80
        wasted = run.manifest["bytes_wasted"] / 1e6
        said = f"waits {deadline:g} s: {late:.0%} late, {wasted:.1f} MB in vain, {float(line.now_s.max()):.0f} s in all"
        parts += [
            f'<rect x="{right - 18}" y="{y - 10}" width="12" height="12" fill="{color}"/>', f'<text x="{right}" y="{y}">{said}</text>',
            f'<rect x="{right}" y="{y + 8}" width="{wide:.0f}" height="18" fill="#999" fill-opacity=".2"/>',
            f'<rect x="{right}" y="{y + 8}" width="{wide * late:.1f}" height="18" fill="{color}"/>',
        ]  # fmt: skip
    return "\n".join([*parts, _line(LEFT, FLOOR, LEFT + PANEL, FLOOR, "axis"), "</svg>"])


def _height(value: float) -> float:
    return FLOOR - (value - LEAST) / (1.0 - LEAST) * (FLOOR - TOP)


def _line(x: float, y: float, to_x: float, to_y: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


if __name__ == "__main__":
    main()
