"""Records torchvision's numbers for SSD's and FCOS's matching, box coding and post-processing, and their anchors; and
Soft-NMS, which torchvision does not have, from the paper's pseudocode.

    python3 record_detection.py  # rewrites detection.json beside this script

Debian 12's python3-torch (1.13) and python3-torchvision (0.14) made the committed file; its form is record.py's. What the
models compute is computed by their own methods, without a backbone.
"""

from types import SimpleNamespace

import torch
from record import case, grid_anchors, random_boxes, write
from torch import nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou


def images_of(height, width):
    return ImageList(torch.zeros(1, 3, height, width), [(height, width)])


def maps(features):
    return [torch.zeros(1, 1, *feature) for feature in features]


def ssd_match_cases():
    torch.manual_seed(21)
    anchors = grid_anchors()
    cases = []
    for name, threshold in [("SSD matcher", 0.5), ("SSD matcher, low threshold", 0.2)]:
        boxes = random_boxes(9, 64.0)
        boxes[1] = boxes[0]  # the same best anchor: the last of both gets it
        boxes[5] = anchors[40]
        boxes[6] = torch.tensor([20.0, 20.0, 22.0, 22.0])  # inside several anchors, with the same IoU
        boxes[7] = torch.tensor([500.0, 500.0, 520.0, 510.0])  # meets no anchor: the first is its best
        matches = detection_utils.SSDMatcher(threshold)(box_iou(boxes, anchors))
        cases.append(case(name, dict(task="ssd matches", threshold=threshold), anchors=anchors, boxes=boxes, matches=matches))
    return cases


class Recorder(nn.Module):
    """Stands for FCOS's head: its compute_loss is given the matches that FCOS.compute_loss has found."""

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        return matched_idxs


FCOS_SIZES = ((8,), (16,), (32,), (64,), (128,))


