"""torchvision's part of compare-photos.ts: a RetinaNet on given pixels and boxes with given weights.

    python3 torchvision_photos.py FOLDER

FOLDER/request.json says what to compute: {"case": a case of tests/golden/retinanet/record.py, "batch", "photos", "maxBoxes",
"device", "dtype"}; beside it lie weights.safetensors, images.bin (photos, H, W, 3) and boxes.bin (photos, maxBoxes, 4), both
float32, and labels.json, a list of labels for each photo. Written: detections.json, for each photo rows x1, y1, x2, y2,
score, label, best first; cuts.json, for each photo the lowest score that each level's top-k took; and losses.json, for each
batch [classification, box regression].
"""

import json
import os
import sys

import numpy as np
import torch
import torchvision

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden", "retinanet"))
import record  # noqa: E402

torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


def read_safetensors(path):
    """The float32 tensors of a file that dlfs wrote; the safetensors package is not needed for them."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "F32", name
            begin, end = entry["data_offsets"]
            tensors[name] = torch.from_numpy(np.frombuffer(data[begin:end], "<f4").copy()).view(entry["shape"])
    return tensors


def main():
    folder = sys.argv[1]
    read = lambda name: np.fromfile(os.path.join(folder, name), "<f4")
    with open(os.path.join(folder, "request.json")) as file:
        request = json.load(file)
    with open(os.path.join(folder, "labels.json")) as file:
        labels = json.load(file)
    case, device, dtype = request["case"], request["device"], getattr(torch, request["dtype"])
    photos, height, width = request["photos"], case["height"], case["width"]
    images = torch.from_numpy(read("images.bin")).view(photos, height, width, 3).permute(0, 3, 1, 2).to(dtype)
    boxes = torch.from_numpy(read("boxes.bin")).view(photos, request["maxBoxes"], 4).to(dtype)

    recorder = record.RetinaNetRecorder()
    model = recorder.build(case, dtype)
    missing, unexpected = model.load_state_dict(read_safetensors(os.path.join(folder, "weights.safetensors")), strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not missing and not unexpected, (missing, unexpected)
    model.to(device=device, dtype=dtype)

    def forward(batch):
        sizes = [(height, width)] * len(batch)
        return (*recorder.forward(model, batch, sizes), sizes)

    batches = [slice(start, start + request["batch"]) for start in range(0, photos, request["batch"])]
    detections, cuts, losses = [], [], []
    model.eval()
    for part in batches:
        with torch.no_grad():
            head, anchors, per_level, sizes = forward(images[part].to(device))
            for found in recorder.detections(model, head, anchors, per_level, sizes):
                columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].to(dtype)]
                detections.append(torch.cat(columns, dim=1).cpu().tolist())
            scores = [level.sigmoid().flatten(1) for level in head["cls_logits"].split(per_level, dim=1)]
            lowest = [s.topk(min(model.topk_candidates, s.shape[1])).values[:, -1] for s in scores]
            cuts += torch.stack(lowest, dim=1).cpu().tolist()
    # Training mode moves running statistics, so it comes after all detections.
    model.train()
    for part in batches:
        with torch.no_grad():
            head, anchors, per_level, _ = forward(images[part].to(device))
            targets = [
                {"boxes": given[: len(names)].to(device), "labels": torch.tensor(names, dtype=torch.int64, device=device)}
                for given, names in zip(boxes[part], labels[part])
            ]
            loss = recorder.loss(model, targets, head, anchors, per_level)
            losses.append([loss["classification"].item(), loss["bbox_regression"].item()])
    for name, value in {"detections": detections, "cuts": cuts, "losses": losses}.items():
        with open(os.path.join(folder, f"{name}.json"), "w") as file:
            json.dump(value, file)
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__} on {device}, {request['dtype']}")


if __name__ == "__main__":
    main()
