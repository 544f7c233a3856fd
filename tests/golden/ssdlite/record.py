"""Records what torchvision's SSD with SSDLite's heads computes on MobileNetV2, for tests/models and
scripts/compare-torchvision.ts: see detectors/common.py.

torchvision has SSDLite on MobileNetV3 only; here a MobileNetV2, whose blocks call their layers `conv` instead of `block`, goes
into the same SSDLiteFeatureExtractorMobileNet. A case has "widthMultiplier" and "trainableLayers", the stages of
MobileNetV2 that train; "classes" counts the background.
"""

import os
import sys
from functools import partial

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _mobilenet_extractor
from torchvision.models.mobilenetv2 import mobilenet_v2
from torchvision.ops import box_iou

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "detectors"))
from common import Recorder, fan_in_bound, main  # noqa: E402

FILES = {
    "golden.json": {
        "width 0.35": dict(
            widthMultiplier=0.35, trainableLayers=6, n=4, height=160, width=192, steps=10, boxes=[2, 3, 1, 4], spread=0.8, every=2
        ),
        "width 0.5, 2 stages trained, an image without boxes": dict(
            widthMultiplier=0.5, trainableLayers=2, n=3, height=130, width=160, steps=1, boxes=[0, 5, 2], every=2
        ),
    },
}

EXPANDED = 14
"""The last block that halves the resolution: C4."""


class SSDLiteRecorder(Recorder):
    rate = 0.0001

    def network(self, case):
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        network = mobilenet_v2(weights=None, width_mult=case["widthMultiplier"], norm_layer=norm)
        network.features[EXPANDED].block = network.features[EXPANDED].conv
        backbone = _mobilenet_extractor(network, case["trainableLayers"], norm)
        boxes = DefaultBoxGenerator([[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)
        channels = [
            network.features[EXPANDED].conv[0].out_channels,
            network.features[-1].out_channels,
            *(block[-1].out_channels for block in backbone.extra),
        ]
        return SSD(
            backbone,
            boxes,
            (case["width"], case["height"]),
            case["classes"],
            head=SSDLiteHead(channels, boxes.num_anchors_per_location(), case["classes"], norm),
            score_thresh=0.001,
            nms_thresh=0.55,
            detections_per_img=300,
            topk_candidates=300,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )

    def weight_range(self, name, shape):
        """Before most ReLU6s values around 1.5, so that many lie between 0 and 6 and some beyond either."""
        if name.endswith("running_var"):
            return 0.5, 1.5
        if name.endswith("running_mean"):
            return -0.2, 0.2
        parts = name.split(".")
        if parts[0] == "head" and len(parts) == 6 and parts[4] == "1":  # the last convolutions
            return (-0.3 * fan_in_bound(shape), 0.3 * fan_in_bound(shape)) if len(shape) == 4 else (-1.0, 1.0)
        if len(shape) == 4:
            return -fan_in_bound(shape), fan_in_bound(shape)
        if name.endswith("weight"):
            return 0.3, 0.9
        linear = parts[-3] == "conv" or name.startswith("backbone.features.1.0.3.")
        return (-0.1, 0.1) if linear else (0.0, 3.0)

    def detections(self, model, head, anchors, per_level, sizes):
        return model.postprocess_detections(head, anchors, sizes)

    def loss(self, model, targets, head, anchors, per_level):
        matched = []
        for boxes, target in zip(anchors, targets):
            if target["boxes"].numel() == 0:
                matched.append(torch.full((boxes.size(0),), -1, dtype=torch.int64))
            else:
                matched.append(model.proposal_matcher(box_iou(target["boxes"], boxes)))
        return model.compute_loss(targets, head, anchors, matched)


if __name__ == "__main__":
    main(SSDLiteRecorder(), __file__, FILES)