def fcos_anchors(height, width):
    generator = AnchorGenerator(FCOS_SIZES, ((1.0,),) * len(FCOS_SIZES))
    features = [(-(-height // size), -(-width // size)) for (size,) in FCOS_SIZES]
    return generator(images_of(height, width), maps(features))[0], features


def point_match_cases():
    torch.manual_seed(22)
    cases = []
    for name, height, width, count, radius in [("points", 96, 160, 12, 1.5), ("points, wide radius", 128, 96, 30, 3.0)]:
        anchors, features = fcos_anchors(height, width)
        levels = [h * w for h, w in features]
        # all sizes, so that every level has matches
        boxes = torch.cat([random_boxes(count // 3, size) for size in (40.0, 90.0, 160.0)])
        boxes[2] = boxes[1]  # equal areas: the lower index wins
        boxes[3] = torch.cat([boxes[1, :2], boxes[1, 2:] + 0.01])  # areas that fp32 cannot tell apart
        boxes[4] = torch.tensor([0.0, 0.0, width, height])
        model = SimpleNamespace(center_sampling_radius=radius, head=Recorder())
        matches = FCOS.compute_loss(model, [{"boxes": boxes}], {}, [anchors], levels)[0]
        cases.append(case(name, dict(task="points", radius=radius, first=levels[0], last=levels[-1], height=height, width=width,
                                     features=features), anchors=anchors, boxes=boxes, matches=matches))
    return cases


def coder_cases():
    torch.manual_seed(23)
    coder = detection_utils.BoxLinearCoder(normalize_by_size=True)
    anchors, deltas = random_boxes(20), torch.randn(20, 4).abs() * 3
    return [case("linear coder", dict(task="linear coder"), anchors=anchors, deltas=deltas, decoded=coder.decode(deltas, anchors))]


def default_box_cases():
    cases = []
    for name, size, features, options in [
        ("SSDLite", (320, 320), [(20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)],
         dict(aspect_ratios=[[2, 3] for _ in range(6)], min_ratio=0.2, max_ratio=0.95)),
        ("SSD300's scales and steps", (300, 300), [(19, 19), (10, 10), (5, 5)],
         dict(aspect_ratios=[[2], [2, 3], [2]], scales=[0.07, 0.15, 0.33, 0.51], steps=[16, 32, 64])),
        ("not clipped, not square, one level", (96, 160), [(3, 5)], dict(aspect_ratios=[[1.5]], min_ratio=0.9, max_ratio=1.4, clip=False)),
    ]:
        boxes = DefaultBoxGenerator(**options)(images_of(*size), maps(features))[0]
        cases.append(case(name, dict(task="default boxes", size=size, features=features, options=options), boxes=boxes))
    return cases


def ssd_detection_cases():
    torch.manual_seed(24)
    generator = DefaultBoxGenerator([[2], [2, 3]], min_ratio=0.2, max_ratio=0.8)
    sizes = [(96, 128), (90, 100)]
    anchors = generator(ImageList(torch.zeros(2, 3, 96, 128), sizes), maps([(6, 8), (3, 4)]))
    a, classes = anchors[0].shape[0], 6
    logits, deltas = torch.randn(2, a, classes) * 2, torch.randn(2, a, 4)
    cases = []
    for name, options in [
        ("SSD", dict(score_thresh=0.2, topk_candidates=40, nms_thresh=0.45, detections_per_img=50)),
        ("SSD, more than there are", dict(score_thresh=0.85, topk_candidates=1000, nms_thresh=0.55, detections_per_img=300)),
    ]:
        model = SimpleNamespace(box_coder=detection_utils.BoxCoder(weights=(10.0, 10.0, 5.0, 5.0)), **options)
        found = SSD.postprocess_detections(model, dict(cls_logits=logits, bbox_regression=deltas), anchors, sizes)
        cases.append(detections_case(name, "ssd", options, found, logits, deltas, anchors[0], sizes))
    return cases


def fcos_detection_cases():
    torch.manual_seed(25)
    height, width, classes = 96, 128, 5
    anchors, features = fcos_anchors(height, width)
    levels = [h * w for h, w in features]
    sizes = [(96, 120), (90, 128)]
    a = anchors.shape[0]
    logits, deltas, centerness = torch.randn(2, a, classes) * 2, torch.randn(2, a, 4).abs() * 2, torch.randn(2, a, 1) * 2
    cases = []
    for name, options in [
        ("FCOS", dict(score_thresh=0.3, topk_candidates=100, nms_thresh=0.6, detections_per_img=60)),
        ("FCOS, more than there are", dict(score_thresh=0.9, topk_candidates=1000, nms_thresh=0.3, detections_per_img=200)),
    ]:
        model = SimpleNamespace(box_coder=detection_utils.BoxLinearCoder(normalize_by_size=True), **options)
        heads = dict(cls_logits=logits, bbox_regression=deltas, bbox_ctrness=centerness)
        split = {key: list(value.split(levels, 1)) for key, value in heads.items()}
        found = FCOS.postprocess_detections(model, split, [list(anchors.split(levels))] * 2, sizes)
        cases.append(detections_case(name, "fcos", dict(options, levels=levels), found, logits, deltas, anchors, sizes, centerness))
    return cases


def detections_case(name, task, options, found, logits, deltas, anchors, sizes, centerness=None):
    """Detections of both images in one array, (count, 6): x1, y1, x2, y2, score, label; `counts` of each image."""
    rows = [torch.cat([d["boxes"], d["scores"][:, None], d["labels"][:, None].float()], 1) for d in found]
    assert min(len(row) for row in rows) > 3
    return case(name, dict(task=task, **options), logits=logits, deltas=deltas, anchors=anchors, centerness=centerness,
                sizes=torch.tensor(sizes).float(), detections=torch.cat(rows), counts=torch.tensor([len(row) for row in rows]))


def soft_nms(boxes, scores, labels, kind, threshold, sigma, least):
    """Bodla et al. 2017, figure 3, for each class: kept indices, best first, and their decayed scores."""
    scores, left = scores.clone(), list(range(len(boxes)))
    keep, kept_scores = [], []
    while left := [i for i in left if scores[i] > least]:
        best = max(left, key=lambda i: (scores[i].item(), -i))
        keep.append(best)
        kept_scores.append(scores[best].item())
        left.remove(best)
        for i in left:
            if labels[i] == labels[best]:
                iou = box_iou(boxes[best : best + 1], boxes[i : i + 1])[0, 0]
                if kind == "gaussian":
                    scores[i] *= torch.exp(-(iou * iou) / sigma)
                elif iou > threshold:
                    scores[i] *= 1 - iou
    return torch.tensor(keep), torch.tensor(kept_scores)


def soft_nms_cases():
    torch.manual_seed(26)
    cases = []
    for kind in ("linear", "gaussian"):
        params = dict(kind=kind, threshold=0.3, sigma=0.5, least=0.05)
        boxes, scores, labels = random_boxes(60, 60.0), torch.rand(60), torch.randint(0, 3, (60,))
        keep, kept_scores = soft_nms(boxes, scores, labels, **params)
        cases.append(case(f"soft NMS, {kind}", dict(task="soft nms", **params), boxes=boxes, scores=scores, labels=labels, keep=keep,
                          keepScores=kept_scores))
    return cases


if __name__ == "__main__":
    write("detection", ssd_match_cases() + point_match_cases() + coder_cases() + default_box_cases() + ssd_detection_cases()
          + fcos_detection_cases() + soft_nms_cases())
