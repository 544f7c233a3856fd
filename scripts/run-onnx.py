"""Checks and runs ONNX models for scripts/check-onnx.ts. Arguments: a folder with cases.json; results go beside it.

cases.json is [{"model": FILE, "runs": [{"inputs": {NAME: {"file", "shape"}}, "outputs": PREFIX}]}]; each output is written as
PREFIX + its number + ".bin", and results.json lists what came out, or the error.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

folder = Path(sys.argv[1])
onnxruntime.set_default_logger_severity(3)
results = []
for case in json.loads((folder / "cases.json").read_text()):
    result = {"runs": [], "error": None}
    results.append(result)
    try:
        path = folder / case["model"]
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        for run in case["runs"]:
            feed = {
                name: np.fromfile(folder / entry["file"], dtype="<f4").reshape(entry["shape"])
                for name, entry in run["inputs"].items()
            }
            outputs = {}
            for i, (name, value) in enumerate(zip(names, session.run(names, feed))):
                file = f"{run['outputs']}{i}.bin"
                np.ascontiguousarray(value).tofile(folder / file)
                outputs[name] = {"file": file, "shape": list(value.shape), "dtype": str(value.dtype)}
            result["runs"].append(outputs)
    except Exception as error:  # what one model raises is told, and the others are still run
        result["error"] = f"{type(error).__name__}: {error}"
versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
(folder / "results.json").write_text(json.dumps({"versions": versions, "cases": results}))
