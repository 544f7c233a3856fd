"""Records Pillow's antialiased bilinear resize for the image tests.

    python3 record_resize.py     # rewrites resize.json beside this script

Pillow 13.0.0 made the committed file. A case resizes an image and mirrors the result where `flip` says so.
"""

import json
import os

import numpy as np
import PIL
from PIL import Image, ImageOps

from record_images import encode, picture

FOLDER = os.path.dirname(os.path.abspath(__file__))


def main():
    noise = np.random.default_rng(5).integers(0, 256, (41, 57, 3), dtype=np.uint8)
    smooth = picture(57, 41, 0.4)
    cases = []
    for name, image, size, flip in [
        ("smooth, a third", smooth, (19, 14), False),
        ("noise, a third", noise, (19, 14), False),
        ("noise, just below its size", noise, (53, 40), False),
        ("noise, a tenth, mirrored", noise, (6, 4), True),
        ("noise, one axis each way", noise, (90, 13), False),
        ("noise, enlarged", noise, (100, 77), True),
        ("noise, one pixel", noise, (1, 1), False),
    ]:
        source = Image.fromarray(image)
        out = source.resize(size, Image.Resampling.BILINEAR)
        out = ImageOps.mirror(out) if flip else out
        arrays = {"image": encode(image), "out": encode(np.asarray(out))}
        cases.append({"name": name, "params": {"flip": flip}, "arrays": arrays})
    with open(os.path.join(FOLDER, "resize.json"), "w") as file:
        json.dump({"versions": {"pillow": PIL.__version__, "numpy": np.__version__}, "cases": cases}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
