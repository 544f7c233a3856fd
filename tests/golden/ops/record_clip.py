"""Records torch.nn.utils.clip_grad_norm_ with torch.optim.SGD over several steps: clip.json.

    python3 record_clip.py

The format is that of record.py; "norm.<step>" is what clip_grad_norm_ returned.
"""

import torch
from torch import nn

from record import case, write


def clip_case(name, max_norm, scale, momentum, nesterov):
    sizes, decays, rates = [5, 33, 1, 700], [0.0, 1e-2, 5e-4, 1e-4], [0.1, 0.05, 0.02]
    parameters = [torch.randn(n).requires_grad_() for n in sizes]
    groups = [dict(params=[p], weight_decay=d, lr=1.0) for p, d in zip(parameters, decays)]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov)
    arrays = {f"p{i}": p.detach().clone() for i, p in enumerate(parameters)}
    for step, rate in enumerate(rates):
        for group, p in zip(optimizer.param_groups, parameters):
            group["lr"] = rate
            # Every second step lies below the limit.
            p.grad = torch.randn_like(p) * (scale if step % 2 == 0 else max_norm / 100)
        for i, p in enumerate(parameters):
            arrays[f"g{i}.{step}"] = p.grad.clone()
        arrays[f"norm.{step}"] = nn.utils.clip_grad_norm_(parameters, max_norm).reshape(1)
        optimizer.step()
        arrays.update({f"p{i}.{step}": p.detach().clone() for i, p in enumerate(parameters)})
    params = dict(maxNorm=max_norm, momentum=momentum, nesterov=nesterov, rates=rates, sizes=sizes, decays=decays, factors=[1.0])
    return case(name, params, **arrays)


if __name__ == "__main__":
    torch.manual_seed(21)
    write(
        "clip",
        [
            clip_case("clipped to 1", 1.0, 1.0, 0.9, False),
            clip_case("clipped to 0.1, large gradients, nesterov", 0.1, 1000.0, 0.9, True),
            clip_case("clipped to 10, no momentum", 10.0, 3.0, 0.0, False),
        ],
    )
