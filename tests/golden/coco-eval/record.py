"""Records pycocotools' figures for generated cases.

    pip install pycocotools==2.0.11 numpy==2.4.6
    python record.py                                   # rewrites golden.json beside this script
    python record.py --fuzz 500 --seed 1 --out x.json  # random cases only, for a longer comparison by hand

Rows of ground truth are [image, category, x, y, w, h, area, iscrowd, id], rows of detections
[image, category, x, y, w, h, score]. The curves are recorded as SHA-256 of their little-endian float64 bytes, in
pycocotools' layout, because all of them in digits would be megabytes.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def dataset(case, annotations):
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in case["images"]],
        "categories": [{"id": c, "name": str(c)} for c in case["categories"]],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def mean(values):
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else -1.0


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<f8").tobytes()).hexdigest()


def evaluate(case):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        truth = dataset(
            case,
            [
                {"image_id": r[0], "category_id": r[1], "bbox": r[2:6], "area": r[6], "iscrowd": r[7], "id": r[8]}
                for r in case["groundTruth"]
            ],
        )
        # What loadRes does, without its failure on an empty list.
        found = dataset(
            case,
            [
                {
                    "image_id": r[0],
                    "category_id": r[1],
                    "bbox": r[2:6],
                    "score": r[6],
                    "area": r[4] * r[5],
                    "id": i + 1,
                    "iscrowd": 0,
                }
                for i, r in enumerate(case["detections"])
            ],
        )
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    summary = io.StringIO()
    with contextlib.redirect_stdout(summary):
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    return {
        "stats": {name: float(value) for name, value in zip(STATS, evaluation.stats)},
        "perCategory": {
            str(category): {
                "AP": mean(precision[:, :, k, 0, -1]),
                "AP50": mean(precision[0, :, k, 0, -1]),
                "AR100": mean(recall[:, k, 0, -1]),
            }
            for k, category in enumerate(sorted(set(case["categories"])))
        },
        "summary": summary.getvalue().rstrip("\n"),
        "precision": digest(precision),
        "recall": digest(recall),
        "scores": digest(evaluation.eval["scores"]),
    }


def generate(
    rng,
    images=8,
    categories=(1, 2, 4, 7),
    objects=4,
    crowd=0.0,
    edge=0.0,
    flat=0.0,
    twins=0.0,
    score_digits=3,
    digits=2,
    misses=0.2,
    false_positives=1.5,
    jitter=0.15,
    copies=1,
    first_id=1,
    first_image=1,
    empty_images=0,
    empty_categories=(),
):
    """Objects with jittered copies as detections. The chances: `crowd` of a crowd region, `edge` of an area exactly on a
    limit, `flat` of a box without area, `twins` of a second object at the same place."""
    case = {
        "images": [first_image + 3 * i for i in range(images + empty_images)],
        "categories": list(categories) + list(empty_categories),
        "groundTruth": [],
        "detections": [],
    }
    number = (lambda v: round(v, digits)) if digits is not None else (lambda v: v)
    score = lambda low: number(0) if score_digits == 0 else round(rng.uniform(low, 1), score_digits)
    edges = [(32, 32, 1024), (96, 96, 9216), (64, 16, 1024), (48, 192, 9216), (32, 32, 1024.0000000001)]

    def box():
        if rng.random() < edge:
            w, h, area = rng.choice(edges)
            return [float(rng.randrange(500)), float(rng.randrange(300)), float(w), float(h)], float(area)
        w, h = number(2 ** rng.uniform(2, 8.3)), number(2 ** rng.uniform(2, 8.3))
        if rng.random() < flat:
            w, h = rng.choice([(0.0, h), (w, 0.0), (0.0, 0.0)])
        area = number(w * h * rng.uniform(0.5, 1))
        return [number(rng.uniform(-20, 600)), number(rng.uniform(-20, 440)), w, h], area

    for image in case["images"][:images]:
        for category in categories:
            for _ in range(rng.randrange(objects + 1)):
                shape, area = box()
                for _ in range(2 if rng.random() < twins else 1):
                    is_crowd = int(rng.random() < crowd)
                    case["groundTruth"].append(
                        [image, category, *shape, area, is_crowd, first_id + len(case["groundTruth"])]
                    )
                for _ in range(copies):
                    if rng.random() < misses:
                        continue
                    moved = list(shape)
                    if rng.random() < 0.8:
                        moved = [
                            number(shape[0] + shape[2] * rng.gauss(0, jitter)),
                            number(shape[1] + shape[3] * rng.gauss(0, jitter)),
                            number(shape[2] * rng.uniform(1 - jitter, 1 + jitter)),
                            number(shape[3] * rng.uniform(1 - jitter, 1 + jitter)),
                        ]
                    case["detections"].append([image, category, *moved, score(0.2)])
    for image in case["images"]:
        for category in case["categories"]:
            for _ in range(rng.randrange(int(2 * false_positives) + 1)):
                case["detections"].append([image, category, *box()[0], score(0.0)])
    rng.shuffle(case["detections"])
    return case


def thresholds_case():
    """Detections whose IoU is exactly a threshold, or as near to one as a double gets."""
    case = {"images": [5, 9], "categories": [3], "groundTruth": [], "detections": []}
    for i, share in enumerate([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]):
        x = 200.0 * i
        case["groundTruth"].append([5, 3, x, 0.0, 100.0, 100.0, 10000.0, 0, i + 1])
        case["detections"].append([5, 3, x, 0.0, 100.0, 100.0 * share, 0.9 - 0.01 * i])
        case["groundTruth"].append([9, 3, x, 7.0, 20.0, 20.0, 400.0, 0, 100 + i])
        case["detections"].append([9, 3, x, 7.0, 20.0 * share, 20.0, 0.5])
    return case


def same_iou_case():
    """One detection between two objects of equal IoU, and two detections that want the same object."""
    case = {"images": [1], "categories": [1], "groundTruth": [], "detections": []}
    case["groundTruth"] += [[1, 1, 0.0, 0.0, 40.0, 40.0, 1600.0, 0, 1], [1, 1, 8.0, 0.0, 40.0, 40.0, 1600.0, 0, 2]]
    case["detections"] += [[1, 1, 4.0, 0.0, 40.0, 40.0, 0.9], [1, 1, 7.0, 0.0, 40.0, 40.0, 0.9]]
    case["groundTruth"] += [[1, 1, 200.0, 0.0, 30.0, 30.0, 900.0, 0, 3], [1, 1, 200.0, 0.0, 30.0, 30.0, 9500.0, 0, 4]]
    case["groundTruth"] += [[1, 1, 190.0, 0.0, 50.0, 50.0, 2500.0, 1, 5]]
    case["detections"] += [[1, 1, 200.0, 0.0, 30.0, 30.0, 0.8], [1, 1, 200.0, 0.0, 30.0, 30.0, 0.8]]
    case["detections"] += [[1, 1, 201.0, 1.0, 20.0, 20.0, 0.8], [1, 1, 195.0, 1.0, 40.0, 40.0, 0.7]]
    return case


def named_cases():
    rng = random.Random(20240607)
    return {
        "random": generate(rng),
        "long-decimals": generate(rng, digits=None, score_digits=17),
        "crowds": generate(rng, crowd=0.35, copies=3, jitter=0.25),
        "area-edges": generate(rng, edge=0.7, crowd=0.05, jitter=0.05),
        "zero-area": generate(rng, flat=0.4),
        "score-ties": generate(rng, score_digits=1, copies=2),
        "all-scores-equal": generate(rng, score_digits=0, copies=2, images=4),
        "twin-objects": generate(rng, twins=0.6, copies=2, crowd=0.2, images=5),
        "ids-from-zero": generate(rng, first_id=0, first_image=0, categories=(0, 1, 2), misses=0.0, jitter=0.03),
        "empty-images-and-categories": generate(rng, images=3, empty_images=3, empty_categories=(90, 3)),
        "over-100-per-image": generate(
            rng, images=2, categories=(1,), objects=60, copies=4, false_positives=40, digits=1, score_digits=2
        ),
        "perfect": generate(rng, images=4, misses=0.0, jitter=0.0, false_positives=0),
        "no-detections": {**generate(rng, images=2), "detections": []},
        "no-ground-truth": {**generate(rng, images=2), "groundTruth": []},
        "nothing": {"images": [], "categories": [], "groundTruth": [], "detections": []},
        "iou-at-thresholds": thresholds_case(),
        "same-iou": same_iou_case(),
    }


def fuzz_case(rng):
    return generate(
        rng,
        images=rng.randrange(1, 9),
        categories=rng.sample(range(0, 12), rng.randrange(1, 6)),
        objects=rng.randrange(0, 9),
        crowd=rng.choice([0, 0, 0.1, 0.5]),
        edge=rng.choice([0, 0, 0.5, 1]),
        flat=rng.choice([0, 0, 0.2]),
        twins=rng.choice([0, 0, 0.5]),
        score_digits=rng.choice([0, 1, 2, 3, 17]),
        digits=rng.choice([0, 1, 2, None]),
        misses=rng.choice([0, 0.2, 0.8]),
        false_positives=rng.choice([0, 1, 5]),
        jitter=rng.choice([0, 0.03, 0.15, 0.4]),
        copies=rng.choice([0, 1, 1, 3, 15]),
        first_id=rng.choice([0, 1, 1, 1000]),
        first_image=rng.choice([0, 1, 77]),
        empty_images=rng.randrange(0, 3),
        empty_categories=rng.choice([(), (50,), (99, 60)]),
    )


def sum_values(n):
    """Values that a reader in another language makes bit by bit: one exact division each."""
    return np.array([(i * 7919 % 100003) / 100003 for i in range(n)], dtype=np.float64)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--fuzz", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden.json"))
    args = parser.parse_args()
    if args.fuzz:
        rng = random.Random(args.seed)
        cases = {f"fuzz-{args.seed}-{i}": fuzz_case(rng) for i in range(args.fuzz)}
    else:
        cases = named_cases()
    for case in cases.values():
        case["expected"] = evaluate(case)
    sizes = [0, 1, 7, 8, 9, 127, 128, 129, 136, 137, 1000, 1023, 8191, 8193, 20001, 80800]
    golden = {
        "sums": {str(n): float(np.sum(sum_values(n))) for n in sizes},
        "iouThresholds": [float(t) for t in np.linspace(0.5, 0.95, 10)],
        "recallThresholds": [float(t) for t in np.linspace(0.0, 1.0, 101)],
        "cases": cases,
    }
    # One line per row keeps the file readable and its diffs small.
    text = json.dumps(golden, indent=1)
    with open(args.out, "w") as f:
        f.write(compact_rows(text) + "\n")


def compact_rows(text):
    """Joins the lines of innermost arrays."""
    lines, out, row = text.split("\n"), [], None
    for line in lines:
        if row is None and line.endswith("["):
            row = [line]
        elif row is not None:
            if line.endswith("[") or line.endswith("{"):
                out.extend(row)
                row = [line] if line.endswith("[") else None
                if row is None:
                    out.append(line)
            else:
                row.append(line)
                if line.strip() in ("]", "],"):
                    out.append(row[0] + "".join(part.strip() + (" " if part.endswith(",") else "") for part in row[1:-1])
                               + row[-1].strip())
                    row = None
        else:
            out.append(line)
    return "\n".join(out)


if __name__ == "__main__":
    main()
