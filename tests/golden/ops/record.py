"""Records PyTorch's and torchvision's numbers for the operation and layer tests.

    python3 record.py            # rewrites the *.json files beside this script

Debian 12's python3-torch (1.13), python3-torchvision (0.14), python3-numpy and python3-pil made the committed files.
Each file is {"versions": ..., "cases": [{"name", "params", "arrays"}]}; an array is {"shape", "dtype", "data"} with
base64 of its little-endian bytes. Image batches are stored as (N, H, W, C) and weights as (K, R, S, C / groups).
Images (JPEG files) are recorded by record_images.py.
"""

import base64
import json
import os

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.detection import _utils as detection_utils
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.ops import batched_nms, box_iou, sigmoid_focal_loss

FOLDER = os.path.dirname(os.path.abspath(__file__))
DTYPES = {"float32": "f32", "int32": "i32", "uint8": "u8", "int64": "i32"}


def encode(value):
    array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    dtype = DTYPES[array.dtype.name]
    array = array.astype({"f32": "<f4", "i32": "<i4", "u8": "u1"}[dtype])
    return {"shape": list(array.shape), "dtype": dtype, "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def case(name, params=None, **arrays):
    return {"name": name, "params": params or {}, "arrays": {key: encode(value) for key, value in arrays.items() if value is not None}}


def write(name, cases):
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__}
    with open(os.path.join(FOLDER, f"{name}.json"), "w") as file:
        json.dump({"versions": versions, "cases": cases}, file, indent=1)
        file.write("\n")


def nhwc(x):
    """(N, C, H, W) activations or (K, C, R, S) weights with the channels last."""
    return None if x is None else x.detach().permute(0, 2, 3, 1)


def leaf(*shape):
    return torch.randn(*shape).requires_grad_()


# ---- convolution ----


def conv_cases():
    torch.manual_seed(1)
    cases = []
    # n, h, w, c, k, (r, s), stride, padding, dilation, groups, bias
    table = [
        ("1x1", 2, 5, 6, 7, 9, (1, 1), (1, 1), (0, 0), (1, 1), 1, True),
        ("3x3", 2, 6, 5, 4, 6, (3, 3), (1, 1), (1, 1), (1, 1), 1, True),
        ("3x3 stride 2, odd size", 1, 9, 8, 4, 5, (3, 3), (2, 2), (1, 1), (1, 1), 1, False),
        ("7x7 stride 2, 3 channels", 1, 17, 15, 3, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1, False),
        ("5x3 with unequal strides and padding", 1, 9, 7, 3, 4, (5, 3), (2, 1), (2, 1), (1, 1), 1, True),
        ("3x3 dilation 2", 1, 8, 8, 4, 4, (3, 3), (1, 1), (2, 2), (2, 2), 1, True),
        ("3x3 in 2 groups", 1, 5, 5, 6, 4, (3, 3), (1, 1), (1, 1), (1, 1), 2, True),
        ("3x3 depthwise stride 2", 2, 7, 7, 8, 8, (3, 3), (2, 2), (1, 1), (1, 1), 8, True),
        ("3x3 depthwise, 2 per channel", 1, 5, 5, 3, 6, (3, 3), (1, 1), (1, 1), (1, 1), 3, False),
    ]
    for name, n, h, w, c, k, kernel, stride, padding, dilation, groups, has_bias in table:
        x, weight = leaf(n, c, h, w), leaf(k, c // groups, *kernel)
        bias = leaf(k) if has_bias else None
        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        dy = torch.randn_like(y)
        y.backward(dy)
        params = dict(n=n, h=h, w=w, c=c, k=k, r=kernel[0], s=kernel[1], stride=stride, padding=padding, dilation=dilation, groups=groups)
        cases.append(
            case(name, params, x=nhwc(x), w=nhwc(weight), bias=bias, y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad), dw=nhwc(weight.grad),
                 dbias=None if bias is None else bias.grad)
        )
    return cases


# ---- normalisation ----


