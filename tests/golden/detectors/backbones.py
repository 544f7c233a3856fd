"""Backbones with a pyramid, which RetinaNet and FCOS have in common, and the ranges of their generated weights.

A case has "backbone", "norm": "batch" | "frozen", and "trainableLayers".
"""

from torch import nn
from torchvision.models import mobilenetv2, resnet
from torchvision.models.detection.backbone_utils import _mobilenet_extractor, _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from common import fan_in_bound


def backbone_with_pyramid(case):
    """torchvision's backbones with P3 to P7."""
    norm = FrozenBatchNorm2d if case["norm"] == "frozen" else nn.BatchNorm2d
    trainable, last = case["trainableLayers"], LastLevelP6P7(256, 256)
    if case["backbone"] == "mobilenet_v2":
        network = mobilenetv2.mobilenet_v2(weights=None, norm_layer=norm)
        return _mobilenet_extractor(network, True, trainable, returned_layers=[2, 3, 5], extra_blocks=last)
    network = getattr(resnet, case["backbone"])(weights=None, norm_layer=norm)
    return _resnet_fpn_extractor(network, trainable, returned_layers=[2, 3, 4], extra_blocks=last)


def backbone_range(name, shape):
    """Ranges of a backbone's weights, None for a name that is not one's.

    Biases before a ReLU are positive, so that few of its inputs are near 0: where rounding decides on which side one lies, a
    gradient differs by a whole term (torch's own between fp32 and fp64 by up to 8e-3 in norm, with biases around 0). Before
    MobileNet's ReLU6 most inputs lie between 0 and 6.
    """
    if name.endswith("running_var"):
        return 0.5, 1.5
    if name.endswith("running_mean"):
        return -0.2, 0.2
    mobile = ".body." in name and ".layer" not in name and ".conv1." not in name and ".bn1." not in name
    if mobile:
        return mobile_range(name, shape)
    if "backbone." in name and len(shape) == 4:
        return -fan_in_bound(shape), fan_in_bound(shape)
    if "backbone.body." in name:
        return (0.3, 0.9) if name.endswith("weight") else (1.0, 2.0)
    return (-0.1, 0.1) if "backbone." in name else None


def mobile_range(name, shape):
    """Of a network of ReLU6s: small weights, and biases of 1 to 5 but for the linear ends of inverted residuals."""
    if len(shape) == 4:
        return -0.3 * fan_in_bound(shape), 0.3 * fan_in_bound(shape)
    if name.endswith("weight"):
        return 0.3, 0.9
    linear = name.split(".")[-3] == "conv"
    return (-0.1, 0.1) if linear else (1.0, 5.0)
