"""Times torchvision's JPEG decoder, for `dlfs bench decode --peers`.

Reads what to do from standard input, as JSON: `files`, `batch`, `threads`, `repetitions`, `warmUp`, `size` (height and width of
the network input), `precision` and `device`. Prints JSON lines: the versions, then a measurement a line, of a pass over all
files. On a GPU, decode_jpeg takes the list of a batch and decodes it there. On the CPU, as many threads as ours decode an image
each at a time, every one with one thread of PyTorch's.
"""
import json
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torch.nn.functional import interpolate
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def report(**fields):
    print(json.dumps(fields), flush=True)


def measure(name, run, work):
    samples = []
    for i in range(work["warmUp"] + work["repetitions"]):
        start = time.perf_counter()
        run()
        if work["device"] == "cuda":
            torch.cuda.synchronize()
        if i >= work["warmUp"]:
            samples.append(1e3 * (time.perf_counter() - start))
    samples.sort()
    quartile = lambda share: samples[round(share * (len(samples) - 1))]
    middle = samples[len(samples) // 2]
    report(name=name, ms=middle, low=quartile(0.25), high=quartile(0.75), repetitions=len(samples), images=len(work["files"]))


class Input:
    """Letterboxed and normalised network inputs."""

    def __init__(self, work):
        (self.height, self.width), self.dtype = work["size"], DTYPES[work["precision"]]
        self.device = work["device"]
        self.scale = (1 / (255 * torch.tensor(STD, device=self.device))).view(3, 1, 1)
        self.shift = (torch.tensor(MEAN, device=self.device) * 255).view(3, 1, 1)

    def empty(self, n):
        return torch.zeros(n, 3, self.height, self.width, dtype=self.dtype, device=self.device)

    def draw(self, batch, i, image):
        scale = min(self.width / image.shape[2], self.height / image.shape[1])
        size = [round(image.shape[1] * scale), round(image.shape[2] * scale)]
        small = interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        batch[i, :, : size[0], : size[1]] = (small - self.shift) * self.scale


def main():
    work = json.load(sys.stdin)
    gpu = work["device"] == "cuda"
    if gpu and not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU")
    torch.set_num_threads(1 if not gpu else work["threads"])
    device = torch.cuda.get_device_name() if gpu else f"CPU, {work['threads']} threads"
    report(versions={"PyTorch": torch.__version__, "torchvision": torchvision.__version__, "device": device})
    files, rgb = work["files"], ImageReadMode.RGB
    encoded = [read_file(path) for path in files]
    network = Input(work)
    starts = range(0, len(files), work["batch"])
    pool = ThreadPoolExecutor(work["threads"])

    def decode(images):
        if gpu:
            return decode_jpeg(list(images), mode=rgb, device="cuda")
        return list(pool.map(lambda image: decode_jpeg(image, mode=rgb), images))

    def decode_all():
        for start in starts:
            decode(encoded[start : start + work["batch"]])

    def read_and_decode(paths):
        if gpu:
            return decode(list(pool.map(read_file, paths)))
        return list(pool.map(lambda path: decode_jpeg(read_file(path), mode=rgb), paths))

    def read_all():
        for start in starts:
            read_and_decode(files[start : start + work["batch"]])

    def draw_all():
        for start in starts:
            paths = files[start : start + work["batch"]]
            batch = network.empty(len(paths))
            if gpu:
                for i, image in enumerate(read_and_decode(paths)):
                    network.draw(batch, i, image)
            else:
                one = lambda job: network.draw(batch, job[0], decode_jpeg(read_file(job[1]), mode=rgb))
                list(pool.map(one, enumerate(paths)))

    for name, run in [("decode", decode_all), ("read and decode", read_all), ("read, decode and resize", draw_all)]:
        try:
            measure(name, run, work)
        except Exception as error:  # noqa: BLE001: one that cannot run is reported beside the others
            report(failed=f"{name}: {type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    main()
