"""Records torch.nn.GroupNorm's numbers for the operation and layer tests.

    python3 record_norm.py       # rewrites group-norm.json and layers-norm.json beside this script

Made and stored as record.py's files are.
"""

import torch
import torch.nn.functional as F
from torch import nn

from record import case, layer_case, nhwc, write


def group_norm_cases():
    torch.manual_seed(21)
    cases = []
    for name, shape, groups, relu in [
        ("2 groups of 3", (2, 6, 4, 3), 2, False),
        ("4 groups of 4, relu", (2, 16, 3, 5), 4, True),
        ("one group (layer normalization)", (3, 5, 3, 2), 1, False),
        ("a group for each channel (instance normalization)", (2, 5, 4, 4), 5, True),
    ]:
        n, c, h, w = shape
        x = (torch.randn(*shape) * 2 + 3).requires_grad_()
        norm = nn.GroupNorm(groups, c, eps=1e-3)
        norm.weight.data, norm.bias.data = torch.rand(c) + 0.5, torch.randn(c)
        y = F.relu(norm(x)) if relu else norm(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        params = dict(shape=[n, h, w, c], groups=groups, eps=1e-3, relu=relu)
        cases.append(
            case(name, params, x=nhwc(x), weight=norm.weight, bias=norm.bias, y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad),
                 dweight=norm.weight.grad, dbias=norm.bias.grad)
        )
    return cases


def layer_cases():
    torch.manual_seed(22)
    x = (2, 8, 6, 5)
    return [
        layer_case("GroupNorm", nn.GroupNorm(4, 8, 1e-3), x),
        layer_case("GroupNorm, eval", nn.GroupNorm(2, 8), x, training=False, backward=False),
        layer_case("GroupNorm in a head", nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(3, 6), nn.ReLU()), x),
    ]


if __name__ == "__main__":
    write("group-norm", group_norm_cases())
    write("layers-norm", layer_cases())
