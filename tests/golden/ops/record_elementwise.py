"""Records PyTorch's numbers for elementwise and channel operations and their layers.

    python3 record_elementwise.py     # rewrites {activation-piecewise,softmax,channel,layers-elementwise}.json here

Debian 12's python3-torch (1.13) and python3-torchvision (0.14) made the committed files; record.py says what is in them.
"""

import torch
import torch.nn.functional as F
from record import case, layer_case, leaf, nhwc, write
from torch import nn
from torchvision.ops.misc import SqueezeExcitation


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


# ---- channels ----


def shuffled(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def channel_cases():
    torch.manual_seed(24)
    cases = []
    for name, shape in [("scale", (2, 5, 4, 3)), ("scale of 64 channels", (1, 64, 2, 2))]:
        x, s = leaf(*shape), leaf(shape[0], shape[1], 1, 1)
        y = x * s
        dy = torch.randn_like(y)
        y.backward(dy)
        cases.append(case(name, {}, x=nhwc(x), s=nhwc(s), y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad), ds=nhwc(s.grad)))
    for c, groups in [(6, 2), (12, 3), (16, 8)]:
        x = torch.randn(2, c, 2, 3)
        y = nn.ChannelShuffle(groups)(x)
        assert torch.equal(y, shuffled(x, groups))
        cases.append(case(f"{c} channels in {groups} groups", dict(groups=groups), x=nhwc(x), y=nhwc(y)))
    return cases


# ---- layers ----


class Product(nn.Module):
    def forward(self, *inputs):
        y = inputs[0]
        for x in inputs[1:]:
            y = y * x
        return y


class Parts(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes

    def forward(self, x):
        return torch.split(x, self.sizes, 1)


class Shuffle(nn.Module):
    """nn.ChannelShuffle, which has no gradient on the CPU in torch 1.13."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        return shuffled(x, self.groups)


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
        layer_case("Multiply", Product(), x, x, x),
        layer_case("Multiply by channel", Product(), x, (2, 4, 1, 1)),
        layer_case("ChannelShuffle", Shuffle(3), (2, 12, 3, 2)),
        layer_case("Split", Parts(3), (2, 8, 3, 2)),
        layer_case("Split into sizes", Parts([1, 5, 2]), (2, 8, 3, 2)),
        layer_case("SqueezeExcitation", SqueezeExcitation(8, 3), (2, 8, 5, 4)),
        layer_case("SqueezeExcitation of MobileNetV3", SqueezeExcitation(8, 3, nn.Hardswish, nn.Hardsigmoid), (2, 8, 5, 4)),
        layer_case("AvgPool2d", nn.AvgPool2d(3, 2, 1), x),
        layer_case("AvgPool2d, padding not counted", nn.AvgPool2d((3, 2), padding=(1, 1), count_include_pad=False), x),
        layer_case("AdaptiveAvgPool2d", nn.AdaptiveAvgPool2d((2, 5)), x),
        layer_case("GlobalAvgPool2d", nn.AdaptiveAvgPool2d(1), x),
        layer_case("Dropout, eval", nn.Dropout(), x, training=False),
    ]


if __name__ == "__main__":
    write("activation-piecewise", activation_cases())
    write("softmax", softmax_cases())
    write("channel", channel_cases())
    write("layers-elementwise", layer_cases())
