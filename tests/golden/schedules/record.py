"""Records the rates of PyTorch's learning-rate schedulers over 1,000 iterations, for the schedule tests.

    python3 record.py     # rewrites schedules.json beside this script

PyTorch 1.13.1 made the committed file. Rates are fp64, little-endian, in base64.
"""

import base64
import json
import math
import os
import warnings

import numpy as np
import torch
from torch.optim import lr_scheduler as schedulers

warnings.filterwarnings("ignore")
FOLDER = os.path.dirname(os.path.abspath(__file__))
ITERATIONS = 1000


def rates(rate, make, values=None):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = make(optimizer)
    found = []
    for i in range(ITERATIONS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if values is None:
            scheduler.step()
        else:
            scheduler.step(values[i])
    return found


def encode(values):
    return base64.b64encode(np.asarray(values, "<f8").tobytes()).decode()


def main():
    # A value that gets better ever more slowly, with noise, and is no number once.
    metric = [1 - math.exp(-i / 60) + 0.01 * math.sin(1.7 * i) for i in range(ITERATIONS)]
    metric[500] = float("nan")
    loss = [2 + math.exp(-i / 90) + 0.02 * math.cos(2.3 * i) for i in range(ITERATIONS)]
    cases = {
        "constant": rates(0.02, lambda o: schedulers.ConstantLR(o, factor=1, total_iters=10)),
        "multiStep": rates(0.02, lambda o: schedulers.MultiStepLR(o, [300, 500, 900], 0.3)),
        "stepped": rates(0.02, lambda o: schedulers.StepLR(o, 170, 0.5)),
        "exponential": rates(0.5, lambda o: schedulers.ExponentialLR(o, 0.995)),
        "polynomial": rates(0.1, lambda o: schedulers.PolynomialLR(o, 800, 0.9)),
        "cosine": rates(0.1, lambda o: schedulers.CosineAnnealingLR(o, ITERATIONS, 0.001)),
        "cosineRestarts": rates(0.1, lambda o: schedulers.CosineAnnealingWarmRestarts(o, 100, 2, 0.002)),
        "cosineRestarts, equal": rates(0.1, lambda o: schedulers.CosineAnnealingWarmRestarts(o, 90, 1)),
        "oneCycle": rates(0.1, lambda o: schedulers.OneCycleLR(o, 0.4, ITERATIONS, cycle_momentum=False)),
        "oneCycle, linear, three phases": rates(
            0.1,
            lambda o: schedulers.OneCycleLR(
                o,
                0.4,
                ITERATIONS,
                pct_start=0.25,
                anneal_strategy="linear",
                div_factor=10,
                final_div_factor=100,
                cycle_momentum=False,
                three_phase=True,
            ),
        ),
        "warmup": rates(0.02, lambda o: schedulers.LinearLR(o, 0.001, 1, 500)),
        "exponentialWarmup": rates(0.02, lambda o: schedulers.LambdaLR(o, lambda i: 0.01 ** max(0, 1 - i / 200))),
        "chained": rates(
            0.02,
            lambda o: schedulers.SequentialLR(
                o,
                [
                    schedulers.LinearLR(o, 0.1, 1, 50),
                    schedulers.CosineAnnealingLR(o, 600, 0.001),
                    schedulers.ExponentialLR(o, 0.99),
                ],
                [100, 700],
            ),
        ),
        "plateau": rates(
            0.1, lambda o: schedulers.ReduceLROnPlateau(o, "max", 0.5, 20, 1e-3, "rel", 10, 1e-4), metric
        ),
        "plateau of a loss": rates(
            0.1, lambda o: schedulers.ReduceLROnPlateau(o, "min", 0.3, 15, 0.01, "abs", 0, 0), loss
        ),
    }
    content = {
        "versions": {"torch": torch.__version__},
        "iterations": ITERATIONS,
        "metric": encode(metric),
        "loss": encode(loss),
        "rates": {name: encode(values) for name, values in cases.items()},
    }
    with open(os.path.join(FOLDER, "schedules.json"), "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
