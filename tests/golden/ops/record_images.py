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
import zlib

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


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def filtered(rows, bits):
    """PNG's bytes of rows (h, w, samples): packed, each row by another filter."""
    h, w, samples = rows.shape
    if bits == 16:
        packed = rows.astype(">u2").reshape(h, -1).view(np.uint8)
    elif bits == 8:
        packed = rows.astype(np.uint8).reshape(h, -1)
    else:
        each = np.unpackbits(rows.astype(np.uint8).reshape(h, w, 1), axis=2)[:, :, 8 - bits :]
        packed = np.packbits(each.reshape(h, -1), axis=1)
    step = max(1, samples * bits // 8)
    above = np.zeros(packed.shape[1], np.int64)
    out = b""
    for y, row in enumerate(packed.astype(np.int64)):
        left = np.concatenate([np.zeros(step, np.int64), row])[: len(row)]
        corner = np.concatenate([np.zeros(step, np.int64), above])[: len(row)]
        estimate = left + above - corner
        distances = [abs(estimate - left), abs(estimate - above), abs(estimate - corner)]
        nearest = np.where(
            (distances[0] <= distances[1]) & (distances[0] <= distances[2]),
            left,
            np.where(distances[1] <= distances[2], above, corner),
        )
        predicted = [0 * row, left, above, (left + above) // 2, nearest][y % 5]
        out += bytes([y % 5]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def png(samples, bits, colour, interlaced=False, before=b"", after=b""):
    """A PNG of samples (h, w, n); before and after: chunks beside the image data, which lies in several."""
    h, w, _ = samples.shape
    parts = [samples[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [samples]
    data = zlib.compress(b"".join(filtered(part, bits) for part in parts if part.size))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, int(interlaced)))
    halves = chunk(b"IDAT", data[:20]) + chunk(b"IDAT", data[20:])
    return b"\x89PNG\r\n\x1a\n" + header + before + halves + after + chunk(b"IEND", b"")


def png_cases():
    def of(name, data, components, bits, pixels=None, orientation=1):
        params = {"format": "png", "components": components, "bits": bits, "process": 2, "orientation": orientation}
        return case(f"PNG {name}", data, pixels, **params)

    rgb = picture(13, 7, 0.2)
    wide = rgb.astype(np.int64) * 256 + rgb[::-1]
    gray, wide_gray = rgb[:, :, :1], wide[:, :, :1]
    alpha, wide_alpha = picture(13, 7, 1.7)[:, :, :1], wide[::-1, :, :1]
    palette = picture(16, 1, 0.5)[0]
    colours = chunk(b"PLTE", palette.tobytes())
    index = (gray // 17).astype(np.uint8)
    big = picture(37, 29, 0.1)
    cases = [of(f"gray of {bits} bits", png(gray >> (8 - bits), bits, 0), 1, bits) for bits in (1, 2, 4, 8)]
    for bits in (1, 2, 4, 8):
        data = png(index % (1 << bits), bits, 3, before=chunk(b"PLTE", palette[: 1 << bits].tobytes()))
        cases.append(of(f"palette of {bits} bits", data, 3, bits))
    transparent = chunk(b"tRNS", struct.pack(">HHH", *map(int, rgb[2, 3])))
    cases += [
        # Pillow clips gray of 16 bits at 255; its upper eight bits are what it takes of colours.
        of("gray of 16 bits", png(wide_gray, 16, 0), 1, 16, np.repeat(wide_gray >> 8, 3, 2)),
        of("gray with alpha", png(np.concatenate([gray, alpha], 2), 8, 4), 2, 8),
        of("gray with alpha of 16 bits", png(np.concatenate([wide_gray, wide_alpha], 2), 16, 4), 2, 16),
        of("RGB", png(rgb, 8, 2), 3, 8),
        of("RGB of 16 bits", png(wide, 16, 2), 3, 16),
        of("RGBA", png(np.concatenate([rgb, alpha], 2), 8, 6), 4, 8),
        of("RGBA of 16 bits", png(np.concatenate([wide, wide_alpha], 2), 16, 6), 4, 16),
        of("RGB with a transparent colour", png(rgb, 8, 2, before=transparent), 3, 8),
        of("gray with a transparent value", png(gray, 8, 0, before=chunk(b"tRNS", struct.pack(">H", int(gray[2, 3, 0])))), 1, 8),
        of("palette with transparency", png(index, 8, 3, before=colours + chunk(b"tRNS", bytes(range(0, 160, 16)))), 3, 8),
        of("palette of 4 bits with transparency", png(index, 4, 3, before=colours + chunk(b"tRNS", b"\0\x80")), 3, 4),
        of("RGB, interlaced", png(big, 8, 2, True), 3, 8),
        of("palette of 2 bits, interlaced", png(index % 4, 2, 3, True, before=colours), 3, 2),
        of("gray of 1 bit, interlaced", png(gray >> 7, 1, 0, True), 1, 1),
        of("1x1, interlaced", png(rgb[:1, :1], 8, 2, True), 3, 8),
        of("with gamma and text", png(rgb, 8, 2, before=chunk(b"gAMA", struct.pack(">I", 30000)), after=chunk(b"tEXt", b"a\0b")), 3, 8),
        of("with orientation 5", png(rgb, 8, 2, before=chunk(b"eXIf", exif(5)[6:])), 3, 8, orientation=5),
    ]
    # A data set that Pillow wrote: its own compression and filters.
    buffer = io.BytesIO()
    Image.fromarray(big).save(buffer, "PNG")
    return cases + [of("by Pillow", buffer.getvalue(), 3, 8)]


def webp(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **options)
    return buffer.getvalue()


def riff(kind, content):
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)


def webp_cases():
    def of(name, data, process, components=3, orientation=1):
        params = {"format": "webp", "components": components, "bits": 8, "process": process, "orientation": orientation}
        return case(f"WebP {name}", data, None, **params)

    array = picture(33, 19, 0.8)
    image = Image.fromarray(array)
    alpha = Image.fromarray(np.concatenate([array, picture(33, 19, 0.1)[:, :, 1:2]], 2), "RGBA")
    small = Image.fromarray(picture(14, 9, 0.3))
    # A frame at (4, 2) of a canvas of 24 x 16, which Pillow does not write.
    picture_data = webp(small, lossless=True)[12:]
    frame = struct.pack("<I", 2)[:3] + struct.pack("<I", 1)[:3] + struct.pack("<I", 13)[:3] + struct.pack("<I", 8)[:3]
    canvas = bytes([2, 0, 0, 0]) + struct.pack("<I", 23)[:3] + struct.pack("<I", 15)[:3]
    placed = riff(b"VP8X", canvas) + riff(b"ANIM", bytes(6)) + 2 * riff(b"ANMF", frame + bytes(4) + picture_data)
    return [
        of("lossy", webp(image, quality=80), 0),
        of("lossy, of low quality", webp(image, quality=5), 0),
        of("lossless", webp(image, lossless=True), 2),
        of("lossy with alpha", webp(alpha, quality=80), 0, 4),
        of("lossless with alpha", webp(alpha, lossless=True), 2, 4),
        of("1x1", webp(image.crop((0, 0, 1, 1)), quality=80), 0),
        of("animation", webp(image, quality=80, save_all=True, append_images=[image.transpose(0)], duration=50), 0),
        of("animation in the middle of its canvas", b"RIFF" + struct.pack("<I", 4 + len(placed)) + b"WEBP" + placed, 2),
        of("with orientation 6", webp(image, quality=80, exif=exif(6)), 0, orientation=6),
        of("with orientation 3 without an identifier", webp(small, lossless=True, exif=exif(3)[6:]), 2, orientation=3),
    ]


def case(name, data, pixels=None, **params):
    if pixels is None:
        # convert() is Pillow's (255 - C) (255 - K) / 255 for CMYK files
        pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    pixels = np.asarray(pixels, np.uint8)
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
    cases += png_cases() + webp_cases()
    versions = {"pillow": Image.__version__, "libjpeg_turbo": features.version_feature("libjpeg_turbo")}
    versions["libwebp"] = features.version_module("webp")
    with open(os.path.join(FOLDER, "images.json"), "w") as file:
        json.dump({"versions": versions, "cases": cases}, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
