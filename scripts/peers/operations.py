"""Times layers and non-maximum suppression in PyTorch and torchvision, for `dlfs bench layers nms --peers`.

Reads what to run from standard input, as JSON: `precision`, `batch`, `layers` ({name, torch, inputs}: a Python expression of the
layer, and its inputs' shapes without the batch, NHWC) and `nms` ({name, boxes, scores, labels, threshold}). Prints JSON lines: the
versions, then a measurement a line. Layers run channels last with convolutions' and linear layers' weights in the precision, each
pass as a CUDA graph where there is a GPU, as ours do; suppression, which waits for the host, by the host's clock.
"""
import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")
try:
    import torch
    import torchvision
    from torch import nn
except ImportError as error:
    sys.exit(f"PyTorch and torchvision are needed: {error}")

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
BUDGET = 0.3
WARM_UP = 3


def report(**fields):
    print(json.dumps(fields), flush=True)


class Function(nn.Module):
    """A layer without parameters, of any number of inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


NAMES = {
    "nn": nn,
    "FrozenBatchNorm2d": torchvision.ops.FrozenBatchNorm2d,
    "SqueezeExcitation": torchvision.ops.SqueezeExcitation,
    "Add": lambda: Function(torch.add),
    "Multiply": lambda: Function(torch.mul),
    "Concat": lambda: Function(lambda *inputs: torch.cat(inputs, 1)),
}


def seconds(run, runs):
    """Seconds of one run, of several in a row: by events on the device, or by the clock."""
    if not GPU:
        start = time.perf_counter()
        for _ in range(runs):
            run()
        return (time.perf_counter() - start) / runs
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(runs):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / runs


def on_host(run, runs):
    start = time.perf_counter()
    for _ in range(runs):
        run()
        if GPU:
            torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs


def measure(name, run, clock=seconds):
    for _ in range(WARM_UP):
        run()
    estimate = clock(run, 1)
    runs = max(1, min(200, round(0.005 / max(estimate, 5e-6))))
    samples = []
    while len(samples) < 3 or (sum(samples) * runs < BUDGET and len(samples) < 25):
        samples.append(clock(run, runs))
    samples.sort()
    quartile = lambda share: 1e3 * samples[round(share * (len(samples) - 1))]
    report(name=name, ms=1e3 * samples[len(samples) // 2], low=quartile(0.25), high=quartile(0.75), repetitions=len(samples), runs=runs)


def warm_up(run):
    """Runs on a stream of its own, as CUDA graphs ask for."""
    if not GPU:
        return run()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(WARM_UP):
            run()
    torch.cuda.synchronize()


def captured(run, pool=None):
    """The work as a CUDA graph, so that launches of small kernels are not what is timed; and the pool of its memory."""
    if not GPU:
        return run, None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay, graph.pool()


def layer_of(expression, dtype):
    layer = eval(expression, NAMES)  # noqa: S307: of our own bench's list
    for module in layer.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.to(dtype)
    layer = layer.to(DEVICE).train()
    return layer if isinstance(layer, nn.Linear) else layer.to(memory_format=torch.channels_last)


def input_of(shape, batch, dtype, channels_last):
    values = torch.randn(batch, *shape, device=DEVICE).to(dtype)
    values = values.permute(0, 3, 1, 2) if channels_last and len(shape) == 3 else values
    return values.requires_grad_()


def run_layer(name, expression, inputs, batch, dtype):
    layer = layer_of(expression, dtype)
    values = [input_of(shape, batch, dtype, not isinstance(layer, nn.Linear)) for shape in inputs]
    sources = [*values, *layer.parameters()]
    gradient = torch.randn_like(layer(*values))
    kept = {}

    def forward():
        kept["result"] = layer(*values)

    def backward():
        torch.autograd.grad(kept["result"], sources, gradient, retain_graph=True)

    def forward_and_backward():
        forward()
        backward()

    warm_up(forward_and_backward)
    run, pool = captured(forward)
    measure(f"{name} forward", run)
    # A backward pass is captured on the stream that its forward pass was captured on, and reads what that left.
    run, _ = captured(backward, pool)
    measure(f"{name} backward", run)


def run_nms(name, boxes, scores, labels, threshold):
    boxes = torch.tensor(boxes, device=DEVICE).view(-1, 4)
    scores, labels = torch.tensor(scores, device=DEVICE), torch.tensor(labels, device=DEVICE)
    measure(name, lambda: torchvision.ops.batched_nms(boxes, scores, labels, threshold), on_host)


def main():
    work = json.load(sys.stdin)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    device = torch.cuda.get_device_name() if GPU else f"CPU, {torch.get_num_threads()} threads"
    report(versions={"PyTorch": torch.__version__, "torchvision": torchvision.__version__, "device": device})
    for layer in work.get("layers", []):
        try:
            run_layer(layer["name"], layer["torch"], layer["inputs"], work["batch"], DTYPES[work["precision"]])
        except Exception as error:  # noqa: BLE001: one that cannot run is reported beside the others
            report(failed=f"{layer['name']}: {type(error).__name__}: {str(error)[:300]}")
    for case in work.get("nms", []):
        try:
            run_nms(**case)
        except Exception as error:  # noqa: BLE001
            report(failed=f"{case['name']}: {type(error).__name__}: {str(error)[:300]}")


if __name__ == "__main__":
    main()
