"""Records what Lightning's lr_find makes of losses of a range test: rate-range.json, for tests/train/rate-range.test.ts.

    python3 record_rate_range.py

The smoothing and the end are those of lightning.pytorch.tuner.lr_finder's _LRCallback (beta 0.98, early_stop_threshold 4), the
suggestion is _LRFinder.suggestion's (skip_begin 10, skip_end 1, torch.gradient), as in version 2.6, taken over a list of losses
instead of a training. PyTorch 1.13.1 made the committed file.
"""

import json
import math
import os
import random

import torch


def lr_find(losses, rates, beta=0.98, threshold=4.0, skip_begin=10, skip_end=1):
    average, best, smoothed = 0.0, 0.0, []
    for i, loss in enumerate(losses):
        average = beta * average + (1 - beta) * loss
        smoothed.append(average / (1 - beta ** (i + 1)))
        if i > 1 and smoothed[-1] > threshold * best:
            break
        if smoothed[-1] < best or i == 0:
            best = smoothed[-1]
    judged = torch.tensor(smoothed[skip_begin:-skip_end], dtype=torch.float64)
    judged = judged[torch.isfinite(judged)]
    if len(judged) < 3:
        return smoothed, None
    return smoothed, rates[torch.argmin(torch.gradient(judged)[0]).item() + skip_begin]


def curve(seed, steps, floor, noise, explode):
    """A loss that is flat, falls and rises again as the rate grows."""
    draw = random.Random(seed)
    x = [-6 + 7 * i / (steps - 1) for i in range(steps)]
    fall = lambda v: 1 / (1 + math.exp(3 * (v + 2.5)))
    rise = lambda v: math.exp(min(60, explode * (v + 0.3)))
    return [floor + 2 * fall(v) + (rise(v) if v > -0.3 else 0) + draw.gauss(0, noise) for v in x]


if __name__ == "__main__":
    cases = []
    for seed, (steps, floor, noise, explode) in enumerate(
        [(100, 1.0, 0.05, 6.0), (100, 0.2, 0.3, 12.0), (40, 0.5, 0.01, 3.0), (200, 2.0, 0.5, 1.0), (13, 0.5, 0.1, 1.0), (12, 0.5, 0.1, 1.0)]
    ):
        losses = curve(seed, steps, floor, noise, explode)
        rates = [1e-6 * 1e7 ** (i / (steps - 1)) for i in range(steps)]
        smoothed, suggestion = lr_find(losses, rates)
        cases.append({"losses": losses, "smoothed": smoothed, "suggestion": suggestion})
    out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "rate-range.json")
    with open(out, "w") as file:
        json.dump({"versions": {"torch": torch.__version__}, "cases": cases}, file)
        file.write("\n")
