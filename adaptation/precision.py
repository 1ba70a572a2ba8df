"""Whether to train in bfloat16: what the device has in hardware, tried where flags do not say.

Weights, their updates and the losses stay float32; autocast rounds what goes into matrix products. A processor may list
bfloat16 among its features and still be slower with it (one Xeon with avx512_bf16 but no AMX took 1.3 to 1.9 times as
long a step), so on CPUs a layer is timed both ways.
"""

from __future__ import annotations

import time
from functools import cache

from selection.errors import NearkinError

CHOICES = ("auto", "on", "off")
LEAST_GAIN = 1.15
# Rows and widths of a small encoder's feed-forward layer over a batch.
ROWS, WIDTH, INNER = 1024, 384, 1536


def use_bf16(choice: str) -> bool:
    """Whether to autocast to bfloat16.

    Args:
        choice: ``on``, ``off``, or ``auto``: on CUDA where the device has it, on a CPU where a trial of a fifth of a
            second finds it faster by `LEAST_GAIN`; never on MPS.

    Raises:
        NearkinError: another choice.
    """
    import torch

    if choice not in CHOICES:
        raise NearkinError(f"--bf16 {choice} is none of {', '.join(CHOICES)}")
    if choice != "auto":
        return choice == "on"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return not torch.backends.mps.is_available() and cpu_gain() >= LEAST_GAIN


@cache
def cpu_gain() -> float:
    """How many times faster this CPU goes forward and back through a layer in bfloat16 than in float32."""
    import torch

    layer = torch.nn.Linear(WIDTH, INNER)
    inputs = torch.randn(ROWS, WIDTH, requires_grad=True)
    best = {True: float("inf"), False: float("inf")}
    for attempt in range(12):
        for bf16 in best:
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = layer(inputs)
            outputs.sum().backward()
            if attempt:  # the first makes the kernels
                best[bf16] = min(best[bf16], time.perf_counter() - began)
    return best[False] / best[True]
