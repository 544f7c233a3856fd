"""Records what torchvision's RetinaNet computes, for tests/models and scripts/compare-torchvision.ts: see detectors/common.py."""

import os
import sys

from torchvision.models.detection import RetinaNet

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "detectors"))
from backbones import backbone_range, backbone_with_pyramid  # noqa: E402
from common import Recorder, fan_in_bound, main, split  # noqa: E402

FILES = {
    "golden.json": {
        "resnet50, frozen": dict(backbone="resnet50", norm="frozen", trainableLayers=5, height=64, width=96, steps=3),
        "resnet18, batch": dict(backbone="resnet18", norm="batch", trainableLayers=5, height=96, width=128, steps=3),
        "resnet18, batch, 3 layers": dict(
            backbone="resnet18", norm="batch", trainableLayers=3, height=100, width=72, steps=1
        ),
        "resnext50_32x4d, frozen": dict(
            backbone="resnext50_32x4d", norm="frozen", trainableLayers=4, height=96, width=88, steps=1
        ),
    },
    "backbones.json": {
        "mobilenet_v2, frozen": dict(
            backbone="mobilenet_v2", norm="frozen", trainableLayers=6, height=64, width=96, steps=10
        ),
        "mobilenet_v2, batch, 3 layers": dict(
            backbone="mobilenet_v2", norm="batch", trainableLayers=3, height=72, width=64, steps=2, every=3
        ),
        "resnet34, batch": dict(
            backbone="resnet34", norm="batch", trainableLayers=5, height=64, width=64, steps=1, every=7
        ),
        "resnet101, frozen": dict(
            backbone="resnet101", norm="frozen", trainableLayers=5, height=64, width=64, steps=1, every=11
        ),
    },
}


class RetinaNetRecorder(Recorder):
    cells = 9

    def network(self, case):
        return RetinaNet(backbone_with_pyramid(case), case["classes"])

    def weight_range(self, name, shape):
        """Scores on both sides of the threshold."""
        known = backbone_range(name, shape)
        if known:
            return known
        if len(shape) == 4:
            bound = fan_in_bound(shape) * (0.01 if "cls_logits" in name else 0.02 if "bbox_reg" in name else 1.0)
            return -bound, bound
        if name.endswith("cls_logits.bias"):
            return -5.0, -3.0
        return (0.6, 1.2) if "_head.conv." in name else (-0.1, 0.1)

    def detections(self, model, head, anchors, per_level, sizes):
        return model.postprocess_detections(*split(head, anchors, per_level), sizes)

    def loss(self, model, targets, head, anchors, per_level):
        return model.compute_loss(targets, head, anchors)


if __name__ == "__main__":
    main(RetinaNetRecorder(), __file__, FILES)
