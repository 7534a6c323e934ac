"""Writes the small traces of the tests: links of three rides, a week of five phones, seven devices. All made up."""

from pathlib import Path

import numpy as np


def main() -> None:
    """Write them beside this file."""
    here, draw = Path(__file__).parent, np.random.default_rng(5)
    rows = ["trace,kind,time_s,down_mbps,up_mbps"]
    for trace, kind in (("a", "bus"), ("b", "tram"), ("c", "bus")):
        times = np.cumsum(draw.uniform(0.5, 1.5, 40)).round(2)
        rates = zip(times, draw.lognormal(1, 1, 40) * (draw.random(40) > 0.1), draw.lognormal(0, 1, 40), strict=True)
        rows += [f"{trace},{kind},{t},{down:.3f},{up:.3f}" for t, down, up in rates]
    (here / "links.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    known = draw.choice([-1, 0, 1], size=(5, 48), p=[0.2, 0.5, 0.3]).astype(np.int8)
    known[4] = 0  # One that is never there.
    np.savez_compressed(here / "phones.npz", available=known)
    speeds = "".join(f"phone{i},{gflops:.3f}\n" for i, gflops in enumerate(draw.lognormal(1, 0.5, 7)))
    (here / "devices.csv").write_text(f"name,gflops\n{speeds}", encoding="utf-8")


if __name__ == "__main__":
    main()
