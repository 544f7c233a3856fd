"""Records the logits of torchvision's MobileNetV2 classifier, in double precision, for tests/models/mobilenet-v2.test.ts.

    python3 record.py            # rewrites golden.json beside it

Weights and images come from the generator of detectors/common.py. Debian 12's python3-torch (1.13) and python3-torchvision
(0.14) made the committed file.
"""

import json
import os
import sys

import torch
from torchvision.models import mobilenet_v2

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, "..", "detectors"))
from common import fan_in_bound, uniform, versions  # noqa: E402


def weight_range(name, shape):
    if name.endswith("running_var"):
        return 0.5, 1.5
    if name.endswith("running_mean"):
        return -0.2, 0.2
    if name.startswith("classifier"):
        return -0.05, 0.05
    if len(shape) == 4:
        return -fan_in_bound(shape), fan_in_bound(shape)
    if name.endswith("weight"):
        return 0.3, 0.9
    linear = name.split(".")[-3] == "conv"
    return (-0.1, 0.1) if linear else (0.0, 3.0)


def main():
    case = {"widthMultiplier": 0.5, "classes": 7, "n": 2, "height": 64, "width": 96}
    model = mobilenet_v2(weights=None, width_mult=case["widthMultiplier"], num_classes=case["classes"]).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                low, high = weight_range(name, tensor.shape)
                tensor.copy_(torch.from_numpy(uniform(name, tensor.numel(), low, high)).view(tensor.shape))
        shape = (case["n"], 3, case["height"], case["width"])
        images = torch.from_numpy(uniform("images", torch.Size(shape).numel(), -2.0, 2.0)).view(shape)
        logits = model.double()(images.double())
    with open(os.path.join(FOLDER, "golden.json"), "w") as file:
        json.dump({"versions": versions(), "case": case, "logits": [float(f"{x:.8g}") for x in logits.flatten()]}, file)
        file.write("\n")


if __name__ == "__main__":
    main()