def norm_cases():
    torch.manual_seed(2)
    cases = []
    for name, shape, residual, relu in [
        ("plain", (2, 5, 4, 3), False, False),
        ("relu", (2, 3, 4, 4), False, True),
        ("residual and relu", (3, 7, 3, 2), True, True),
    ]:
        c = shape[1]
        x = (torch.randn(*shape) * 2 + 3).requires_grad_()
        z = leaf(*shape) if residual else None
        norm = nn.BatchNorm2d(c, eps=1e-3, momentum=0.3)
        norm.weight.data, norm.bias.data = torch.rand(c) + 0.5, torch.randn(c)
        norm.running_mean, norm.running_var = torch.randn(c), torch.rand(c) + 0.5
        before = norm.running_mean.clone(), norm.running_var.clone()
        norm.eval()
        inferred = norm(x) + (z if residual else 0)
        inferred = F.relu(inferred) if relu else inferred
        norm.train()
        y = norm(x) + (z if residual else 0)
        y = F.relu(y) if relu else y
        dy = torch.randn_like(y)
        y.backward(dy)
        cases.append(
            case(name, dict(shape=[shape[0], shape[2], shape[3], c], eps=1e-3, momentum=0.3, relu=relu), x=nhwc(x), residual=nhwc(z),
                 weight=norm.weight, bias=norm.bias, runningMean=before[0], runningVar=before[1], newMean=norm.running_mean,
                 newVar=norm.running_var, y=nhwc(y), inferred=nhwc(inferred), dy=nhwc(dy), dx=nhwc(x.grad),
                 dresidual=None if z is None else nhwc(z.grad), dweight=norm.weight.grad, dbias=norm.bias.grad)
        )
    return cases


# ---- pooling, resampling ----


def pool_cases():
    torch.manual_seed(3)
    cases = []
    for name, shape, kernel, stride, padding in [
        ("max 3x3 stride 2", (2, 3, 7, 9), (3, 3), (2, 2), (1, 1)),
        ("max 2x2", (1, 5, 6, 5), (2, 2), (2, 2), (0, 0)),
        ("max 3x2 stride 1x2", (1, 2, 5, 6), (3, 2), (1, 2), (1, 0)),
        ("max of equals", (1, 3, 8, 8), (3, 3), (2, 2), (1, 1)),
    ]:
        x = torch.randint(0, 3, shape).float().requires_grad_() if "equals" in name else leaf(*shape)
        y, index = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
        dy = torch.randn_like(y)
        y.backward(dy)
        params = dict(kernel=kernel, stride=stride, padding=padding)
        # torch's index is the position in the image plane
        cases.append(case(name, params, x=nhwc(x), y=nhwc(y), plane=nhwc(index), dy=nhwc(dy), dx=nhwc(x.grad)))
    for name, shape, kernel, stride, padding, include in [
        ("avg 3x3 stride 2, padding counted", (2, 3, 7, 6), (3, 3), (2, 2), (1, 1), True),
        ("avg 3x3 stride 2, padding not counted", (2, 3, 7, 6), (3, 3), (2, 2), (1, 1), False),
        ("avg over the image", (2, 6, 4, 5), (4, 5), (1, 1), (0, 0), True),
    ]:
        x = leaf(*shape)
        y = F.avg_pool2d(x, kernel, stride, padding, count_include_pad=include)
        dy = torch.randn_like(y)
        y.backward(dy)
        params = dict(kernel=kernel, stride=stride, padding=padding, countIncludePad=include)
        cases.append(case(name, params, x=nhwc(x), y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad)))
    for name, shape, size in [
        ("upsample x2", (2, 3, 3, 4), (6, 8)),
        ("upsample 5x4 to 7x9", (1, 2, 5, 4), (7, 9)),
        ("upsample 3x3 to 7x5", (1, 2, 3, 3), (7, 5)),
    ]:
        x = leaf(*shape)
        y = F.interpolate(x, size=size, mode="nearest")
        dy = torch.randn_like(y)
        y.backward(dy)
        cases.append(case(name, dict(size=size), x=nhwc(x), y=nhwc(y), dy=nhwc(dy), dx=nhwc(x.grad)))
    return cases


def activation_cases():
    torch.manual_seed(4)
    special = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1.0, -1.0, 17.0, -17.0, 60.0, -60.0, 100.0, -100.0, 3e38, -3e38])
    cases = []
    for name, function in [("relu", F.relu), ("sigmoid", torch.sigmoid), ("silu", F.silu)]:
        x = torch.cat([special, torch.randn(48) * 4]).requires_grad_()
        y = function(x)
        dy = torch.randn_like(y)
        y.backward(dy)
        cases.append(case(name, {}, x=x, y=y, dy=dy, dx=x.grad))
    return cases


# ---- optimizer ----


