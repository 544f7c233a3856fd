"""Times torchvision's RetinaNet with ResNet-50 from JPEG files to boxes, for scripts/bench-predict.ts.

Reads what to do from standard input, as JSON: `files`, `weights` (a state dict as safetensors), `batch`, `size` (height and width
of the network's input, which images are resized to), `classes`, `precision`, `threads`, `variants`, `warmUp` (batches),
`repetitions` and `device`. Prints JSON lines: the versions, then a measurement a line, of passes over all files.

The work is laid out as one would for throughput: a pool of threads reads files ahead; a thread of its own has torchvision's GPU
decoder decode the list of a batch on its own stream, two batches ahead; the main thread runs the model, channels last, without
gradients, cuDNN choosing by timing, and copies all boxes of a batch to the host at once. `autocast` runs the model under autocast,
`half` with its weights in the precision, `compiled` as the latter with backbone and head compiled.
"""
import contextlib
import json
import queue
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.models.detection import retinanet_resnet50_fpn
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FILE_DTYPES = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64}
AHEAD = 2


def report(**fields):
    print(json.dumps(fields), flush=True)


def read_safetensors(path):
    """The tensors of a file, by name: a length, a JSON header with names, shapes and places, then the data."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = torch.frombuffer(data, dtype=FILE_DTYPES[entry["dtype"]], offset=start, count=(end - start) // 4)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def make_model(work, variant):
    height, width = work["size"]
    options = {"num_classes": work["classes"], "min_size": min(height, width), "max_size": max(height, width)}
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, **options)
    model.transform.fixed_size = (width, height)  # the input is this size, whatever the image's shape
    missing, unexpected = model.load_state_dict(read_safetensors(work["weights"]), strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        sys.exit(f"the weights do not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
    model = model.eval().to(work["device"]).to(memory_format=torch.channels_last)
    if variant != "autocast":
        model = model.to(DTYPES[work["precision"]])
    if variant == "compiled":
        model.backbone = torch.compile(model.backbone)
        model.head = torch.compile(model.head)
    return model


class Batches:
    """Batches of decoded images, read and decoded ahead, with the event after which they are there."""

    def __init__(self, files, work):
        self.files, self.work = files, work
        self.gpu = work["device"] == "cuda"
        self.ready = queue.Queue(AHEAD)
        threading.Thread(target=self.fill, daemon=True).start()

    def decode(self, encoded):
        if self.gpu:
            return decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda")
        return [decode_jpeg(image, mode=ImageReadMode.RGB) for image in encoded]

    def fill(self):
        try:
            size, work = self.work["batch"], self.work
            stream = torch.cuda.Stream() if self.gpu else None
            with ThreadPoolExecutor(work["threads"]) as pool, torch.cuda.stream(stream):
                starts = list(range(0, len(self.files), size))
                read = lambda start: [pool.submit(read_file, path) for path in self.files[start : start + size]]
                reading = [read(start) for start in starts[: 2 * AHEAD]]
                for i in range(len(starts)):
                    if i + 2 * AHEAD < len(starts):
                        reading.append(read(starts[i + 2 * AHEAD]))
                    images = self.decode([one.result() for one in reading[i]])
                    reading[i] = None
                    event = stream.record_event() if self.gpu else None
                    self.ready.put((images, event))
            self.ready.put(None)
        except Exception as error:  # noqa: BLE001: the main thread reports it
            self.ready.put(error)

    def __iter__(self):
        while (item := self.ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            images, event = item
            if event is not None:
                torch.cuda.current_stream().wait_event(event)
                for image in images:
                    image.record_stream(torch.cuda.current_stream())
            yield images


def detect_all(model, files, work, variant):
    """Detects on all files; the number of detections. Their boxes, scores and labels are on the host when it returns."""
    dtype = DTYPES[work["precision"]]
    input_dtype = torch.float32 if variant == "autocast" else dtype
    casts = variant == "autocast" and dtype != torch.float32
    total = 0
    with torch.inference_mode(), torch.autocast(work["device"], dtype=dtype) if casts else contextlib.nullcontext():
        for images in Batches(files, work):
            images = [image.to(work["device"]).to(input_dtype).div_(255) for image in images]
            found = model(images)
            rows = [torch.cat([one["boxes"], one["scores"][:, None], one["labels"][:, None]], 1) for one in found]
            total += torch.cat(rows).float().cpu().shape[0]
    return total


def measure(work, variant):
    files, batch = work["files"], work["batch"]
    model = make_model(work, variant)
    detect_all(model, files[: batch * work["warmUp"]], work, variant)
    rates = []
    for _ in range(work["repetitions"]):
        start = time.perf_counter()
        detections = detect_all(model, files, work, variant)
        rates.append(len(files) / (time.perf_counter() - start))
    rates.sort()
    name = {"autocast": "autocast", "half": "weights in the precision", "compiled": "compiled"}[variant]
    report(
        name=f"torchvision, {work['precision']}, channels last, {name}",
        variant=variant,
        imagesPerSecond=rates[len(rates) // 2],
        samples=rates,
        images=len(files),
        detectionsPerImage=detections / len(files),
    )


def main():
    work = json.load(sys.stdin)
    gpu = work["device"] == "cuda"
    if gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads"
    report(versions={"PyTorch": torch.__version__, "torchvision": torchvision.__version__, "device": device})
    for variant in work["variants"]:
        try:
            measure(work, variant)
        except Exception as error:  # noqa: BLE001: one that cannot run is reported beside the others
            report(failed=f"{variant}: {type(error).__name__}: {str(error)[:300]}")
        if gpu:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
