"""What the recorders of torchvision's detectors share: generated weights, images and boxes, and the form of the files.

Each of retinanet/record.py, fcos/record.py and ssdlite/record.py describes its model as a Recorder and ends in main(), so that

    python3 record.py [FILE ...]         # rewrites the golden files (or those named) beside it: summaries of every tensor
    python3 record.py --full DIR CASE    # writes every number of one case, given as JSON, to DIR; --dtype float32

Debian 12's python3-torch (1.13) and python3-torchvision (0.14) made the committed files. No weights are stored: weights,
images and boxes come from a counter-based generator that network.ts, beside this file, implements in the same way, bit for bit.

A case: {"classes", "n", "height", "width", "steps"} and what the model's recorder reads, such as "backbone" and "norm"; "boxes",
the number of boxes of each image (default 1, 2, ...); "spread", the range of boxes' sizes as a part of the image's (default 0.4).
Tensors of a case, in torch's layouts:
    logits, deltas, ...         head outputs in inference mode, (N, A, classes), (N, A, 4), ...
    detections.I                of image I: rows x1, y1, x2, y2, score, label, best first
    losses                      (steps, losses): those of each training step
    grad.NAME                   gradients of the first step
    after.NAME                  trained parameters and running statistics after the last step
Golden files have the losses and the first 20 detections of each image as they are, and of the other tensors a summary: the
Euclidean norm, the largest magnitude, the product with generated numbers in [-1, 1), and two of the values. Where a case has
"every": K, only every Kth gradient and parameter.
"""

import argparse
import json
import math
import os

import numpy as np
import torch
import torchvision
from torchvision.models.detection.image_list import ImageList

MOMENTUM, DECAY = 0.9, 1e-4
SAMPLES = 2
DETECTIONS = 20


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


def fan_in_bound(shape):
    """The bound of a uniform distribution with variance 2 / fan in, which keeps activations' size from layer to layer."""
    return math.sqrt(6.0 / (shape[1] * shape[2] * shape[3]))


class Recorder:
    """A model of torchvision: how it is built and run. `outputs` and `losses` map dlfs's names to torchvision's."""

    rate = 0.000002
    outputs = {"logits": "cls_logits", "deltas": "bbox_regression"}
    losses = {"classification": "classification", "boxRegression": "bbox_regression"}
    cells = 1
    """Anchors of a cell."""

    def network(self, case):
        """The model with torchvision's initial weights."""
        raise NotImplementedError

    def weight_range(self, name, shape):
        """The range of a parameter's or buffer's generated values."""
        raise NotImplementedError

    def detections(self, model, head, anchors, per_level, sizes):
        raise NotImplementedError

    def loss(self, model, targets, head, anchors, per_level):
        """The losses by torchvision's names."""
        raise NotImplementedError

    def build(self, case, dtype):
        model = self.network(case)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    low, high = self.weight_range(name, tensor.shape)
                    tensor.copy_(torch.from_numpy(uniform(name, tensor.numel(), low, high)).view(tensor.shape))
        return model.to(dtype)

    def forward(self, model, images, sizes):
        """Head outputs of all anchors, anchors of each image, anchors of each level."""
        features = list(model.backbone(images).values())
        anchors = model.anchor_generator(ImageList(images, sizes), features)
        return model.head(features), anchors, [f.shape[2] * f.shape[3] * self.cells for f in features]

    def compute(self, case, dtype=torch.float64):
        """All tensors of a case by name, float32; torch computes in `dtype`. In double only one side of a comparison rounds."""
        model = self.build(case, dtype)
        images, targets = inputs(case, dtype)
        sizes = [(case["height"], case["width"])] * case["n"]
        out = {}

        model.eval()
        with torch.no_grad():
            head, anchors, per_level = self.forward(model, images, sizes)
            out.update({name: head[theirs] for name, theirs in self.outputs.items()})
            for i, image in enumerate(self.detections(model, head, anchors, per_level, sizes)):
                columns = [image["boxes"], image["scores"][:, None], image["labels"][:, None].to(dtype)]
                out[f"detections.{i}"] = torch.cat(columns, dim=1)

        model.train()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trained.values(), lr=self.rate, momentum=MOMENTUM, weight_decay=DECAY)
        losses = []
        for step in range(case["steps"]):
            optimizer.zero_grad()
            loss = self.loss(model, targets, *self.forward(model, images, sizes))
            losses.append([loss[theirs].item() for theirs in self.losses.values()])
            sum(loss.values()).backward()
            if step == 0:
                out.update({f"grad.{name}": p.grad.clone() for name, p in trained.items()})
            optimizer.step()
        out["losses"] = torch.tensor(losses)
        for name, tensor in model.state_dict().items():
            if name in trained or (case.get("norm") != "frozen" and "running_" in name):
                out[f"after.{name}"] = tensor
        return {name: tensor.detach().numpy().astype("<f4") for name, tensor in out.items()}


