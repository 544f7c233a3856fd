"""Records NumPy's files of arrays, and what NumPy reads from them, for the tests of lib/formats/numpy.ts.

    python3 record_numpy.py      # rewrites arrays.npz, column-major.npy, compressed.npz and expected-numpy.json beside it

Debian 12's python3-numpy (1.24) made the committed files. expected-numpy.json is {file: {name: {"dtype", "shape", "data"}}},
data the base64 of the row-major little-endian bytes.
"""

import base64
import json
import os

import numpy

FOLDER = os.path.dirname(os.path.abspath(__file__))
DTYPES = {
    "f8": "f64", "f4": "f32", "f2": "f16", "i8": "i64", "i4": "i32", "i2": "i16", "i1": "i8", "u8": "u64", "u4": "u32",
    "u2": "u16", "u1": "u8", "b1": "bool",
}


def describe(arrays):
    return {
        name: {
            "dtype": DTYPES[value.dtype.str[1:]],
            "shape": list(value.shape),
            "data": base64.b64encode(numpy.ascontiguousarray(value).tobytes()).decode(),
        }
        for name, value in arrays.items()
    }


values = numpy.array([[3.0, 0.5, 2.25], [100.0, 0.0, 7.0]])
arrays = {f"all.{code}": values.astype(code) for code in DTYPES}
arrays["scalar"] = numpy.float32(1.5).reshape(())
arrays["empty"] = numpy.zeros((0, 3), numpy.float32)
arrays["special"] = numpy.array([numpy.inf, -numpy.inf, 1e-45, 3.4028234663852886e38], numpy.float32)
arrays["columns"] = numpy.asfortranarray(numpy.arange(24, dtype=numpy.int16).reshape(2, 3, 4))
arrays["group/weight"] = numpy.array([2**53 + 1, -(2**62)])
column_major = {"column-major": numpy.asfortranarray(numpy.arange(6, dtype=numpy.float32).reshape(2, 3))}

numpy.savez(os.path.join(FOLDER, "arrays.npz"), **arrays)
numpy.save(os.path.join(FOLDER, "column-major.npy"), column_major["column-major"])
numpy.savez_compressed(os.path.join(FOLDER, "compressed.npz"), zeros=numpy.zeros(100, numpy.float32))
with open(os.path.join(FOLDER, "expected-numpy.json"), "w") as file:
    json.dump({"arrays.npz": describe(arrays), "column-major.npy": describe(column_major)}, file, indent=1)
    file.write("\n")
