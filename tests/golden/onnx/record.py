"""Records files of the onnx package with all element types, for the tests of lib/formats/onnx-read.ts.

    python3 tests/golden/onnx/record.py      # needs onnx and numpy

raw.onnx has its elements in raw_data, typed.onnx in the fields by type, external.onnx in external.bin; expected.json has type,
shape and base64 of the bytes of each tensor.
"""

import base64
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
# What dlfs calls them; typed_data takes numbers as helper.make_tensor does.
TYPES = {
    "f32": (TensorProto.FLOAT, [1.5, -2.25, 3e38, 0, 1e-40, -0.0]),
    "f64": (TensorProto.DOUBLE, [0.1, -2, 1e300, 0, 5e-324, 1]),
    "f16": (TensorProto.FLOAT16, [1, -65504, 6e-8, 0.5, 0, 2]),
    "bf16": (TensorProto.BFLOAT16, [1, -2.5, 3e38, 0.0078125, 0, 4]),
    "f8e4m3": (TensorProto.FLOAT8E4M3FN, [1, -448, 0.015625, 0, 2, 3]),
    "f8e5m2": (TensorProto.FLOAT8E5M2, [1, -57344, 0.25, 0, 2, 3]),
    "i64": (TensorProto.INT64, [-(2**63), 2**63 - 1, -1, 0, 1, 300]),
    "i32": (TensorProto.INT32, [-(2**31), 2**31 - 1, -1, 0, 1, 300]),
    "i16": (TensorProto.INT16, [-32768, 32767, -1, 0, 1, 300]),
    "i8": (TensorProto.INT8, [-128, 127, -1, 0, 1, 30]),
    "u64": (TensorProto.UINT64, [0, 2**64 - 1, 1, 128, 2**32, 300]),
    "u32": (TensorProto.UINT32, [0, 2**32 - 1, 1, 128, 2**31, 300]),
    "u16": (TensorProto.UINT16, [0, 65535, 1, 128, 2**15, 300]),
    "u8": (TensorProto.UINT8, [0, 255, 1, 128, 2, 30]),
    "bool": (TensorProto.BOOL, [True, False, True, True, False, False]),
}


def model(tensors):
    graph = helper.make_graph([], "tensors", [], [], initializer=tensors)
    made = helper.make_model(graph, producer_name="record.py", opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(made, {"note": "all element types"})
    return made


def main():
    typed = [helper.make_tensor(name, kind, [2, 3], values) for name, (kind, values) in TYPES.items()]
    typed.append(helper.make_tensor("scalar", TensorProto.FLOAT, [], [7]))
    typed.append(helper.make_tensor("empty", TensorProto.FLOAT, [0, 4], []))
    raw = [numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name) for tensor in typed]
    onnx.save(model(typed), HERE / "typed.onnx")
    onnx.save(model(raw), HERE / "raw.onnx")
    onnx.save(
        model(raw), HERE / "external.onnx", save_as_external_data=True, location="external.bin", size_threshold=1
    )
    names = {kind: name for name, (kind, _) in TYPES.items()}
    expected = {
        tensor.name: {
            "dtype": names[tensor.data_type],
            "shape": list(tensor.dims),
            "data": base64.b64encode(np.ascontiguousarray(numpy_helper.to_array(tensor)).tobytes()).decode(),
        }
        for tensor in typed
    }
    text = json.dumps({"onnx": onnx.__version__, "tensors": expected}, indent=2)
    (HERE / "expected.json").write_text(f"{text}\n")


main()
