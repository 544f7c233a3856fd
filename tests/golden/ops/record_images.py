"""Records small image files with the pixels that Pillow decodes from them and turns upright (ImageOps.exif_transpose).

    python3 record_images.py     # rewrites images.json beside this script

Debian 12's python3-pil (9.4, libjpeg-turbo 2.1.5) made the committed file, with cjpeg of libjpeg-turbo-progs for what Pillow
does not write. Pictures are smooth, so that decoders which
interpolate chroma or round the inverse transform differently stay within a few levels of each other.
"""

import base64
import io
import json
import os
import struct
import subprocess

import numpy as np
from PIL import Image, ImageOps, features

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


def cjpeg(image, *options):
    buffer = io.BytesIO()
    image.save(buffer, "PPM")
    return subprocess.run(["cjpeg", "-quality", "90", *options], input=buffer.getvalue(), stdout=subprocess.PIPE, check=True).stdout


def exif(orientation, order="<", kind=3):
    """EXIF data with another entry before the orientation, which has the type SHORT (3) or LONG (4)."""
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    value = struct.pack(order + ("HH" if kind == 3 else "I"), *([orientation, 0] if kind == 3 else [orientation]))
    entries = struct.pack(order + "HHII", 0x0100, 4, 1, 7) + struct.pack(order + "HHI", 0x0112, kind, 1) + value
    return b"Exif\0\0" + header + struct.pack(order + "H", 2) + entries + struct.pack(order + "I", 0)


def adobe_transform(data, value):
    """The file with another colour transform in its Adobe segment (2: YCCK)."""
    at = data.index(b"Adobe")
    return data[: at + 11] + bytes([value]) + data[at + 12 :]


def case(name, data, **params):
    # convert() is Pillow's (255 - C) (255 - K) / 255 for CMYK files
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    params = {"format": "jpeg", "bits": 8, "process": 0, "orientation": 1, **params}
    arrays = {"bytes": encode(np.frombuffer(data, np.uint8)), "pixels": encode(pixels)}
    return {"name": name, "params": params, "arrays": arrays}


def main():
    rgb = Image.fromarray(picture(33, 17, 0.3))
    cmyk = Image.fromarray(np.concatenate([picture(20, 12, 1.0), picture(20, 12, 2.0)[:, :, :1] // 2], 2), "CMYK")
    cmyk_file = jpeg(cmyk, quality=95)
    cases = [
        case("4:2:0", jpeg(rgb, quality=90, subsampling=2), components=3),
        case("4:2:2", jpeg(rgb, quality=90, subsampling=1), components=3),
        case("4:4:4", jpeg(rgb, quality=90, subsampling=0), components=3),
        case("optimised tables, low quality", jpeg(rgb, quality=30, optimize=True), components=3),
        case("progressive", jpeg(rgb, quality=90, progressive=True), components=3, process=1),
        case("gray", jpeg(rgb.convert("L"), quality=90), components=1),
        case("1x1", jpeg(Image.fromarray(picture(1, 1, 0.3)), quality=90), components=3),
        case("1 pixel high", jpeg(Image.fromarray(picture(19, 1, 0.6)), quality=90), components=3),
        case("64x48", jpeg(Image.fromarray(picture(64, 48, 0.9)), quality=92), components=3),
        case("CMYK", cmyk_file, components=4),
        case("YCCK", adobe_transform(cmyk_file, 2), components=4),
        case("with a comment and EXIF", jpeg(rgb, quality=90, comment=b"a comment", exif=b"Exif\0\0" + bytes(40)), components=3),
    ]
    for sampling in ["4x1", "1x2", "2x1,2x1,1x1", "4x2", "1x4", "3x1", "2x2,1x2,2x1", "1x1,2x2,2x2"]:
        name = f"sampling {sampling}"
        full = sampling if "," in sampling else f"{sampling},1x1,1x1"
        cases.append(case(name, cjpeg(rgb, "-sample", full), components=3))
    small = Image.fromarray(picture(21, 13, 0.4))
    cases.append(case("arithmetic", cjpeg(rgb, "-arithmetic"), components=3, process=3))
    cases.append(case("arithmetic and progressive", cjpeg(rgb, "-arithmetic", "-progressive"), components=3, process=3))
    for orientation in range(1, 9):
        data = jpeg(small, quality=90, subsampling=0, exif=exif(orientation, "<>"[orientation % 2]))
        cases.append(case(f"orientation {orientation}", data, components=3, orientation=orientation))
    data = jpeg(small, quality=90, progressive=True, exif=exif(6, ">", 4))
    cases.append(case("orientation 6 as LONG, progressive 4:2:0", data, components=3, process=1, orientation=6))
    data = jpeg(small.convert("L"), quality=90, exif=exif(8))
    cases.append(case("orientation 8, gray", data, components=1, orientation=8))
    versions = {"pillow": Image.__version__, "libjpeg_turbo": features.version_feature("libjpeg_turbo")}
    with open(os.path.join(FOLDER, "images.json"), "w") as file:
        json.dump({"versions": versions, "cases": cases}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
