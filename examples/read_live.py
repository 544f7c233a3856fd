"""Reads what a training says (RUN/live/live.dlvs), or a predictions file, in Python, and prints a line of JSON for each message.

    flatc --python -o generated schemas/*.fbs
    pip install flatbuffers xxhash numpy
    PYTHONPATH=generated python examples/read_live.py RUN/live/live.dlvs

A file is a header of 16 bytes and frames, each from a multiple of 8: kind (4 characters), length (u32), checksum (u64), message.
The same frames, one in each message, come over the WebSocket of `dlfs train --live`.
"""

import json
import struct
import sys

import xxhash
from dlfs.event.Event import Event
from dlfs.event.Kind import Kind
from dlfs.metrics.Metrics import Metrics
from dlfs.predictions.ImagePredictions import ImagePredictions
from dlfs.sample.Sample import Sample


def frames(data):
    """The kinds and messages of a file's whole frames; it may end within one, where its writer has not come further."""
    magic, version, checksum = struct.unpack_from("<8sII", data)
    if magic not in (b"DLFSLIVE", b"DLFSPRED") or version != 1:
        raise ValueError(f"no file of messages that is known: {magic!r}, version {version}")
    if checksum != xxhash.xxh64_intdigest(data[:12]) & 0xFFFFFFFF:
        raise ValueError("the header is damaged")
    at = 16
    while at + 16 <= len(data):
        kind, length, checksum = struct.unpack_from("<4sIQ", data, at)
        end = at + 16 + length
        if end > len(data):
            return
        message = data[at + 16 : end]
        if checksum != xxhash.xxh64_intdigest(message, seed=xxhash.xxh64_intdigest(data[at : at + 8])):
            raise ValueError(f"the frame at {at} is damaged")
        yield kind.decode(), message
        at = (end + 7) // 8 * 8


def detections(found):
    """Of ImagePredictions: class, score and x1, y1, x2, y2 in pixels of the image, best first."""
    if found.ScoresLength() == 0:
        return []
    boxes = found.BoxesAsNumpy().reshape(-1, 4).tolist()
    return [
        {"label": label, "score": score, "box": box}
        for label, score, box in zip(found.LabelsAsNumpy().tolist(), found.ScoresAsNumpy().tolist(), boxes)
    ]


def describe(kind, message):
    """A message as what JSON can hold; None for kinds that are not known here."""
    if kind == "DLME":
        metrics = Metrics.GetRootAs(message)
        numbers = [metrics.Values(i) for i in range(metrics.ValuesLength())]
        values = {number.Name().decode(): number.Value() for number in numbers}
        return {"metrics": metrics.What().decode(), "iteration": metrics.Iteration(), "values": values}
    if kind == "DLEV":
        event = Event.GetRootAs(message)
        names = {value: name for name, value in vars(Kind).items() if not name.startswith("_")}
        return {
            "event": names.get(event.Kind(), "other"),
            "iteration": event.Iteration(),
            "text": event.Text().decode(),
            "classes": [event.Classes(i).decode() for i in range(event.ClassesLength())],
        }
    if kind == "DLSM":
        sample = Sample.GetRootAs(message)
        return {
            "sample": sample.Predictions().Name().decode(),
            "iteration": sample.Iteration(),
            "detections": detections(sample.Predictions()),
            "truth": [] if sample.BoxesLength() == 0 else sample.BoxesAsNumpy().reshape(-1, 4).tolist(),
            "thumbnail": sample.ThumbnailLength(),
        }
    if kind == "DLPI":
        found = ImagePredictions.GetRootAs(message)
        return {"predictions": found.Name().decode(), "detections": detections(found)}
    return None


def main():
    with open(sys.argv[1], "rb") as file:
        data = file.read()
    for kind, message in frames(data):
        described = describe(kind, message)
        if described is not None:
            print(json.dumps(described))


if __name__ == "__main__":
    main()
