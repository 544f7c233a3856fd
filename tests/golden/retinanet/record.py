"""Records what torchvision's RetinaNet computes, for tests/models and scripts/compare-torchvision.ts.

    python3 record.py                    # rewrites golden.json beside this script: summaries of every tensor
    python3 record.py --full DIR CASE    # writes every number of one case, given as JSON, to DIR; --dtype float32

Debian 12's python3-torch (1.13) and python3-torchvision (0.14) made the committed file. No weights are stored: weights,
images and boxes come from a counter-based generator that network.ts implements in the same way, bit for bit.

A case: {"backbone", "norm": "batch" | "frozen", "trainableLayers", "classes", "n", "height", "width", "steps"}.
Tensors of a case, in torch's layouts:
    logits, deltas              head outputs in inference mode, (N, A, classes) and (N, A, 4)
    detections.I                of image I: rows x1, y1, x2, y2, score, label, best first
    losses                      (steps, 2): classification and box regression of each training step
    grad.NAME                   gradients of the first step
    after.NAME                  trained parameters and running statistics after the last step
golden.json has the losses and the first 20 detections of each image as they are, and of the other tensors a summary: the
Euclidean norm, the largest magnitude, the product with generated numbers in [-1, 1), and two of the values.
"""

import argparse
import json
import math
import os

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models import resnet
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

FOLDER = os.path.dirname(os.path.abspath(__file__))
RATE, MOMENTUM, DECAY = 0.000002, 0.9, 1e-4
SAMPLES = 2
DETECTIONS = 20

CASES = {
    "resnet50, frozen": dict(backbone="resnet50", norm="frozen", trainableLayers=5, height=96, width=128, steps=3),
    "resnet18, batch": dict(backbone="resnet18", norm="batch", trainableLayers=5, height=96, width=128, steps=3),
    "resnet18, batch, 3 layers": dict(backbone="resnet18", norm="batch", trainableLayers=3, height=100, width=72, steps=1),
    "resnext50_32x4d, frozen": dict(
        backbone="resnext50_32x4d", norm="frozen", trainableLayers=4, height=64, width=64, steps=1
    ),
}


