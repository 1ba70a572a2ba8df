"""What options of `nearkin bench` choose from; apart from what measures it, whose libraries take seconds to load."""

from __future__ import annotations

COMPILED = "compiled"
PATHS = ("exact", "bf16", COMPILED, "int8", "static")
PARTS = ("masked LM", "finetuning")
