"""Records tidecv's figures for the cases of ../coco-eval/golden.json.

    pip install pycocotools==2.0.11 numpy==2.4.6 && pip install --no-deps tidecv==1.0.1
    python record.py    # rewrites golden.json beside this script

tidecv imports plotting libraries that its figures do not need: they are replaced by empty modules. Detections of
categories without objects are left out, because tidecv counts such a category with an AP of 0 and COCO leaves it out.
"""

import json
import os
import sys
from unittest.mock import MagicMock

for name in ("cv2", "matplotlib", "matplotlib.lines", "matplotlib.pyplot", "pandas", "seaborn", "appdirs"):
    sys.modules[name] = MagicMock()

from tidecv.data import Data  # noqa: E402
from tidecv.quantify import TIDERun  # noqa: E402

NAMES = ["classification", "localization", "both", "duplicate", "background", "missed"]
OPTIONS = {"default": (0.5, 0.1, 100), "strict": (0.75, 0.25, 5)}
HERE = os.path.dirname(os.path.abspath(__file__))


def measure(case, options):
    truth, found = Data("truth"), Data("found")
    for image in sorted(case["images"]):
        truth.add_image(image, str(image))
    counted = {row[1] for row in case["groundTruth"] if not row[7]}
    for image, category, x, y, w, h, _, crowd, _ in case["groundTruth"]:
        add = truth.add_ignore_region if crowd else truth.add_ground_truth
        add(image, category, box=[x, y, w, h])
    for image, category, x, y, w, h, score in case["detections"]:
        if category in counted:
            found.add_detection(image, category, score, box=[x, y, w, h])
    foreground, background, max_dets = options
    run = TIDERun(truth, found, foreground, background, "bbox", max_dets)
    return {
        "AP": run.ap / 100,
        "counts": dict(zip(NAMES, run.count_errors().values(), strict=True)),
        "dAP": {name: value / 100 for name, value in zip(NAMES, run.fix_main_errors().values(), strict=True)},
    }


def main():
    with open(os.path.join(HERE, "../coco-eval/golden.json"), encoding="utf-8") as file:
        cases = json.load(file)["cases"]
    results = {
        name: {key: measure(case, options) for key, options in OPTIONS.items()}
        for name, case in cases.items()
        if case["detections"] and case["groundTruth"]
    }
    with open(os.path.join(HERE, "golden.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
