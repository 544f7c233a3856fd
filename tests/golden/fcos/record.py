"""Records what torchvision's FCOS computes, for tests/models and scripts/compare-torchvision.ts: see detectors/common.py."""

import os
import sys

from torchvision.models.detection import FCOS

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "detectors"))
from backbones import backbone_range, backbone_with_pyramid  # noqa: E402
from common import Recorder, fan_in_bound, main, split  # noqa: E402

FILES = {
    "golden.json": {
        "resnet18, frozen": dict(
            backbone="resnet18", norm="frozen", trainableLayers=5, height=96, width=128, steps=10, boxes=[5, 3], spread=0.7
        ),
        "resnet18, batch, an image without boxes": dict(
            backbone="resnet18", norm="batch", trainableLayers=3, height=72, width=64, steps=1, boxes=[0, 4]
        ),
        "mobilenet_v2, frozen, no boxes": dict(
            backbone="mobilenet_v2", norm="frozen", trainableLayers=2, height=64, width=64, steps=1, boxes=[0, 0]
        ),
    },
}


class FCOSRecorder(Recorder):
    rate = 0.0001
    outputs = {"logits": "cls_logits", "deltas": "bbox_regression", "centerness": "bbox_ctrness"}
    losses = {"classification": "classification", "boxRegression": "bbox_regression", "centerness": "bbox_ctrness"}

    def network(self, case):
        return FCOS(backbone_with_pyramid(case), case["classes"])

    def weight_range(self, name, shape):
        """Scores on both sides of the threshold, and distances of a few cells, most of them above 0."""
        known = backbone_range(name, shape)
        if known:
            return known
        if len(shape) == 4:
            bound = fan_in_bound(shape)
            bound *= 0.8 if "bbox_reg" in name else 0.5 if "cls_logits" in name or "ctrness" in name else 1.0
            return -bound, bound
        if name.endswith("cls_logits.bias"):
            return -4.0, -1.5
        if name.endswith("bbox_reg.bias"):
            return 1.0, 3.0
        if name.endswith("bbox_ctrness.bias"):
            return -0.5, 0.5
        norm = int(name.split(".")[-2]) % 3 == 1
        if norm:
            return (0.3, 0.9) if name.endswith("weight") else (0.6, 1.2)
        return -0.1, 0.1

    def detections(self, model, head, anchors, per_level, sizes):
        return model.postprocess_detections(*split(head, anchors, per_level), sizes)

    def loss(self, model, targets, head, anchors, per_level):
        return model.compute_loss(targets, head, anchors, per_level)


if __name__ == "__main__":
    main(FCOSRecorder(), __file__, FILES)
