"""Records small JPEG files with the pixels that Pillow (libjpeg-turbo) decodes from them.

    python3 record_images.py     # rewrites images.json beside this script

Debian 12's python3-pil (9.4, libjpeg-turbo 2.1.5) made the committed file. Pictures are smooth, so that decoders which
interpolate chroma or round the inverse transform differently stay within a few levels of each other.
"""

import base64
import io
import json
import os

import numpy as np
from PIL import Image, features

FOLDER = os.path.dirname(os.path.abspath(__file__))


def picture(width, height, phase):
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / 9 + phase) + np.cos(y / 7), np.cos((x + y) / 11 + phase), np.sin(y / 8 - x / 13 + 2 * phase)]
    return np.clip(np.stack(waves, 2) * 55 + 128, 0, 255).round().astype(np.uint8)


def encode(array):
    return {"shape": list(array.shape), "dtype": "u8", "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def adobe_transform(data, value):
    """The file with another colour transform in its Adobe segment (2: YCCK)."""
    at = data.index(b"Adobe")
    return data[: at + 11] + bytes([value]) + data[at + 12 :]


def case(name, data, **params):
    # convert() is Pillow's (255 - C) (255 - K) / 255 for CMYK files
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    arrays = {"bytes": encode(np.frombuffer(data, np.uint8)), "pixels": encode(pixels)}
    return {"name": name, "params": params, "arrays": arrays}


def main():
    rgb = Image.fromarray(picture(33, 17, 0.3))
    cmyk = Image.fromarray(np.concatenate([picture(20, 12, 1.0), picture(20, 12, 2.0)[:, :, :1] // 2], 2), "CMYK")
    cmyk_file = jpeg(cmyk, quality=95)
    cases = [
        case("4:2:0", jpeg(rgb, quality=90, subsampling=2), components=3, process=0),
        case("4:2:2", jpeg(rgb, quality=90, subsampling=1), components=3, process=0),
        case("4:4:4", jpeg(rgb, quality=90, subsampling=0), components=3, process=0),
        case("optimised tables, low quality", jpeg(rgb, quality=30, optimize=True), components=3, process=0),
        case("progressive", jpeg(rgb, quality=90, progressive=True), components=3, process=1),
        case("gray", jpeg(rgb.convert("L"), quality=90), components=1, process=0),
        case("1x1", jpeg(Image.fromarray(picture(1, 1, 0.3)), quality=90), components=3, process=0),
        case("1 pixel high", jpeg(Image.fromarray(picture(19, 1, 0.6)), quality=90), components=3, process=0),
        case("64x48", jpeg(Image.fromarray(picture(64, 48, 0.9)), quality=92), components=3, process=0),
        case("CMYK", cmyk_file, components=4, process=0),
        case("YCCK", adobe_transform(cmyk_file, 2), components=4, process=0),
        case("with a comment and EXIF", jpeg(rgb, quality=90, comment=b"a comment", exif=b"Exif\0\0" + bytes(40)), components=3, process=0),
    ]
    versions = {"pillow": Image.__version__, "libjpeg_turbo": features.version_feature("libjpeg_turbo")}
    with open(os.path.join(FOLDER, "images.json"), "w") as file:
        json.dump({"versions": versions, "cases": cases}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
