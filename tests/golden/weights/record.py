"""Records files of weights, and what PyTorch reads from them, for the tests of lib/formats.

    python3 record.py            # rewrites the files beside this script

Debian 12's python3-torch (1.13) and safetensors 0.8.0 made the committed files. expected.json is
{file: {name: {"dtype", "shape", "data"}}}, data the base64 of the row-major little-endian bytes.
"""

import base64
import collections
import json
import os

import torch
from safetensors.torch import save_file
from torch import nn

FOLDER = os.path.dirname(os.path.abspath(__file__))
DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
}


def encode(tensor):
    tensor = tensor.detach().contiguous().reshape(-1)
    # An empty tensor cannot be viewed as bytes.
    raw = tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() > 0 else b""
    return base64.b64encode(raw).decode()


def describe(tensors):
    return {
        name: {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data": encode(value)}
        for name, value in tensors.items()
    }


def all_dtypes():
    values = torch.tensor([[-3.0, 0.5, 2.25], [100.0, -0.0, 7.0]])
    tensors = {f"all.{name}": values.abs().to(dtype) if name == "u8" else values.to(dtype) for dtype, name in DTYPES.items()}
    tensors["scalar"] = torch.tensor(1.5)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["special"] = torch.tensor([float("inf"), float("-inf"), 1e-45, 3.4028234663852886e38])
    tensors["großes Gewicht"] = torch.tensor([2**53 + 1, -(2**62)])
    return tensors


def strided():
    base = torch.arange(24.0).reshape(2, 3, 4)
    return collections.OrderedDict(
        transposed=base.permute(2, 0, 1),
        window=base[:, 1:, 1:3],
        steps=base.reshape(-1)[3::5],
        whole=base,
        expanded=torch.tensor([[1.0], [2.0]]).expand(2, 5),
        channels_last=torch.arange(36, dtype=torch.float16).reshape(1, 3, 4, 3).contiguous(memory_format=torch.channels_last),
        column=torch.arange(6, dtype=torch.int64).reshape(2, 3)[:, 1],
        parameter=nn.Parameter(torch.tensor([0.25, -4.0])),
        bytes=torch.arange(10, dtype=torch.uint8)[1:9].reshape(2, 4).t(),
    )


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("dlfs-ran-code",))


def main():
    os.chdir(FOLDER)
    torch.manual_seed(3)
    expected = {}

    tensors = all_dtypes()
    save_file(tensors, "all.safetensors", metadata={"format": "pt"})
    torch.save(tensors, "all.pth")
    expected["all.safetensors"] = expected["all.pth"] = describe(tensors)

    tensors = strided()
    torch.save(tensors, "strided.pth")
    expected["strided.pth"] = describe(tensors)

    model = nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(2, 3, 1), norm=nn.BatchNorm2d(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125, momentum=0.5)
    model(torch.ones(1, 2, 2, 2)).sum().backward()
    optimizer.step()
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "name": "tiny", "best": None}
    torch.save(checkpoint, "checkpoint.pth")
    expected["checkpoint.pth"] = describe(model.state_dict())
    expected["checkpoint.pth optimizer"] = describe(
        {f"state.{i}.momentum_buffer": state["momentum_buffer"] for i, state in optimizer.state_dict()["state"].items()}
    )

    weights = {"weight": torch.tensor([1.0, 2.0])}
    torch.save(weights, "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(weights, "protocol4.pth", pickle_protocol=4)
    expected["protocol4.pth"] = describe(weights)
    torch.save({**weights, "evil": Evil()}, "evil.pth")
    torch.save(nn.Linear(1, 1), "module.pth")
    torch.save({"weight": torch.tensor([1j])}, "complex.pth")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), "script.pt")

    with open("expected.json", "w") as file:
        json.dump(expected, file, indent=1, ensure_ascii=False)
        file.write("\n")


main()
