"""Uses Triton's own HTTP client on a service of dlfs, for scripts/check-triton-client.ts.

    python triton_client.py HOST:PORT MODEL IMAGE...

Ends with 1 and a message where an answer is not what the protocol says, or where two ways of asking the same do not agree. Needs
tritonclient[http].
"""
import itertools
import sys

import numpy as np
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

url, model, *paths = sys.argv[1:]
files = [open(path, "rb").read() for path in paths]
done = 0


def check(condition, what):
    global done
    done += 1
    if not condition:
        sys.exit(f"wrong: {what}")


def refused(what, status, message, run):
    """A call that must fail, with a status and a message that has this text."""
    try:
        run()
    except InferenceServerException as error:
        check(error.status() == str(status) and message in error.message(), f"{what}: got {error}")
    else:
        sys.exit(f"wrong: {what} was not refused")


def bytes_input(batch, binary, name="image_bytes"):
    tensor = http.InferInput(name, [len(batch)], "BYTES")
    if binary:
        tensor.set_data_from_numpy(np.array(batch, dtype=object), binary_data=True)
    else:
        # JSON holds text: base64.
        import base64

        texts = np.array([base64.b64encode(image).decode() for image in batch], dtype=object)
        tensor.set_data_from_numpy(texts, binary_data=False)
    return tensor


NAMES = ["boxes", "scores", "labels", "num_detections"]


def outputs(binary):
    """None: as a client asks that names none."""
    return None if binary is None else [http.InferRequestedOutput(name, binary_data=binary) for name in NAMES]


def arrays(result):
    return {name: result.as_numpy(name) for name in NAMES}


def same(a, b, what):
    for name in NAMES:
        check(a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, f"{what}: {name} has another type or shape")
        check(np.allclose(a[name], b[name], rtol=0, atol=2e-3), f"{what}: {name} differs")


client = http.InferenceServerClient(url, concurrency=4)
check(client.is_server_live() and client.is_server_ready(), "live and ready")
check(client.is_model_ready(model) and client.is_model_ready(model, "1"), "model ready")
check(not client.is_model_ready("none-such"), "a model that there is not is not ready")
check("binary_tensor_data" in client.get_server_metadata()["extensions"], "server metadata")
metadata = client.get_model_metadata(model)
check([output["name"] for output in metadata["outputs"]] == NAMES and metadata["versions"] == ["1"], "model metadata")
config = client.get_model_config(model)
check(config["name"] == model and config["max_batch_size"] >= 2, "model configuration")
index = client.get_model_repository_index()
check(any(entry["name"] == model and entry["state"] == "READY" for entry in index), "repository index")

batch = files[:2]
expected = arrays(client.infer(model, [bytes_input(batch, True)]))
n, rows = expected["scores"].shape
check(n == len(batch) and expected["boxes"].shape == (n, rows, 4) and expected["boxes"].dtype == np.float32, "boxes")
check(expected["labels"].dtype == np.int64 and expected["num_detections"].shape == (n, 1), "labels and counts")
check(rows > 0 and expected["num_detections"].max() == rows, "something was detected")

# Every combination of binary and JSON in and out, compressed or not.
for in_binary, out_binary, ask, answer in itertools.product(
    [True, False], [True, False, None], [None, "gzip", "deflate"], [None, "gzip", "deflate"]
):
    what = f"binary in {in_binary}, binary out {out_binary}, request {ask}, answer {answer}"
    result = client.infer(
        model,
        [bytes_input(batch, in_binary)],
        outputs=outputs(out_binary),
        request_id="id-7",
        request_compression_algorithm=ask,
        response_compression_algorithm=answer,
    )
    check(result.get_response()["id"] == "id-7" and result.get_response()["model_version"] == "1", f"{what}: names")
    same(arrays(result), expected, what)

# Outputs of both kinds in one answer, some of them alone, a version, priority, timeout and parameters.
mixed = [http.InferRequestedOutput(name, binary_data=i % 2 == 0) for i, name in enumerate(NAMES)]
same(arrays(client.infer(model, [bytes_input(batch, True)], model_version="1", outputs=mixed)), expected, "mixed outputs")
alone = client.infer(model, [bytes_input(batch, True)], outputs=[http.InferRequestedOutput("scores")])
check(alone.as_numpy("boxes") is None and np.allclose(alone.as_numpy("scores"), expected["scores"], atol=2e-3), "one output")
short = client.infer(
    model, [bytes_input(batch, True)], priority=1, timeout=10_000_000, parameters={"max_detections": 1, "score_threshold": 0.0}
)
check(short.as_numpy("scores").shape == (n, 1), "parameters")
none = client.infer(model, [bytes_input(batch, True)], parameters={"score_threshold": 1.0})
check(none.as_numpy("boxes").shape == (n, 0, 4) and none.as_numpy("num_detections").sum() == 0, "no detections")

# Pixels, as bytes and as JSON; two images of the same size.
pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 36, 3), dtype=np.uint8)
found = []
for binary in (True, False):
    tensor = http.InferInput("images", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    found.append(arrays(client.infer(model, [tensor])))
same(*found, "pixels")

# Several at a time.
requests = [client.async_infer(model, [bytes_input([image], True)]) for image in files * 4]
for i, request in enumerate(requests):
    result = request.get_result()
    check(result.as_numpy("boxes").shape[0] == 1, "async")
    same(arrays(result), arrays(client.infer(model, [bytes_input([files[i % len(files)]], True)])), "async")

# The request that is made, and the answer that is read, apart from the connection.
body, length = http.InferenceServerClient.generate_request_body([bytes_input(batch, True)])
check(length is not None and 0 < length < len(body), "a request's body by itself")

refused("an unknown model", 404, "none-such", lambda: client.infer("none-such", [bytes_input(batch, True)]))
refused("an unknown version", 404, "9", lambda: client.infer(model, [bytes_input(batch, True)], model_version="9"))
refused("an unknown input", 400, "input", lambda: client.infer(model, [bytes_input(batch, True, "input")]))
refused("an unknown output", 400, "masks", lambda: client.infer(model, [bytes_input(batch, True)], outputs=[http.InferRequestedOutput("masks")]))
refused("metadata of an unknown model", 404, "none-such", lambda: client.get_model_metadata("none-such"))
refused("a damaged image", 400, "image", lambda: client.infer(model, [bytes_input([files[0][:200]], True)]))
refused("no image", 400, "expected a JPEG, PNG or WebP", lambda: client.infer(model, [bytes_input([b"hello"], True)]))
refused("too large a batch", 400, "images, got 2000", lambda: client.infer(model, [bytes_input([b"x"] * 2000, True)]))
floats = http.InferInput("images", [1, 24, 36, 3], "FP32")
floats.set_data_from_numpy(np.zeros((1, 24, 36, 3), np.float32))
refused("floats", 400, "expected UINT8", lambda: client.infer(model, [floats]))
refused("loading", 403, "model-control", lambda: client.load_model(model))
refused("trace settings", 404, "not found", lambda: client.get_trace_settings())
refused("shared memory", 404, "not found", lambda: client.get_system_shared_memory_status())
late = client.async_infer("none-such", [bytes_input(batch, True)])
refused("an async request for an unknown model", 404, "none-such", late.get_result)

statistics = client.get_inference_statistics(model)["model_stats"][0]
check(statistics["inference_stats"]["success"]["count"] >= 60 and statistics["execution_count"] > 0, "statistics")
check(client.is_server_ready(), "still ready")
client.close()
print(f"{done} checks of Triton's client passed")