def uniform(name, count, low=-1.0, high=1.0):
    """`count` float32 numbers in [low, high): element i hashes (name, i) (FNV-1a, then Murmur3's finaliser)."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x01000193) & 0xFFFFFFFF
    x = np.arange(1, count + 1, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(seed)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return (low + (high - low) * (x.astype(np.float64) / 2.0**32)).astype(np.float32)


def weight_range(name, shape):
    """Ranges that keep the activations' size from layer to layer and give scores on both sides of the threshold.

    Biases before a ReLU are positive, so that few of its inputs are near 0: where rounding decides on which side one lies, a
    gradient differs by a whole term (torch's own between fp32 and fp64 by up to 8e-3 in norm, with biases around 0).
    """
    if name.endswith("running_var"):
        return 0.5, 1.5
    if name.endswith("running_mean"):
        return -0.2, 0.2
    if len(shape) == 4:
        bound = math.sqrt(6.0 / (shape[1] * shape[2] * shape[3]))
        bound *= 0.01 if "cls_logits" in name else 0.02 if "bbox_reg" in name else 1.0
        return -bound, bound
    if name.endswith("weight"):
        return 0.3, 0.9
    if name.endswith("cls_logits.bias"):
        return -5.0, -3.0
    if "backbone.body." in name:
        return 1.0, 2.0
    return (0.6, 1.2) if "_head.conv." in name else (-0.1, 0.1)


def build(case, dtype):
    norm = FrozenBatchNorm2d if case["norm"] == "frozen" else nn.BatchNorm2d
    network = getattr(resnet, case["backbone"])(weights=None, norm_layer=norm)
    backbone = _resnet_fpn_extractor(
        network, case["trainableLayers"], returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = RetinaNet(backbone, case["classes"])
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                low, high = weight_range(name, tensor.shape)
                tensor.copy_(torch.from_numpy(uniform(name, tensor.numel(), low, high)).view(tensor.shape))
    return model.to(dtype)


def inputs(case, dtype):
    """Images (N, 3, H, W) and targets; the boxes of an image grow in number from image to image: 1, 2, 3, ..."""
    n, height, width = case["n"], case["height"], case["width"]
    images = torch.from_numpy(uniform("images", n * 3 * height * width, -2.0, 2.0)).view(n, 3, height, width)
    targets = []
    for image in range(n):
        random = uniform(f"boxes of image {image}", 5 * (image + 1), 0.0, 1.0).astype(np.float64).reshape(-1, 5)
        boxes = [
            [x * 0.5 * width, y * 0.5 * height, (x * 0.5 + 0.1 + 0.4 * w) * width, (y * 0.5 + 0.1 + 0.4 * h) * height]
            for x, y, w, h, _ in random
        ]
        labels = [1 + int(label * (case["classes"] - 1)) for *_, label in random]
        rounded = torch.tensor(boxes, dtype=torch.float32).to(dtype)
        targets.append({"boxes": rounded, "labels": torch.tensor(labels)})
    return images.to(dtype), targets


def compute(case, dtype=torch.float64):
    """All tensors of a case by name, float32; torch computes in `dtype`. In double only one side of a comparison rounds."""
    model = build(case, dtype)
    images, targets = inputs(case, dtype)
    sizes = [(case["height"], case["width"])] * case["n"]
    out = {}

    def forward():
        features = list(model.backbone(images).values())
        return features, model.head(features), model.anchor_generator(ImageList(images, sizes), features)

    model.eval()
    with torch.no_grad():
        features, head, anchors = forward()
        out["logits"], out["deltas"] = head["cls_logits"], head["bbox_regression"]
        per_level = [f.shape[2] * f.shape[3] * 9 for f in features]
        split = {name: list(tensor.split(per_level, dim=1)) for name, tensor in head.items()}
        found = model.postprocess_detections(split, [list(a.split(per_level)) for a in anchors], sizes)
        for i, image in enumerate(found):
            columns = [image["boxes"], image["scores"][:, None], image["labels"][:, None].to(dtype)]
            out[f"detections.{i}"] = torch.cat(columns, dim=1)

    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    losses = []
    for step in range(case["steps"]):
        optimizer.zero_grad()
        _, head, anchors = forward()
        loss = model.compute_loss(targets, head, anchors)
        losses.append([loss["classification"].item(), loss["bbox_regression"].item()])
        sum(loss.values()).backward()
        if step == 0:
            out.update({f"grad.{name}": p.grad.clone() for name, p in trained.items()})
        optimizer.step()
    out["losses"] = torch.tensor(losses)
    for name, tensor in model.state_dict().items():
        if name in trained or (case["norm"] == "batch" and "running_" in name):
            out[f"after.{name}"] = tensor
    return {name: tensor.detach().numpy().astype("<f4") for name, tensor in out.items()}


def summary(name, array):
    flat = array.astype(np.float64).ravel()
    projection = float(flat @ uniform(f"projection of {name}", flat.size).astype(np.float64))
    samples = [float(flat[(k * 2654435761 + 12345) % flat.size]) for k in range(SAMPLES)]
    numbers = [float(np.linalg.norm(flat)), float(np.abs(flat).max()), projection, *samples]
    return {"shape": list(array.shape), "values": [float(f"{x:.8g}") for x in numbers]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", nargs=2, metavar=("DIR", "CASE"))
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    torch.manual_seed(0)
    if options.full:
        folder, case = options.full[0], json.loads(options.full[1])
        index, offset = {}, 0
        with open(os.path.join(folder, "tensors.bin"), "wb") as file:
            for name, array in compute(case, dtype).items():
                index[name] = {"shape": list(array.shape), "offset": offset}
                offset += file.write(np.ascontiguousarray(array).tobytes())
        with open(os.path.join(folder, "index.json"), "w") as file:
            json.dump({"versions": versions, "tensors": index}, file)
        return
    cases = []
    for name, given in CASES.items():
        case = {**given, "classes": 11, "n": 2}
        tensors = {}
        for key, array in compute(case, dtype).items():
            if key == "losses" or key.startswith("detections"):
                values = [float(f"{x:.8g}") for x in array[:DETECTIONS].ravel()]
                tensors[key] = {"shape": list(array.shape), "values": values}
            else:
                tensors[key] = summary(key, array)
        cases.append({"name": name, "case": case, "tensors": tensors})
        print(name, tensors["losses"], {k: t["shape"] for k, t in tensors.items() if k.startswith("detections")})
    with open(os.path.join(FOLDER, "golden.json"), "w") as file:
        file.write('{"versions": %s,\n"cases": [\n' % json.dumps(versions))
        for i, case in enumerate(cases):
            rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(tensor)}" for name, tensor in case["tensors"].items())
            file.write('{"name": %s, "case": %s, "tensors": {\n%s\n}}%s\n'
                       % (json.dumps(case["name"]), json.dumps(case["case"]), rows, "," if i + 1 < len(cases) else ""))
        file.write("]}\n")


if __name__ == "__main__":
    main()
