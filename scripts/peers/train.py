"""Trains torchvision's RetinaNet from scratch, for scripts/compare-convergence.ts, and writes what it detects on a split.

The data set is in COCO's layout, its images of one size, which is the network's input. SGD with momentum 0.9 and weight decay
1e-4, the rate growing linearly over the first steps and falling to a tenth at 70 % and to a hundredth at 90 % of them, gradients'
2-norm clipped to 10, images mirrored both ways at random, passes shuffled. Batch normalization trains. Prints a JSON line when it is
done; ends with 1 and a message where something is missing.
"""
import argparse
import json
import os
import random
import sys
import time
import warnings

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, read_image
    from torchvision.models.detection import retinanet_resnet50_fpn
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--val-split", default="val")
    parser.add_argument("--size", required=True, help="HxW of the images")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="detections in COCO's results format")
    return parser.parse_args()


def load(data, split, size, device):
    """Images as uint8 on the device, boxes (n, 4) as corners, class numbers from 1, and the image's id."""
    path = os.path.join(data, "annotations", f"instances_{split}.json")
    with open(path) as file:
        content = json.load(file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    label_of = {category["id"]: i + 1 for i, category in enumerate(categories)}
    boxes = {}
    for entry in content["annotations"]:
        if not entry.get("iscrowd"):
            boxes.setdefault(entry["image_id"], []).append(entry)
    folders = [os.path.join(data, name) for name in (split, os.path.join("images", split), "images")]
    samples = []
    for image in content["images"]:
        paths = [os.path.join(folder, image["file_name"]) for folder in folders]
        found = next((path for path in paths if os.path.exists(path)), None)
        if found is None:
            sys.exit(f"{path}: {image['file_name']}: in none of {', '.join(folders)}")
        pixels = read_image(found, mode=ImageReadMode.RGB)
        if tuple(pixels.shape[1:]) != size:
            sys.exit(f"{found}: expected {size[0]}x{size[1]} pixels, got {pixels.shape[1]}x{pixels.shape[2]}")
        own = boxes.get(image["id"], [])
        corners = [[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in own)]
        samples.append(
            (
                pixels.to(device),
                torch.tensor(corners, dtype=torch.float32, device=device).reshape(-1, 4),
                torch.tensor([label_of[entry["category_id"]] for entry in own], dtype=torch.int64, device=device),
                image["id"],
            )
        )
    return samples, [category["id"] for category in categories]


def mirrored(image, boxes, size):
    height, width = size
    boxes = boxes.clone()
    if random.random() < 0.5:
        image = image.flip(2)
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if random.random() < 0.5:
        image = image.flip(1)
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return image, boxes


def batches(samples, size):
    """Whole batches of shuffled passes, for ever."""
    while True:
        order = random.sample(range(len(samples)), len(samples))
        for start in range(0, len(order) - size + 1, size):
            yield [samples[i] for i in order[start : start + size]]


def main():
    args = arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = tuple(int(side) for side in args.size.split("x"))
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    train, categories = load(args.data, args.train_split, size, device)
    val, _ = load(args.data, args.val_split, size, device)
    model = retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=len(categories) + 1,
        min_size=min(size),
        max_size=max(size),
    )
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)

    def precision():
        return torch.autocast(device, dtype=torch.bfloat16, enabled=args.precision == "bf16")

    started = time.time()
    supply = batches(train, args.batch)
    for step in range(args.iterations):
        share = step / args.iterations
        rate = args.lr * min(1, (step + 1) / args.warmup) * (1 if share < 0.7 else 0.1 if share < 0.9 else 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, targets = [], []
        for pixels, boxes, labels, _ in next(supply):
            image, boxes = mirrored(pixels.float() / 255, boxes, size)
            images.append(image)
            targets.append({"boxes": boxes, "labels": labels})
        with precision():
            loss = sum(model(images, targets).values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if step % 200 == 199:
            print(f"{step + 1}/{args.iterations}  loss {float(loss):.3f}", file=sys.stderr, flush=True)
    seconds = time.time() - started

    model.eval()
    results = []
    with torch.inference_mode(), precision():
        for start in range(0, len(val), args.batch):
            part = val[start : start + args.batch]
            for found, (_, _, _, image_id) in zip(model([pixels / 255 for pixels, *_ in part]), part):
                for box, score, label in zip(*(found[name].float().tolist() for name in ("boxes", "scores", "labels"))):
                    x1, y1, x2, y2 = box
                    category = categories[int(label) - 1]
                    bbox = [x1, y1, x2 - x1, y2 - y1]
                    results.append({"image_id": image_id, "category_id": category, "bbox": bbox, "score": score})
    with open(args.out, "w") as file:
        json.dump(results, file)
    versions = f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    print(json.dumps({"versions": versions, "seconds": seconds, "detections": len(results)}))


main()
