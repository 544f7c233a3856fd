"""Reads what scripts/check-watching.ts has trained. Arguments: the run's folder, and a file with the answer of /metrics.

Compares TensorBoard's own reading of the event files, and what its server answers, with metrics.jsonl, and lets Prometheus' client
parse the metrics. Ends with 1, and what is wrong, at the first difference.
"""

import json
import math
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

run, metrics = Path(sys.argv[1]), Path(sys.argv[2])


def check(condition, message):
    if not condition:
        sys.exit(f"wrong: {message}")


def number(value):
    return float(value) if isinstance(value, str) else value


expected = {}
for line in (run / "metrics.jsonl").read_text().splitlines():
    entry = json.loads(line)
    for name, value in entry.items():
        if name not in ("kind", "iteration", "time"):
            # Steps done; an iteration of a step is counted from 0.
            step = entry["iteration"] + (entry["kind"] == "train")
            expected.setdefault(f"{entry['kind']}/{name}", {})[step] = number(value)

# Of steps that were done again, the library drops what the first file says (purge_orphaned_data).
files = sorted((run / "tensorboard").iterdir())
check(len(files) == 2, f"two event files, got {files}")
events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
events.Reload()
tags = events.Tags()
check(set(tags["scalars"]) == set(expected), f"scalars {sorted(tags['scalars'])}, expected {sorted(expected)}")


def same(name, points):
    wanted = expected[name]
    check([step for step, _ in points] == sorted(wanted), f"{name}: steps {[step for step, _ in points]}")
    for step, value in points:
        close = math.isclose(value, wanted[step], rel_tol=1e-6, abs_tol=1e-12)
        check(close or (math.isnan(value) and math.isnan(wanted[step])), f"{name} at {step}: {value}, {wanted[step]}")


for name in expected:
    same(name, [(event.step, event.value) for event in events.Scalars(name)])
points = sum(len(values) for values in expected.values())
print(f"scalars: {len(expected)} names, {points} points, equal to metrics.jsonl")

images = events.Images("predictions")
evaluations = sorted(expected["evaluation/AP"])
check([image.step for image in images] == evaluations, f"images at {[image.step for image in images]}")
for image in images:
    picture = run / "pictures" / f"predictions-{image.step:08d}.jpg"
    check(image.encoded_image_string == picture.read_bytes(), f"the picture of {image.step} is not {picture}")
print(f"images: {len(images)}, {images[0].width} x {images[0].height}, those of the run's folder")

for name in tags["histograms"]:
    for event in events.Histograms(name):
        histogram = event.histogram_value
        check(math.isclose(sum(histogram.bucket), histogram.num), f"{name}: {sum(histogram.bucket)} of {histogram.num}")
        check(histogram.min <= histogram.max and histogram.bucket_limit[-1] == histogram.max, f"{name}: its limits")
weights = [name for name in tags["histograms"] if name.startswith("weights/")]
gradients = [name for name in tags["histograms"] if name.startswith("gradients/")]
check(len(weights) > 10 and len(weights) == len(gradients), f"{len(weights)} and {len(gradients)} histograms")
print(f"histograms: {len(weights)} of weights, {len(gradients)} of gradients")

text = events.Tensors("config")[-1].tensor_proto.string_val[0].decode()
config = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
check(config == json.loads((run / "config.json").read_text()), "the text is not config.json")
print("text: config.json")

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
program = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run.parent), "--port", str(port), "--host", "127.0.0.1"]
program.append("--load_fast=false")
server = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
base = f"http://127.0.0.1:{port}/data"


def get(path, **query):
    with urllib.request.urlopen(f"{base}/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return answer.read()


try:
    name = f"{run.name}/tensorboard"
    deadline = time.time() + 120
    while True:
        try:
            if name in json.loads(get("runs")) and "predictions" in json.loads(get("plugin/images/tags")).get(name, {}):
                break
        except OSError:
            pass
        check(time.time() < deadline and server.poll() is None, "the server does not show the run")
        time.sleep(0.5)
    for tag in ("train/classification", "evaluation/AP"):
        same(tag, [(step, number(value)) for _, step, value in json.loads(get("plugin/scalars/scalars", run=name, tag=tag))])
    shown = json.loads(get("plugin/images/images", run=name, tag="predictions", sample=0))
    picture = urllib.request.urlopen(f"{base}/plugin/images/{'individualImage'}?{shown[-1]['query']}", timeout=30).read()
    last = run / "pictures" / f"predictions-{shown[-1]['step']:08d}.jpg"
    check(picture == last.read_bytes(), f"the server's picture is not {last}")
    histogram = json.loads(get("plugin/histograms/histograms", run=name, tag=weights[0]))
    check([step for _, step, _ in histogram] == evaluations, f"histograms at {[step for _, step, _ in histogram]}")
    texts = json.loads(get("plugin/text/text", run=name, tag="config"))
    check("learningRate" in texts[-1]["text"], "the server's text is not the configuration")
    print("server: scalars, images, histograms and text as above")
finally:
    server.terminate()
    server.wait()

families = {family.name: family for family in text_string_to_metric_families(metrics.read_text())}
for name in ("dlfs_train_iterations", "dlfs_train_images", "dlfs_train_loss", "dlfs_train_learning_rate", "dlfs_train_info"):
    check(name in families and families[name].samples, f"no metric {name}")
check(families["dlfs_train_images"].type == "counter", "dlfs_train_images is no counter")
samples = sum(len(family.samples) for family in families.values())
print(f"prometheus: {len(families)} metrics, {samples} samples")
