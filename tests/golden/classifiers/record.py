"""Records torchvision's classifiers as checkpoints of some KB, for the tests of loading backbones.

    python3 record.py            # rewrites resnet18.pth and mobilenet_v2.pth beside it

Names, shapes and types are those of torchvision's state dicts; all elements of the i-th tensor are i / 1000, so that a file
holds one number for each. Debian 12's python3-torch 1.13 and python3-torchvision 0.14 made the committed files.
"""

import os

import torch
import torchvision

FOLDER = os.path.dirname(os.path.abspath(__file__))

for name in ("resnet18", "mobilenet_v2"):
    state = getattr(torchvision.models, name)().state_dict()
    numbers = torch.arange(len(state)) / 1000
    counts = torch.tensor(100)
    small = {
        key: numbers[i].expand(value.shape) if value.is_floating_point() else counts
        for i, (key, value) in enumerate(state.items())
    }
    torch.save(small, os.path.join(FOLDER, f"{name}.pth"))