def sgd_cases():
    torch.manual_seed(5)
    cases = []
    for name, momentum, nesterov in [("plain", 0.0, False), ("momentum", 0.9, False), ("nesterov", 0.9, True)]:
        sizes, decays, factors = [5, 33, 1], [0.0, 1e-2, 5e-4], [1.0, 0.5, 2.0]
        parameters = [torch.randn(n).requires_grad_() for n in sizes]
        rates = [0.1, 0.05, 0.02]
        optimizer = torch.optim.SGD(
            [dict(params=[p], weight_decay=d, lr=1.0) for p, d in zip(parameters, decays)], lr=1.0, momentum=momentum, nesterov=nesterov
        )
        arrays = {f"p{i}": p.detach().clone() for i, p in enumerate(parameters)}
        for step, rate in enumerate(rates):
            for i, (group, factor, p) in enumerate(zip(optimizer.param_groups, factors, parameters)):
                group["lr"] = rate * factor
                p.grad = torch.randn_like(p)
                arrays[f"g{i}.{step}"] = p.grad.clone()
            optimizer.step()
            arrays.update({f"p{i}.{step}": p.detach().clone() for i, p in enumerate(parameters)})
        params = dict(momentum=momentum, nesterov=nesterov, rates=rates, sizes=sizes, decays=decays, factors=factors)
        cases.append(case(name, params, **arrays))
    return cases


# ---- detection ----


def random_boxes(count, size=100.0):
    start = torch.rand(count, 2) * size * 0.8
    return torch.cat([start, start + torch.rand(count, 2) * size * 0.4 + 1], 1)


