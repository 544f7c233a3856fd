"""Records torch.nn.Linear, layers applied several times and layers with a shared parameter: linear.json.

    python3 record_linear.py

The format is that of record.py. Inputs have their channels last here as in torch.
"""

import torch
from torch import nn

from record import case, write


class Shared(nn.Module):
    """One layer applied twice, two layers with one weight, and a value that three layers read."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.tied, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.tied.weight = self.twice.weight

    def forward(self, x):
        y = torch.sigmoid(self.stem(x))
        z = torch.sigmoid(self.twice(torch.sigmoid(self.twice(y))))
        return self.head(z + self.tied(y) + y), self.head(y)


def layer_case(name, module, shape, frozen=(), backward=True):
    for parameter in set(module.parameters()):
        nn.init.normal_(parameter, 0.1, 0.5)
    arrays = {f"state.{key}": value.clone() for key, value in named(module)}
    for layer in frozen:
        getattr(module, layer).requires_grad_(False)
    x = torch.randn(*shape).requires_grad_()
    outputs = module(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays["input.0"] = x
    arrays.update({f"output.{i}": y for i, y in enumerate(outputs)})
    upstream = [torch.randn_like(y) for y in outputs]
    torch.autograd.backward(outputs, upstream)
    arrays.update({f"upstream.{i}": dy for i, dy in enumerate(upstream)})
    arrays["dinput.0"] = x.grad
    arrays.update({f"grad.{key}": torch.zeros_like(p) if p.grad is None else p.grad for key, p in named(module)})
    return case(name, dict(training=True, backward=backward, frozen=list(frozen)), **arrays)


def named(module):
    """Parameters by name, a shared one once."""
    return list(module.named_parameters())


if __name__ == "__main__":
    torch.manual_seed(20)
    write(
        "linear",
        [
            layer_case("Linear on (3, 5)", nn.Linear(5, 7), (3, 5)),
            layer_case("Linear on (2, 3, 4, 6)", nn.Linear(6, 4), (2, 3, 4, 6)),
            layer_case("Linear on (4) without bias", nn.Linear(4, 3, bias=False), (4,)),
            layer_case("Shared", Shared(), (5, 4)),
            layer_case("Shared, the first layer frozen", Shared(), (5, 4), frozen=["stem"]),
        ],
    )