def split(head, anchors, per_level):
    """Head outputs and anchors in lists of levels, as torchvision's postprocess_detections takes them."""
    levels = {name: list(tensor.split(per_level, dim=1)) for name, tensor in head.items()}
    return levels, [list(a.split(per_level)) for a in anchors]


def inputs(case, dtype):
    """Images (N, 3, H, W) and targets."""
    n, height, width, spread = case["n"], case["height"], case["width"], case.get("spread", 0.4)
    images = torch.from_numpy(uniform("images", n * 3 * height * width, -2.0, 2.0)).view(n, 3, height, width)
    targets = []
    for image, count in enumerate(case.get("boxes", range(1, n + 1))):
        random = uniform(f"boxes of image {image}", 5 * count, 0.0, 1.0).astype(np.float64).reshape(-1, 5)
        boxes, rest = [], 0.9 - spread
        for x, y, w, h, _ in random:
            x1, y1 = x * rest, y * rest
            boxes.append([x1 * width, y1 * height, (x1 + 0.1 + spread * w) * width, (y1 + 0.1 + spread * h) * height])
        labels = [1 + int(label * (case["classes"] - 1)) for *_, label in random]
        rounded = torch.tensor(boxes, dtype=torch.float32).view(-1, 4).to(dtype)
        targets.append({"boxes": rounded, "labels": torch.tensor(labels, dtype=torch.int64)})
    return images.to(dtype), targets


def summary(name, array):
    flat = array.astype(np.float64).ravel()
    projection = float(flat @ uniform(f"projection of {name}", flat.size).astype(np.float64))
    samples = [float(flat[(k * 2654435761 + 12345) % flat.size]) for k in range(SAMPLES)]
    numbers = [float(np.linalg.norm(flat)), float(np.abs(flat).max()), projection, *samples]
    return {"shape": list(array.shape), "values": [float(f"{x:.8g}") for x in numbers]}


def record(recorder, name, case):
    tensors, index = {}, 0
    for key, array in recorder.compute(case).items():
        if key == "losses" or key.startswith("detections"):
            values = [float(f"{x:.8g}") for x in array[:DETECTIONS].ravel()]
            tensors[key] = {"shape": list(array.shape), "values": values}
            continue
        index += key.startswith(("grad.", "after."))
        if index % case.get("every", 1) == 0:
            tensors[key] = summary(key, array)
    print(name, tensors["losses"], {k: t["shape"] for k, t in tensors.items() if k.startswith("detections")}, flush=True)
    return {"name": name, "case": case, "tensors": tensors}


def versions():
    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}


def write_golden(path, cases):
    with open(path, "w") as file:
        file.write('{"versions": %s,\n"cases": [\n' % json.dumps(versions()))
        for i, case in enumerate(cases):
            rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(tensor)}" for name, tensor in case["tensors"].items())
            file.write('{"name": %s, "case": %s, "tensors": {\n%s\n}}%s\n'
                       % (json.dumps(case["name"]), json.dumps(case["case"]), rows, "," if i + 1 < len(cases) else ""))
        file.write("]}\n")


def write_full(folder, tensors):
    index, offset = {}, 0
    with open(os.path.join(folder, "tensors.bin"), "wb") as file:
        for name, array in tensors.items():
            index[name] = {"shape": list(array.shape), "offset": offset}
            offset += file.write(np.ascontiguousarray(array).tobytes())
    with open(os.path.join(folder, "index.json"), "w") as file:
        json.dump({"versions": versions(), "tensors": index}, file)


def main(recorder, script, files):
    """`files`: of each golden file its cases by name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--full", nargs=2, metavar=("DIR", "CASE"))
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.full:
        folder, case = options.full[0], json.loads(options.full[1])
        write_full(folder, recorder.compute(case, getattr(torch, options.dtype)))
        return
    for file in options.files or files:
        cases = [record(recorder, name, {"classes": 11, "n": 2, **given}) for name, given in files[file].items()]
        write_golden(os.path.join(os.path.dirname(os.path.abspath(script)), file), cases)
