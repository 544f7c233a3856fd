"""Loads images with torchvision and times it, for `dlfs bench data --peers`.

What each image goes through is what the preset `retinanet` of dlfs does: the file is read, decoded, mirrored half of the time, letterboxed
and scaled by 0.8 to 1.25 (bilinear, not antialiased, both in one resampling), cropped or padded at random, normalised. Pipelines:

  DataLoader     torch.utils.data.DataLoader, worker processes, each with torch.set_num_threads(1), a batch collated by its worker
  thread pool    as many threads, writing into one batch that is allocated beforehand; the operations release Python's lock
  GPU            files read by a thread pool, decode_jpeg(device='cuda') of a batch, the rest on the GPU

Without a GPU a batch is float32 on the host; with one it is pinned, copied to the GPU and cast to bf16 there. Prints JSON lines: the
versions and pipelines, then, for each line "NAME" read from standard input, a measurement of that pipeline: {name, ms, cpuMs, images}.
The batches made ahead are taken before the clock starts, and as many are made ahead again when it stops.
"""
import argparse
import json
import math
import os
import random
import resource
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torch.nn import functional as F
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")

GPU = torch.cuda.is_available()
AHEAD = 2
CLOCK = os.sysconf("SC_CLK_TCK")
# From 2.1 on torch resamples uint8 on the CPU as it is, which is faster.
UINT8 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 1)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) * 255
STD = 1 / (torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255)


def report(**fields):
    print(json.dumps(fields), flush=True)


def place(height, width, side):
    """Size after letterboxing and jitter, and where the canvas and the image overlap."""
    scale = min(side / height, side / width) * math.exp(random.uniform(math.log(0.8), math.log(1.25)))
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    spans = []
    for size in (h, w):
        shift = random.randint(min(0, side - size), max(0, side - size))
        spans.append((max(shift, 0), max(-shift, 0), min(size, side)))
    return h, w, spans


def draw(image, out, mean, std, side):
    """Augments an image (3, H, W) of uint8 into `out` (3, side, side)."""
    size = tuple(image.shape[1:])
    h, w, ((top, from_y, high), (left, from_x, wide)) = place(*size, side)
    high, wide = min(high, side - top), min(wide, side - left)
    if not UINT8:
        image = image.contiguous()  # planes: what follows takes a third of the time on them, with what copying costs
    if random.random() < 0.5:
        image = image.flip(-1)
    values = image[None] if UINT8 and not image.is_cuda else image[None].float()
    if (h, w) != size:
        values = F.interpolate(values, size=(h, w), mode="bilinear", align_corners=False)
    values = values[0, :, from_y : from_y + high, from_x : from_x + wide]
    if (high, wide) != (side, side):
        out.zero_()
    inside = out[:, top : top + high, left : left + wide]
    torch.sub(values, mean, out=inside).mul_(std)


class Images(torch.utils.data.Dataset):
    def __init__(self, paths, side):
        self.paths, self.side = paths, side

    def __len__(self):
        return 1 << 40

    def __getitem__(self, _):
        path = self.paths[random.randrange(len(self.paths))]
        out = torch.empty(3, self.side, self.side)
        draw(decode_jpeg(read_file(path), mode=ImageReadMode.RGB), out, MEAN, STD, self.side)
        return out


def forever():
    i = 0
    while True:
        yield i
        i += 1


def to_device(batch):
    return batch.cuda(non_blocking=True).bfloat16() if GPU else batch


def data_loader(paths, options):
    """Yields batches; `pids` are those of the workers."""

    def start(worker):
        torch.set_num_threads(1)
        random.seed(worker)

    loader = torch.utils.data.DataLoader(
        Images(paths, options.size),
        batch_size=options.batch,
        sampler=forever(),
        num_workers=options.threads,
        prefetch_factor=AHEAD,
        worker_init_fn=start,
        pin_memory=GPU,
    )
    batches = iter(loader)
    pids = [worker.pid for worker in batches._workers]
    return (to_device(batch) for batch in batches), pids, AHEAD * options.threads


def thread_pool(paths, options):
    pool = ThreadPoolExecutor(options.threads)
    ring = [torch.empty(options.batch, 3, options.size, options.size, pin_memory=GPU) for _ in range(AHEAD + 2)]

    def one(out):
        path = paths[random.randrange(len(paths))]
        draw(decode_jpeg(read_file(path), mode=ImageReadMode.RGB), out, MEAN, STD, options.size)

    def batches():
        waiting = []
        for i in forever():
            batch = ring[i % len(ring)]
            waiting.append((batch, [pool.submit(one, batch[k]) for k in range(options.batch)]))
            if len(waiting) <= AHEAD:
                continue
            batch, jobs = waiting.pop(0)
            for job in jobs:
                job.result()
            yield to_device(batch)
            if GPU:
                torch.cuda.synchronize()  # before the memory is used again

    return batches(), [], AHEAD


def on_gpu(paths, options):
    pool = ThreadPoolExecutor(options.threads)
    mean, std = MEAN.cuda(), STD.cuda()

    def read(_):
        return read_file(paths[random.randrange(len(paths))])

    def batches():
        waiting = []
        while True:
            waiting.append([pool.submit(read, k) for k in range(options.batch)])
            if len(waiting) <= AHEAD:
                continue
            files = [job.result() for job in waiting.pop(0)]
            images = decode_jpeg(files, mode=ImageReadMode.RGB, device="cuda")
            batch = torch.empty(options.batch, 3, options.size, options.size, dtype=torch.bfloat16, device="cuda")
            for image, out in zip(images, batch):
                draw(image, out, mean, std, options.size)
            yield batch

    return batches(), [], AHEAD


PIPELINES = {"DataLoader": data_loader, "thread pool": thread_pool, **({"GPU": on_gpu} if GPU else {})}


def cpu_seconds(pids):
    """Of this process and its workers."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / CLOCK
    return total


def settle(pids):
    """Waits until the batches ahead are made, so that they take no time of who measures next."""
    for _ in range(200):
        before = cpu_seconds(pids)
        time.sleep(0.1)
        if cpu_seconds(pids) - before < 0.02:
            return


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, default=4, help="timed at a time")
    options = parser.parse_args()
    names = sorted(name for name in os.listdir(options.images) if name.lower().endswith((".jpg", ".jpeg")))
    paths = [os.path.join(options.images, name) for name in names]
    if not paths:
        sys.exit(f"{options.images} has no .jpg files")
    torch.set_num_threads(1)
    random.seed(0)
    device = torch.cuda.get_device_name() if GPU else f"CPU, {options.threads} threads"
    versions = {"PyTorch": torch.__version__, "torchvision": torchvision.__version__, "device": device}
    report(versions=versions, pipelines=list(PIPELINES))
    running = {}
    for line in sys.stdin:
        name = line.strip()
        try:
            fresh = name not in running
            if fresh:
                running[name] = PIPELINES[name](paths, options)
            batches, pids, ahead = running[name]
            for _ in range(ahead + (options.batches if fresh else 0)):
                next(batches)
            if GPU:
                torch.cuda.synchronize()
            start, cpu = time.perf_counter(), cpu_seconds(pids)
            for _ in range(options.batches):
                next(batches)
            if GPU:
                torch.cuda.synchronize()
            ms = 1e3 * (time.perf_counter() - start) / options.batches
            cpu_ms = 1e3 * (cpu_seconds(pids) - cpu) / options.batches
            settle(pids)
            report(name=name, ms=ms, cpuMs=cpu_ms, images=options.batch)
        except Exception as error:  # noqa: BLE001: reported, the other pipelines go on
            report(failed=f"{name}: {type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    main()
