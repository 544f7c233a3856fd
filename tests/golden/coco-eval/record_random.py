"""Records pycocotools' figures for random cases that are not stored themselves.

    pip install pycocotools==2.0.11 numpy==2.4.6
    python record_random.py                          # rewrites random.json beside this script
    python record_random.py --count 5000 --seed 1000 --out x.json   # a longer comparison by hand (COCO_CASES=x.json)

A case is drawn from its seed by integer arithmetic and one division a number, which tests/metrics/random-cases.ts repeats
bit by bit; so 240 cases fit in a file of figures. Each holds the twelve statistics, and digests (SHA-256 of little-endian
float64 in pycocotools' layout) of the precision, recall and score arrays and of the figures per category.
"""

import argparse
import json
import os

import numpy as np
from record import digest, evaluate


class Random:
    """The linear congruential generator of Numerical Recipes; its upper bits."""

    def __init__(self, seed):
        self.state = seed & 0xFFFFFFFF
        for _ in range(4):
            self.below(2)

    def below(self, n):
        """An integer from 0 to n - 1."""
        self.state = (self.state * 1664525 + 1013904223) & 0xFFFFFFFF
        return ((self.state >> 8) * n) >> 24

    def chance(self, percent):
        return self.below(100) < percent

    def pick(self, values):
        return values[self.below(len(values))]


# Width, height and area at the ends of pycocotools' area ranges, and the nearest doubles beside them.
EDGES = [(32, 32, 1024), (96, 96, 9216), (64, 16, 1024), (48, 192, 9216), (32, 32, 1024.0000000000002), (96, 96, 9215.999999999998)]


def random_case(seed):
    rng = Random(seed)
    images = 1 + rng.below(6)
    empty = rng.below(3)
    first_image = rng.pick([0, 1, 77])
    categories = 1 + rng.below(4)
    category_step = rng.pick([1, 7])
    first_category = rng.pick([0, 1, 13])
    first_id = rng.pick([0, 1, 1000])
    # Coordinates are whole multiples of 1 / unit: coarse ones make equal IoUs and IoUs at thresholds. 600 * unit stays below
    # 2^29, so that every product in below() is exact in a double, too.
    unit = rng.pick([1, 8, 100, 65521])
    score_steps = rng.pick([1, 4, 10, 1000, 999983])
    objects = rng.below(7)
    copies = rng.pick([0, 1, 1, 2, 12])
    crowd = rng.pick([0, 0, 15, 50])
    edge = rng.pick([0, 0, 60])
    flat = rng.pick([0, 0, 20])
    twin = rng.pick([0, 0, 50])
    missed = rng.pick([0, 20, 70])
    false_positives = rng.pick([0, 2, 8, 45])
    jitter = rng.pick([0, 3, 15, 40])

    def box():
        x, y = rng.below(600 * unit) / unit, rng.below(400 * unit) / unit
        if rng.chance(edge):
            w, h, area = rng.pick(EDGES)
            return [x, y, float(w), float(h)], float(area)
        side = rng.pick([8, 30, 100, 300])
        w, h = (1 + rng.below(side * unit)) / unit, (1 + rng.below(side * unit)) / unit
        if rng.chance(flat):
            w, h = (0.0, h) if rng.chance(50) else (w, 0.0)
        return [x, y, w, h], w * h

    def moved(value, scale):
        """value plus up to `jitter` percent of scale, to either side."""
        return value + scale * (rng.below(2 * jitter + 1) - jitter) / 100

    all_images = [first_image + 3 * i for i in range(images + empty)]
    all_categories = [first_category + category_step * i for i in range(categories + rng.below(2))]
    truth, detections = [], []
    for image in all_images[:images]:
        for category in all_categories[:categories]:
            for _ in range(rng.below(objects + 1)):
                (x, y, w, h), area = box()
                for _ in range(2 if rng.chance(twin) else 1):
                    truth.append([image, category, x, y, w, h, area, int(rng.chance(crowd)), first_id + len(truth)])
                for _ in range(copies):
                    if not rng.chance(missed):
                        place = [moved(x, w), moved(y, h), moved(w, w), moved(h, h)]
                        detections.append([image, category, *place, (1 + rng.below(score_steps)) / score_steps])
            for _ in range(rng.below(false_positives + 1)):
                detections.append([image, category, *box()[0], (1 + rng.below(score_steps)) / score_steps])
    # The order of the detections decides between equal scores.
    for i in range(len(detections) - 1, 0, -1):
        j = rng.below(i + 1)
        detections[i], detections[j] = detections[j], detections[i]
    return {"images": all_images, "categories": all_categories, "groundTruth": truth, "detections": detections}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "random.json"))
    args = parser.parse_args()
    cases = []
    for seed in range(args.seed, args.seed + args.count):
        case = random_case(seed)
        expected = evaluate(case)
        rows = [list(row.values()) for row in expected["perCategory"].values()]
        cases.append(
            {
                "seed": seed,
                "objects": len(case["groundTruth"]),
                "detections": len(case["detections"]),
                "stats": list(expected["stats"].values()),
                "digests": [expected["precision"], expected["recall"], expected["scores"], digest(np.array(rows))],
            }
        )
    with open(args.out, "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
