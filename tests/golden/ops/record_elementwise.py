"""Records PyTorch's numbers for elementwise and channel operations and their layers.

    python3 record_elementwise.py     # rewrites activation-piecewise.json, softmax.json, layers-elementwise.json here

Debian 12's python3-torch (1.13) and python3-torchvision (0.14) made the committed files; record.py says what is in them.
"""

import torch
import torch.nn.functional as F
from record import case, layer_case, write
from torch import nn


# ---- activations made of straight pieces ----


def activation_cases():
    torch.manual_seed(21)
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1.0, -1.0, 2.999, -2.999, 3.001, -3.001, 5.999, 6.001, 100.0, -100.0])
    cases = []
    for name, params, function in [
        ("relu6", {}, F.relu6),
        ("leaky_relu", dict(negativeSlope=0.01), lambda x: F.leaky_relu(x, 0.01)),
        ("leaky_relu, slope -0.5", dict(negativeSlope=-0.5), lambda x: F.leaky_relu(x, -0.5)),
        ("hardswish", {}, F.hardswish),
        ("hardsigmoid", {}, F.hardsigmoid),
    ]:
        x = torch.cat([special, torch.randn(48) * 4]).requires_grad_()
        y = function(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        cases.append(case(name, params, x=x, y=y, dy=dy, dx=x.grad))
    return cases


# ---- softmax ----


def softmax_cases():
    torch.manual_seed(23)
    cases = []
    for name, rows, channels in [("21 classes", 7, 21), ("64 channels", 3, 64), ("one channel", 4, 1)]:
        x = (torch.randn(rows, channels) * 5).requires_grad_()
        y = F.softmax(x, 1)
        dy = torch.randn_like(y)
        y.backward(dy)
        cases.append(case(name, {}, x=x, y=y, dy=dy, dx=x.grad))
    return cases


# ---- layers ----


def layer_cases():
    torch.manual_seed(22)
    x = (2, 4, 6, 5)
    return [
        layer_case("ReLU6", nn.ReLU6(), x),
        layer_case("LeakyReLU", nn.LeakyReLU(), x),
        layer_case("LeakyReLU of another slope", nn.LeakyReLU(0.3), x),
        layer_case("Hardswish", nn.Hardswish(), x),
        layer_case("Hardsigmoid", nn.Hardsigmoid(), x),
        layer_case("Softmax", nn.Softmax(1), x),
    ]


if __name__ == "__main__":
    write("activation-piecewise", activation_cases())
    write("softmax", softmax_cases())
    write("layers-elementwise", layer_cases())
