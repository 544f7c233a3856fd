"""Serves torchvision's RetinaNet with ResNet-50 over HTTP, the peer of `dlfs serve` in scripts/bench-service.ts.

POST /predict takes the bytes of a JPEG and answers with JSON as dlfs does. An asyncio server (uvloop where it is installed) reads
requests; what waits becomes a batch of at most --batch images, for which a request waits --delay ms at most; --workers threads with a
CUDA stream each decode a batch with torchvision's decode_jpeg on the GPU, run torchvision's own model on it (channels last, fp16
autocast, cudnn.benchmark), and copy the results back in one go, so that one batch is decoded while another is computed. Without a GPU
everything runs on the CPU in fp32. Prints a JSON line when it is ready, after batches of all sizes.
"""
import argparse
import asyncio
import json
import queue
import signal
import struct
import sys
import threading
import time
import warnings

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.models.detection import retinanet_resnet50_fpn
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
HEAD_END = b"\r\n\r\n"
MAX_BODY = 64 << 20
# cuDNN looks for the best algorithms of each batch size that it meets for the first time: batches are filled up to one of these.
SIZES = [1, 2, 4, 8, 16, 24, 32, 48, 64, 128]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", help="safetensors with torchvision's names; default: random ones")
    parser.add_argument("--classes", type=int, default=91)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--delay", type=float, default=2.0, help="milliseconds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--port", type=int, default=0)
    return parser.parse_args()


def read_safetensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = bytearray(file.read())
    header.pop("__metadata__", None)
    dtypes = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64, "BF16": torch.bfloat16}
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = dtypes[entry["dtype"]]
        count = (end - begin) // torch.empty((), dtype=dtype).element_size()
        tensors[name] = torch.frombuffer(data, dtype=dtype, offset=begin, count=count).reshape(entry["shape"]).clone()
    return tensors


def make_model(options):
    # The same size whatever an image's aspect is, so that all images of a batch have the size that dlfs gives them.
    size = {"min_size": options.size, "max_size": options.size}
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=options.classes, **size)
    if options.weights:
        missing, unexpected = model.load_state_dict(read_safetensors(options.weights), strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or unexpected:
            sys.exit(f"{options.weights}: lacks {missing[:3]}, and has {unexpected[:3]} too many")
    model.eval().to(DEVICE)
    return model.to(memory_format=torch.channels_last) if GPU else model


class Batcher:
    """Makes batches of what waits, for worker threads that take them one after the other."""

    def __init__(self, model, options, loop):
        self.model, self.options, self.loop = model, options, loop
        self.waiting = queue.SimpleQueue()
        self.taking = threading.Lock()
        for _ in range(options.workers):
            threading.Thread(target=self.work, daemon=True).start()

    def submit(self, body):
        future = self.loop.create_future()
        self.waiting.put((body, future))
        return future

    def take(self):
        with self.taking:
            batch = [self.waiting.get()]
            deadline = time.perf_counter() + self.options.delay / 1000
            while len(batch) < self.options.batch:
                try:
                    batch.append(self.waiting.get(timeout=max(0.0, deadline - time.perf_counter())))
                except queue.Empty:
                    break
            return batch

    def decode(self, bodies):
        tensors = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in bodies]
        if not GPU:
            return [decode_jpeg(tensor, mode=ImageReadMode.RGB) for tensor in tensors]
        try:
            return decode_jpeg(tensors, mode=ImageReadMode.RGB, device=DEVICE)
        except (RuntimeError, TypeError):
            # One that the GPU cannot decode, or a version that takes no list: one by one.
            images = []
            for tensor in tensors:
                try:
                    images.append(decode_jpeg(tensor, mode=ImageReadMode.RGB, device=DEVICE))
                except RuntimeError:
                    images.append(None)
            return images

    @torch.inference_mode()
    def detect(self, bodies):
        decoded = self.decode(bodies)
        good = [i for i, image in enumerate(decoded) if image is not None]
        answers = [(400, b'{"error":"the image cannot be decoded"}')] * len(bodies)
        if not good:
            return answers
        images = [decoded[i].float().div_(255) for i in good]
        if GPU:
            size = next((size for size in SIZES if size >= len(images)), len(images))
            images += images[:1] * (size - len(images))
        with torch.autocast(DEVICE.type, dtype=torch.float16 if GPU else torch.bfloat16, enabled=GPU):
            found = self.model(images)[: len(good)]
        # One copy for the batch instead of three for an image.
        counts = [len(one["scores"]) for one in found]
        packed = torch.cat(
            [torch.cat([one["boxes"].float(), one["scores"].float()[:, None], one["labels"].float()[:, None]], 1) for one in found]
        )
        rows = packed.cpu().tolist()
        start = 0
        for i, count in zip(good, counts):
            height, width = decoded[i].shape[-2:]
            detections = [
                {"class": str(int(row[5])), "label": int(row[5]), "score": round(row[4], 6), "box": [round(side, 2) for side in row[:4]]}
                for row in rows[start : start + count]
            ]
            start += count
            answer = {"model": "retinanet", "images": [{"width": width, "height": height, "detections": detections}]}
            answers[i] = (200, json.dumps(answer, separators=(",", ":")).encode())
        return answers

    def work(self):
        stream = torch.cuda.Stream() if GPU else None
        while True:
            batch = self.take()
            try:
                if stream is None:
                    answers = self.detect([body for body, _ in batch])
                else:
                    with torch.cuda.stream(stream):
                        answers = self.detect([body for body, _ in batch])
            except Exception as error:  # a server answers whatever happens
                print(f"a batch failed: {error}", file=sys.stderr, flush=True)
                answers = [(500, b'{"error":"internal error"}')] * len(batch)
            self.loop.call_soon_threadsafe(self.answer, batch, answers)

    @staticmethod
    def answer(batch, answers):
        for (_, future), answer in zip(batch, answers):
            if not future.done():
                future.set_result(answer)


REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Payload Too Large", 500: "Internal Server Error"}


class Connection(asyncio.Protocol):
    """HTTP/1.1 with connections that stay open; one request of a connection at a time."""

    def __init__(self, batcher):
        self.batcher, self.buffer, self.busy = batcher, bytearray(), False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        self.advance()

    def advance(self):
        if self.busy:
            return
        end = self.buffer.find(HEAD_END)
        if end < 0:
            return
        head = bytes(self.buffer[:end]).split(b"\r\n")
        length = next((int(line[15:]) for line in head if line[:15].lower() == b"content-length:"), 0)
        if length > MAX_BODY:
            self.respond(413, b'{"error":"too large"}')
            self.transport.close()
            return
        whole = end + len(HEAD_END) + length
        if len(self.buffer) < whole:
            return
        body = bytes(self.buffer[end + len(HEAD_END) : whole])
        del self.buffer[:whole]
        if not head[0].startswith(b"POST /predict"):
            self.respond(404, b'{"error":"not found"}')
            self.advance()
            return
        self.busy = True
        self.batcher.submit(body).add_done_callback(self.finished)

    def finished(self, future):
        self.busy = False
        if not self.transport.is_closing():
            self.respond(*future.result())
            self.advance()

    def respond(self, status, body):
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


def warm_up(batcher, options):
    image = torch.randint(0, 255, (3, 480, 640), dtype=torch.uint8)
    jpeg = bytes(torchvision.io.encode_jpeg(image).numpy())
    sizes = SIZES if GPU else [1]
    for size in [size for size in sizes if size <= options.batch] * (3 if GPU else 1):
        for status, _ in batcher.detect([jpeg] * size):
            assert status == 200


async def main(options):
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    loop = asyncio.get_running_loop()
    batcher = Batcher(make_model(options), options, loop)
    warm_up(batcher, options)
    server = await loop.create_server(lambda: Connection(batcher), "127.0.0.1", options.port, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    name = torch.cuda.get_device_name() if GPU else "cpu"
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "device": name}
    print(json.dumps({"msg": "ready", "url": f"http://127.0.0.1:{port}/", **versions}, separators=(",", ":")), flush=True)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    await stop.wait()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    asyncio.run(main(arguments()))
