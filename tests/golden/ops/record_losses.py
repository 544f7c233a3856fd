"""Records torchvision's detection losses with their gradients: RetinaNet's box losses, FCOS's and SSD's.

    python3 record_losses.py     # rewrites detection-losses.json beside this script

Debian 12's python3-torch (1.13) and python3-torchvision (0.14) made the committed file, in the format of record.py.
Labels are stored as dlfs has them, from 0; torchvision's SSD counts its background as class 0.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetRegressionHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from record import case, grid_anchors, leaf, random_boxes, write

CLASSES = 5
SIZE = 32.0


class Scene:
    """Three images of 4, 2 and 0 boxes, with anchors and what they are matched to."""

    def __init__(self, anchors, match):
        self.anchors = anchors
        self.boxes = [random_boxes(4, SIZE), random_boxes(2, SIZE), torch.zeros(0, 4)]
        self.labels = [torch.randint(0, CLASSES, (len(boxes),)) for boxes in self.boxes]
        background = torch.full((len(anchors),), -1)
        self.matches = [match(boxes, anchors) if len(boxes) else background for boxes in self.boxes]

    def targets(self, first_label=0):
        return [dict(boxes=boxes, labels=labels + first_label) for boxes, labels in zip(self.boxes, self.labels)]

    def arrays(self):
        boxes, labels = torch.zeros(3, 4, 4), torch.zeros(3, 4, dtype=torch.int32)
        for i, (own_boxes, own_labels) in enumerate(zip(self.boxes, self.labels)):
            boxes[i, : len(own_boxes)], labels[i, : len(own_labels)] = own_boxes, own_labels
        return dict(anchors=self.anchors, boxes=boxes, labels=labels, matches=torch.stack(self.matches))

    def near(self, encode, deviation=0.3):
        """Predictions near the encoded boxes of the foreground."""
        values = torch.randn(3, len(self.anchors), 4) * deviation
        for i, matches in enumerate(self.matches):
            index = torch.where(matches >= 0)[0]
            values[i, index] += encode(self.boxes[i][matches[index]], self.anchors[index])
        return values


def recorded(name, params, loss, scene, **inputs):
    loss.backward(retain_graph=True)
    arrays = {}
    for key, value in inputs.items():
        arrays[key], arrays[f"d{key}"] = value.detach(), value.grad.clone()
        value.grad = None
    return case(name, params, loss=loss.reshape(1), **arrays, **scene.arrays())


def retinanet_cases():
    scene = Scene(grid_anchors(32, 8, (16, 30)), lambda boxes, anchors: detection_utils.Matcher(0.5, 0.4, True)(box_iou(boxes, anchors)))
    head = RetinaNetRegressionHead(8, 1)
    deltas = scene.near(head.box_coder.encode_single).requires_grad_()
    cases = []
    for kind in ("l1", "smooth_l1", "giou", "diou", "ciou"):
        head._loss_type = kind
        loss = head.compute_loss(scene.targets(), dict(bbox_regression=deltas), [scene.anchors] * 3, scene.matches)
        params = dict(loss="box", kind=kind, normalization="image", coder="centre")
        cases.append(recorded(f"RetinaNet {kind}", params, loss, scene, deltas=deltas))
    return cases


def match_points(boxes, anchors):
    """The smallest box that contains an anchor's centre."""
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = ((centres[:, None] > boxes[None, :, :2]) & (centres[:, None] < boxes[None, :, 2:])).all(2)
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))[None].expand(inside.shape)
    least, index = torch.where(inside, areas, torch.tensor(float("inf"))).min(1)
    return torch.where(least < float("inf"), index, torch.tensor(-1))


def fcos_cases():
    scene = Scene(grid_anchors(32, 4, (8,)), match_points)
    head = FCOSHead(32, 1, CLASSES)
    logits = (torch.randn(3, len(scene.anchors), CLASSES) * 3).requires_grad_()
    deltas = F.relu(scene.near(lambda boxes, anchors: head.box_coder.encode(anchors, boxes))).requires_grad_()
    centerness = leaf(3, len(scene.anchors))
    outputs = dict(cls_logits=logits, bbox_regression=deltas, bbox_ctrness=centerness[:, :, None])
    losses = head.compute_loss(scene.targets(), outputs, [scene.anchors] * 3, scene.matches)
    common = dict(normalization="batch")
    classification = dict(loss="focal", alpha=0.25, gamma=2.0, **common)
    binary = F.binary_cross_entropy_with_logits(logits, one_hot(scene), reduction="sum") / foreground(scene)
    return [
        recorded("FCOS classification", classification, losses["classification"], scene, logits=logits),
        recorded("FCOS boxes", dict(loss="box", kind="giou", coder="linear", **common), losses["bbox_regression"], scene, deltas=deltas),
        recorded("FCOS centre-ness", dict(loss="centerness", **common), losses["bbox_ctrness"], scene, logits=centerness),
        recorded("binary cross-entropy", dict(loss="focal", alpha=-1.0, gamma=0.0, **common), binary, scene, logits=logits),
    ]


def one_hot(scene):
    target = torch.zeros(3, len(scene.anchors), CLASSES)
    for i, matches in enumerate(scene.matches):
        index = torch.where(matches >= 0)[0]
        target[i, index, scene.labels[i][matches[index]]] = 1.0
    return target


def foreground(scene):
    return sum(int((matches >= 0).sum()) for matches in scene.matches)


def ssd_cases():
    scene = Scene(grid_anchors(32, 8, (16, 30)), lambda boxes, anchors: detection_utils.SSDMatcher(0.5)(box_iou(boxes, anchors)))
    coder = detection_utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    deltas = scene.near(coder.encode_single, 1.0).requires_grad_()
    logits = (torch.randn(3, len(scene.anchors), CLASSES + 1) * 2).requires_grad_()
    cases = []
    for ratio in (3.0, 0.75):
        model = SimpleNamespace(box_coder=coder, neg_to_pos_ratio=ratio)
        losses = SSD.compute_loss(model, scene.targets(1), dict(bbox_regression=deltas, cls_logits=logits), [scene.anchors] * 3, scene.matches)
        params = dict(loss="cross entropy", ratio=ratio, normalization="batch")
        cases.append(recorded(f"SSD classification, ratio {ratio}", params, losses["classification"], scene, logits=logits))
    params = dict(loss="box", kind="smooth_l1", beta=1.0, weights=[10, 10, 5, 5], coder="centre", normalization="batch")
    cases.append(recorded("SSD boxes", params, losses["bbox_regression"], scene, deltas=deltas))
    target = torch.cat([torch.where(m >= 0, l[m.clip(min=0)] + 1, 0) if len(l) else torch.zeros_like(m) for m, l in zip(scene.matches, scene.labels)])
    everything = F.cross_entropy(logits.view(-1, CLASSES + 1), target, reduction="sum") / foreground(scene)
    params = dict(loss="cross entropy", ratio=-1.0, normalization="batch")
    cases.append(recorded("softmax cross-entropy", params, everything, scene, logits=logits))
    return cases


if __name__ == "__main__":
    torch.manual_seed(31)
    write("detection-losses", retinanet_cases() + fcos_cases() + ssd_cases())
