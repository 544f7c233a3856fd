"""Times torchvision's RetinaNet with ResNet-50 and a pyramid, for `dlfs bench --peers`.

Prints JSON lines: the versions, then a measurement a line. `eager` is torchvision's model as its users call it; `compiled` the
strongest form known: channels last, the whole step compiled with CUDA graphs (mode reduce-overhead), targets assigned on the
device without a loop on the host, fused SGD. The batch is synthetic and on the device. Ends with 1 and a message where PyTorch,
torchvision or a GPU is missing.
"""
import argparse
import json
import math
import sys
import warnings

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torch.nn import functional as F
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")
if not torch.cuda.is_available():
    sys.exit("PyTorch finds no GPU")

BOXES = 16
WARM_UP = 6
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="train,infer")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", default="640x640")
    parser.add_argument("--classes", type=int, default=91)
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--norm", choices=["batch", "frozen"], default="batch")
    parser.add_argument("--trainable-layers", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    options.height, options.width = (int(side) for side in options.size.split("x"))
    options.dtype = DTYPES[options.precision]
    return options


def report(**fields):
    print(json.dumps(fields), flush=True)


def measure(name, run, options):
    """Reports the median time of a run on the device, and the most memory that tensors took."""
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(options.repetitions):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    times.sort()
    quartile = lambda share: times[round(share * (len(times) - 1))]
    report(
        name=name,
        ms=times[len(times) // 2],
        low=quartile(0.25),
        high=quartile(0.75),
        repetitions=len(times),
        images=options.batch,
        memoryBytes=torch.cuda.max_memory_allocated(),
    )


def make_model(options):
    norm = FrozenBatchNorm2d if options.norm == "frozen" else torch.nn.BatchNorm2d
    resnet = torchvision.models.resnet50(weights=None, norm_layer=norm)
    backbone = _resnet_fpn_extractor(
        resnet, options.trainable_layers, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    size = {"min_size": min(options.height, options.width), "max_size": max(options.height, options.width)}
    return RetinaNet(backbone, options.classes, **size).cuda().to(memory_format=torch.channels_last)


def targets(options):
    generator = torch.Generator("cuda").manual_seed(0)
    random = lambda *shape: torch.rand(*shape, device="cuda", generator=generator)
    scale = torch.tensor([options.width, options.height], device="cuda")
    sides = (0.1 + 0.23 * random(options.batch, BOXES, 2)) * scale
    corners = random(options.batch, BOXES, 2) * (scale - sides)
    labels = torch.randint(0, options.classes, (options.batch, BOXES), device="cuda", generator=generator)
    return torch.cat([corners, corners + sides], 2), labels


def optimizer_of(model, fused):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=fused)


def autocast(options):
    return torch.autocast("cuda", dtype=options.dtype, enabled=options.precision != "f32")


def train_eager(options):
    model = make_model(options).train()
    optimizer = optimizer_of(model, False)
    scaler = torch.amp.GradScaler("cuda", enabled=options.precision == "f16")
    images = [torch.rand(3, options.height, options.width, device="cuda") for _ in range(options.batch)]
    truth = [{"boxes": boxes, "labels": labels} for boxes, labels in zip(*targets(options))]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with autocast(options):
            loss = sum(model(images, truth).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    measure("train step, eager", step, options)


def all_anchors(model, options):
    generator = model.anchor_generator
    generator.set_cell_anchors(torch.float32, torch.device("cuda"))
    strides = [8, 16, 32, 64, 128]
    grids = [(math.ceil(options.height / stride), math.ceil(options.width / stride)) for stride in strides]
    steps = [
        [torch.tensor(options.height // rows, device="cuda"), torch.tensor(options.width // columns, device="cuda")]
        for rows, columns in grids
    ]
    return torch.cat(generator.grid_anchors(grids, steps))


def losses_of(model, anchors, images, boxes, labels, options):
    """Focal loss and L1 of the box deltas, the targets matched on the device; sums over images of equal weight."""
    with autocast(options):
        outputs = model.head(list(model.backbone(images).values()))
    logits, deltas = outputs["cls_logits"].float(), outputs["bbox_regression"].float()
    overlap = (
        torch.min(anchors[None, :, None, 2:], boxes[:, None, :, 2:])
        - torch.max(anchors[None, :, None, :2], boxes[:, None, :, :2])
    ).clamp(min=0)
    area = lambda b: (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    shared = overlap[..., 0] * overlap[..., 1]
    iou = shared / (area(anchors)[None, :, None] + area(boxes)[:, None, :] - shared)
    best, index = iou.max(2)
    positive = best >= 0.5
    counted = positive | (best < 0.4)
    matched = torch.gather(boxes, 1, index[..., None].expand(-1, -1, 4))
    wanted = torch.zeros_like(logits).scatter_(2, torch.gather(labels, 1, index)[..., None], 1.0) * positive[..., None]
    scores = torch.sigmoid(logits)
    right = scores * wanted + (1 - scores) * (1 - wanted)
    weight = (0.25 * wanted + 0.75 * (1 - wanted)) * (1 - right) ** 2 * counted[..., None]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    positives = positive.sum(1).clamp(min=1)
    size, centre = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    box_size, box_centre = matched[..., 2:] - matched[..., :2], (matched[..., 2:] + matched[..., :2]) / 2
    offsets = torch.cat([(box_centre - centre) / size, torch.log(box_size / size)], -1)
    regression = ((deltas - offsets).abs() * positive[..., None]).sum((1, 2))
    return (((weight * cross_entropy).sum((1, 2)) + regression) / positives).mean()


def train_compiled(options):
    model = make_model(options).train()
    optimizer = optimizer_of(model, True)
    shape = (options.batch, 3, options.height, options.width)
    images = torch.rand(shape, device="cuda").contiguous(memory_format=torch.channels_last)
    boxes, labels = targets(options)
    anchors = all_anchors(model, options)
    loss_of = torch.compile(lambda *batch: losses_of(model, anchors, *batch, options), mode="reduce-overhead")

    def step():
        loss_of(images, boxes, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    measure("train step, compiled", step, options)


def infer(options):
    model = make_model(options).eval().to(options.dtype)
    shape = (options.batch, 3, options.height, options.width)
    images = torch.rand(shape, device="cuda").to(options.dtype).contiguous(memory_format=torch.channels_last)
    network = lambda batch: model.head(list(model.backbone(batch).values()))
    with torch.inference_mode():
        measure("network only, eager", lambda: network(images), options)
        separate = list(images)
        measure("whole call, eager", lambda: model(separate), options)
        compiled = torch.compile(network, mode="reduce-overhead")
        measure("network only, compiled", lambda: compiled(images), options)


def main():
    options = arguments()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    versions = {
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuDNN": str(torch.backends.cudnn.version()),
        "GPU": torch.cuda.get_device_name(),
    }
    report(versions=versions)
    works = {"train": [train_eager, train_compiled], "infer": [infer]}
    for work in options.work.split(","):
        for run in works[work]:
            try:
                run(options)
            except Exception as error:  # noqa: BLE001: one that cannot run is reported beside the others
                report(failed=f"{run.__name__}: {type(error).__name__}: {str(error)[:300]}")
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
