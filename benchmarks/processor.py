"""What the processor's products can do, as far as it decides which peers take part."""

import platform
from functools import cache
from pathlib import Path

import environment

# Without these torch and OpenVINO emulate the type, an order slower than float32, or quietly compute in float32.
PRODUCTS = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "half": ("avx512_fp16", "amx_fp16", "asimdhp")}


@cache
def flags():
    """The processor's features as Linux names them; empty where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":")[1].split() for line in lines
                           if line.lower().startswith(("flags", "features"))), ()))


def name():
    """Its model, as /proc/cpuinfo has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                platform.processor() or platform.machine())


def lacks_products(precision):
    """Why there are no products of this type here, or None."""
    wanted = PRODUCTS.get(precision)
    if wanted is None:
        return None
    if environment.limited_to_avx2():
        return f"AVX2 has no {precision} products"
    return None if flags() & set(wanted) else f"this processor has no {precision} products"


def has_avx512():
    return "avx512f" in flags()


def has_amx():
    """Whether torch multiplies bf16 by matrices here."""
    return "amx_bf16" in flags()
