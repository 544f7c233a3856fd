"""Records torch's numbers for bilinear upsampling and transposed convolution.

    python3 record_upsampling.py     # rewrites bilinear.json, conv-transpose.json and layers-upsampling.json beside this script

Made and stored as record.py's files are; weights of transposed convolutions as (in, R, S, out / groups).
"""

import torch
import torch.nn.functional as F
from torch import nn

from record import case, layer_case, leaf, nhwc, write


def bilinear_cases():
    torch.manual_seed(31)
    cases = []
    for name, shape, options, align in [
        ("x2", (2, 3, 3, 4), dict(scale_factor=2.0), False),
        ("x2, corners aligned", (1, 3, 3, 4), dict(scale_factor=2.0), True),
        ("5x4 to 7x9", (1, 2, 5, 4), dict(size=(7, 9)), False),
        ("5x4 to 7x9, corners aligned", (1, 2, 5, 4), dict(size=(7, 9)), True),
        ("smaller, 7x6 to 3x4", (1, 3, 7, 6), dict(size=(3, 4)), False),
        ("x1.5 by x2.3 of 5x7 (sizes rounded down)", (1, 2, 5, 7), dict(scale_factor=(1.5, 2.3)), False),
        ("to one row, corners aligned", (1, 2, 4, 3), dict(size=(1, 6)), True),
    ]:
        x = leaf(*shape)
        y = F.interpolate(x, mode="bilinear", align_corners=align, **options)
        dy = torch.randn_like(y)
        y.backward(dy)
        scale = options.get("scale_factor", 0.0)
        params = dict(size=list(y.shape[2:]), alignCorners=align, scale=list(scale) if isinstance(scale, tuple) else [scale, scale])
        cases.append(case(name, params, x=nhwc(x), y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad)))
    return cases


def conv_transpose_cases():
    torch.manual_seed(32)
    cases = []
    for name, n, h, w, c, k, kernel, options in [
        ("2x2 stride 2", 2, 3, 4, 6, 4, (2, 2), dict(stride=2)),
        ("3x3 stride 2, output padding", 1, 4, 3, 4, 5, (3, 3), dict(stride=2, padding=1, output_padding=1)),
        ("4x4 stride 2 in 2 groups", 1, 3, 3, 4, 6, (4, 4), dict(stride=2, padding=1, groups=2)),
        ("3x2, unequal everything, dilated", 2, 4, 3, 3, 2, (3, 2),
         dict(stride=(1, 3), padding=(2, 0), output_padding=(0, 1), dilation=(2, 1))),
        ("3x3 depthwise without bias", 1, 5, 4, 4, 4, (3, 3), dict(stride=2, padding=1, groups=4, bias=False)),
    ]:
        layer = nn.ConvTranspose2d(c, k, kernel, **options)
        x = leaf(n, c, h, w)
        y = layer(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        params = dict(
            stride=layer.stride, padding=layer.padding, outputPadding=layer.output_padding, dilation=layer.dilation, groups=layer.groups
        )
        bias = layer.bias
        cases.append(
            case(name, params, x=nhwc(x), w=nhwc(layer.weight), bias=bias, y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad),
                 dw=nhwc(layer.weight.grad), dbias=None if bias is None else bias.grad)
        )
    return cases


def layer_cases():
    torch.manual_seed(33)
    x = (2, 4, 6, 5)
    return [
        layer_case("Upsample, nearest to a size", nn.Upsample((9, 10)), x),
        layer_case("Upsample, bilinear", nn.Upsample(scale_factor=2, mode="bilinear"), x),
        layer_case("Upsample, bilinear to a size with corners aligned", nn.Upsample((9, 11), mode="bilinear", align_corners=True), x),
        layer_case("Upsample, bilinear by a fraction", nn.Upsample(scale_factor=(1.4, 2.5), mode="bilinear"), x),
        layer_case("ConvTranspose2d", nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), x),
        layer_case("ConvTranspose2d in groups without bias", nn.ConvTranspose2d(4, 2, (3, 2), (2, 1), (0, 1), 0, 2, False, (1, 2)), x),
        layer_case("ConvTranspose2d, norm, ReLU", nn.Sequential(nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU()), x),
    ]


if __name__ == "__main__":
    write("bilinear", bilinear_cases())
    write("conv-transpose", conv_transpose_cases())
    write("layers-upsampling", layer_cases())
