"""Records the scales of torch.amp.GradScaler over many steps, some of which overflow: loss-scale.json.

    python3 record_loss_scale.py

Needs a PyTorch whose GradScaler works without a GPU (from 2.3 on): 2.11 made the committed file. A parameter's gradients are
infinite or NaN in given steps; "scales" is get_scale() after each step. The format is that of record.py.
"""

import base64
import json
import os

import numpy as np
import torch


def pattern(*counts):
    """Steps that do not overflow and then ones that do, so many of each in turn."""
    return [i % 2 for i, count in enumerate(counts) for _ in range(count)]


def encode(values, dtype):
    array = np.asarray(values, dtype)
    name = {"<f4": "f32", "u1": "u8"}[dtype]
    return {"shape": list(array.shape), "dtype": name, "data": base64.b64encode(array.tobytes()).decode()}


def scaler_case(name, overflows, initial=65536.0, growth=2.0, backoff=0.5, interval=2000):
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=initial, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=2.0**-20)
    scales, good = [], 0
    for step, overflow in enumerate(overflows):
        optimizer.zero_grad()
        scaler.scale(parameter.sum()).backward()
        if overflow:
            parameter.grad[step % 2] = [float("inf"), float("-inf"), float("nan")][step % 3]
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        good += not overflow
        # A step that overflows is left out, and the scale is divided out of the others' gradients.
        np.testing.assert_allclose(parameter.detach().numpy(), -good * 2.0**-20, rtol=1e-5)
    params = dict(initial=initial, growth=growth, backoff=backoff, interval=interval)
    arrays = dict(overflows=encode(overflows, "u1"), scales=encode(scales, "<f4"))
    return {"name": name, "params": params, "arrays": arrays}


if __name__ == "__main__":
    rng = np.random.default_rng(7)
    cases = [
        scaler_case("the default rule", pattern(0, 3, 2000, 1, 1999, 1, 2001)),
        scaler_case("another rule", pattern(7, 2, 5, 1, 9), 100.0, 1.7, 0.3, 3),
        scaler_case("up to the largest scale", pattern(9), 2.0**126, 2.0, 0.5, 2),
        scaler_case("at random", (rng.random(400) < 0.08).astype(int).tolist(), 1024.0, 2.0, 0.5, 10),
    ]
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "loss-scale.json"), "w") as file:
        json.dump({"versions": versions, "cases": cases}, file, indent=1)
        file.write("\n")