def anchor_cases():
    cases = []
    for name, image, feature, sizes, ratios in [
        ("retinanet level", (64, 96), (8, 12), ((32, 40, 50),), ((0.5, 1.0, 2.0),)),
        ("stride that does not divide", (50, 75), (7, 10), ((16,),), ((0.33, 1.0, 3.0),)),
    ]:
        generator = AnchorGenerator(sizes, ratios)
        anchors = generator(ImageList(torch.zeros(1, 3, *image), [image]), [torch.zeros(1, 1, *feature)])[0]
        params = dict(feature=feature, stride=[image[0] // feature[0], image[1] // feature[1]], sizes=sizes[0], ratios=ratios[0])
        cases.append(case(name, params, cell=generator.cell_anchors[0], anchors=anchors))
    return cases


def box_cases():
    torch.manual_seed(6)
    a, b = random_boxes(13), random_boxes(7)
    a[3] = b[2]
    a[4] = torch.tensor([500.0, 500.0, 510.0, 520.0])
    cases = [case("iou", {}, a=a, b=b, iou=box_iou(a, b))]
    for name, weights in [("unit weights", (1.0, 1.0, 1.0, 1.0)), ("Faster R-CNN's weights", (10.0, 10.0, 5.0, 5.0))]:
        coder = detection_utils.BoxCoder(weights)
        anchors, boxes = random_boxes(20), random_boxes(20)
        deltas = torch.randn(20, 4)
        deltas[0] = torch.tensor([0.0, 0.0, 100.0, 60.0])  # beyond the clip
        cases.append(
            case(name, dict(weights=weights), anchors=anchors, boxes=boxes, encoded=coder.encode_single(boxes, anchors), deltas=deltas,
                 decoded=coder.decode_single(deltas, anchors))
        )
    return cases


def grid_anchors(rng_size=64, stride=8, sizes=(16, 30)):
    out = []
    for y in range(0, rng_size, stride):
        for x in range(0, rng_size, stride):
            out += [[x - s / 2, y - s / 2, x + s / 2, y + s / 2] for s in sizes]
    return torch.tensor(out, dtype=torch.float32)


def match_cases():
    torch.manual_seed(7)
    anchors = grid_anchors()
    cases = []
    for name, high, low, allow in [("retinanet", 0.5, 0.4, True), ("no low quality", 0.5, 0.4, False), ("one threshold", 0.6, 0.6, True)]:
        matcher = detection_utils.Matcher(high, low, allow)
        boxes = random_boxes(9, 64.0)
        boxes[1] = boxes[0]  # two boxes at one place: the lower index wins
        boxes[5] = anchors[40]
        boxes[6] = torch.tensor([20.0, 20.0, 22.0, 22.0])  # inside several anchors: a tie of low quality
        cases.append(case(name, dict(high=high, low=low, allowLowQuality=allow), anchors=anchors, boxes=boxes,
                          matches=matcher(box_iou(boxes, anchors))))
    return cases


def loss_cases():
    torch.manual_seed(8)
    anchors = grid_anchors(32, 8, (16, 30))
    count, classes, n = len(anchors), 5, 3
    matcher = detection_utils.Matcher(0.5, 0.4, True)
    boxes = [random_boxes(4, 32.0), random_boxes(2, 32.0), torch.zeros(0, 4)]
    labels = [torch.randint(0, classes, (len(b),)) for b in boxes]
    matches = [matcher(box_iou(b, anchors)) if len(b) else torch.full((count,), -1) for b in boxes]
    targets = [dict(boxes=b, labels=l) for b, l in zip(boxes, labels)]
    logits, deltas = (torch.randn(n, count, classes) * 3).requires_grad_(), leaf(n, count, 4)
    head = RetinaNetClassificationHead(8, 1, classes)
    focal = head.compute_loss(targets, dict(cls_logits=logits), matches)
    focal.backward()
    padded_boxes, padded_labels = torch.zeros(n, 4, 4), torch.zeros(n, 4, dtype=torch.int32)
    for i, (b, l) in enumerate(zip(boxes, labels)):
        padded_boxes[i, : len(b)], padded_labels[i, : len(l)] = b, l
    common = dict(anchors=anchors, boxes=padded_boxes, labels=padded_labels, counts=torch.tensor([4, 2, 0], dtype=torch.int32),
                  matches=torch.stack(matches))
    cases = [case("focal", dict(alpha=0.25, gamma=2.0), logits=logits, loss=focal.reshape(1), dlogits=logits.grad, **common)]
    coder = detection_utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    for name, kind, beta in [("L1", "l1", 0.0), ("smooth L1", "smooth_l1", 0.5)]:
        deltas.grad = None
        total = 0
        for i in range(n):
            index = torch.where(matches[i] >= 0)[0]
            loss = detection_utils._box_loss(kind, coder, anchors[index], boxes[i][matches[i][index]], deltas[i][index], dict(beta=beta))
            total = total + loss / max(1, len(index))
        total = total / n
        total.backward()
        cases.append(case(name, dict(beta=beta), deltas=deltas, loss=total.reshape(1), ddeltas=deltas.grad, **common))
    x = torch.tensor([-100.0, -30.0, -5.0, -0.5, 0.0, 0.5, 5.0, 30.0, 100.0])
    for name, alpha, gamma in [("alpha 0.25, gamma 2", 0.25, 2.0), ("no alpha, gamma 1.5", -1.0, 1.5), ("alpha 0.5, gamma 0", 0.5, 0.0)]:
        values = {}
        for sign in (0.0, 1.0):
            logit = x.clone().requires_grad_()
            loss = sigmoid_focal_loss(logit, torch.full_like(x, sign), alpha, gamma)
            loss.sum().backward()
            values.update({f"loss{int(sign)}": loss, f"grad{int(sign)}": logit.grad})
        cases.append(case(f"terms, {name}", dict(alpha=alpha, gamma=gamma), x=x, **values))
    return cases


def nms_cases():
    torch.manual_seed(9)
    cases = []
    for name, count, classes, threshold, tied in [("5 classes", 120, 5, 0.5, False), ("1 class", 60, 1, 0.3, False), ("tied scores", 80, 3, 0.45, True)]:
        boxes, labels = random_boxes(count, 60.0), torch.randint(0, classes, (count,))
        scores = torch.randint(1, 6, (count,)).float() / 8 if tied else torch.rand(count)
        order = torch.sort(scores, descending=True, stable=True).indices
        kept = order[batched_nms(boxes[order], torch.linspace(1, 0.5, count), labels[order], threshold)]
        cases.append(case(name, dict(threshold=threshold), boxes=boxes, scores=scores, labels=labels, keep=kept))
    return cases


# ---- preprocessing ----


def preprocess_cases():
    torch.manual_seed(10)
    image = torch.randint(0, 256, (23, 31, 3), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    cases = []
    # crop is x, y, width, height; size is height, width
    for name, crop, size, antialias, flip in [
        ("same size", (0, 0, 31, 23), (23, 31), False, False),
        ("enlarge", (0, 0, 31, 23), (40, 52), False, False),
        ("shrink", (0, 0, 31, 23), (10, 12), False, False),
        ("shrink, antialias", (0, 0, 31, 23), (10, 12), True, False),
        ("shrink far, antialias", (0, 0, 31, 23), (3, 4), True, False),
        ("one axis each way, antialias, flip", (0, 0, 31, 23), (30, 13), True, True),
        ("flip", (0, 0, 31, 23), (20, 17), False, True),
    ]:
        x, y, w, h = crop
        cut = image[y : y + h, x : x + w].permute(2, 0, 1)[None].float() / 255
        cut = (cut - mean[:, None, None]) / std[:, None, None]
        out = F.interpolate(cut, size=size, mode="bilinear", align_corners=False, antialias=antialias)
        out = out.flip(3) if flip else out
        cases.append(case(name, dict(crop=crop, size=size, antialias=antialias, flip=flip), image=image, out=nhwc(out)))
    return cases


# ---- layers ----


class Separable(nn.Module):
    def __init__(self, c, k, kernel, **options):
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, kernel, groups=c, bias=False, **options)
        self.pointwise = nn.Conv2d(c, k, 1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class Residual(nn.Module):
    """A block of a residual network with two users of one tensor and a parameter used twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)) + x)
        return self.head(x), self.head(F.max_pool2d(x, 3, 2, 1))


class Join(nn.Module):
    def forward(self, *inputs):
        return sum(inputs)


class Cat(nn.Module):
    def forward(self, *inputs):
        return torch.cat(inputs, 1)


def layer_case(name, module, *shapes, training=True, backward=True):
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.3, 0.5)
    for key, buffer in module.named_buffers():
        if "running" in key:
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    module.train(training)
    arrays = {}
    for key, value in module.state_dict().items():
        if "num_batches" not in key:
            arrays[f"state.{key}"] = nhwc(value) if value.dim() == 4 else value.clone()
    inputs = [leaf(*shape) for shape in shapes]
    outputs = module(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays.update({f"input.{i}": nhwc(x) for i, x in enumerate(inputs)})
    arrays.update({f"output.{i}": nhwc(y) for i, y in enumerate(outputs)})
    if backward:
        upstream = [torch.randn_like(y) for y in outputs]
        torch.autograd.backward(outputs, upstream)
        arrays.update({f"upstream.{i}": nhwc(dy) for i, dy in enumerate(upstream)})
        arrays.update({f"dinput.{i}": nhwc(x.grad) for i, x in enumerate(inputs)})
        for key, p in module.named_parameters():
            arrays[f"grad.{key}"] = nhwc(p.grad) if p.dim() == 4 else p.grad
        for key, value in module.named_buffers():
            if "running" in key:
                arrays[f"after.{key}"] = value.clone()
    return case(name, dict(training=training, backward=backward), **arrays)


def layer_cases():
    torch.manual_seed(11)
    x = (2, 4, 6, 5)
    return [
        layer_case("Conv2d", nn.Conv2d(4, 6, 3, 2, 1), x),
        layer_case("Conv2d in groups without bias", nn.Conv2d(4, 8, (3, 1), 1, (2, 0), (2, 1), 4, False), x),
        layer_case("SeparableConv2d", Separable(4, 5, 3, padding=1), x),
        layer_case("BatchNorm2d", nn.BatchNorm2d(4, 1e-3, 0.2), x),
        layer_case("BatchNorm2d, eval", nn.BatchNorm2d(4, 1e-3, 0.2), x, training=False, backward=False),
        layer_case("ReLU", nn.ReLU(), x),
        layer_case("SiLU", nn.SiLU(), x),
        layer_case("Sigmoid", nn.Sigmoid(), x),
        layer_case("MaxPool2d", nn.MaxPool2d(3, 2, 1), x),
        layer_case("MaxPool2d, default stride", nn.MaxPool2d(2), x),
        layer_case("Upsample", nn.Upsample(scale_factor=2), x),
        layer_case("Add", Join(), x, x, x),
        layer_case("Concat", Cat(), x, (2, 3, 6, 5), (2, 1, 6, 5)),
        layer_case("Sequential", nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 2, 1)), x),
        layer_case("Residual", Residual(), (2, 3, 9, 8)),
        layer_case("Residual, eval", Residual(), (2, 3, 9, 8), training=False, backward=False),
        # statistics that stay as they are while the rest is trained
        layer_case("BatchNorm2d, frozen", nn.BatchNorm2d(4, 1e-3, 0.2), x, training=False),
        layer_case("Residual, frozen", Residual(), (2, 3, 9, 8), training=False),
    ]


if __name__ == "__main__":
    write("conv", conv_cases())
    write("norm", norm_cases())
    write("pool", pool_cases())
    write("activation", activation_cases())
    write("sgd", sgd_cases())
    write("anchors", anchor_cases())
    write("boxes", box_cases())
    write("matching", match_cases())
    write("losses", loss_cases())
    write("nms", nms_cases())
    write("preprocess", preprocess_cases())
    write("layers", layer_cases())
