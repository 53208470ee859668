"""GPU classes that TensorRT-RTX compiles for without the GPU, by compute capability or product name."""

import re

from ..errors import BadInputError

# Product names by compute capability, for names that the series of a GeForce does not decide.
_PRODUCTS = {
    "sm80": ("a100", "a30"),
    "sm86": ("rtx-2050", "a2", "a10", "a16", "a40", "rtx-a2000", "rtx-a4000", "rtx-a5000", "rtx-a6000"),
    "sm87": ("orin", "orin-nano", "orin-nx", "agx-orin"),
    "sm89": ("l4", "l40", "l40s", "rtx-6000-ada"),
    "sm90": ("h100", "h200", "gh200"),
    "sm100": ("b200", "gb200"),
    "sm110": ("thor", "agx-thor"),
    "sm120": ("rtx-pro-6000",),
    "sm121": ("gb10", "dgx-spark"),
}
_BY_PRODUCT = {name: sm for sm, names in _PRODUCTS.items() for name in names}
_GEFORCE = re.compile(r"(?:geforce-)?rtx-(\d0)[5-9]0(?:-ti|-super|-ti-super|-laptop|-d)?")
_SERIES = {"20": "sm75", "30": "sm86", "40": "sm89", "50": "sm120"}
_COMPILED = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


def parse_gpus(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of GPU classes.

    Args:
        text: compute capabilities (``sm86``) or product names (``rtx-4090``), in any order.

    Returns:
        Compute capabilities such as ``sm86``, each once, from the oldest to the newest.

    Raises:
        BadInputError: no GPU is named, a name is unknown, or TensorRT-RTX cannot compile for it.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise BadInputError("--gpus names no GPU: name compute capabilities or products, e.g. sm86,rtx-4090")
    return tuple(sorted({_parse(name) for name in names}, key=lambda sm: int(sm[2:])))


def _parse(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "-", name.lower()).removeprefix("nvidia-").removeprefix("jetson-")
    geforce = _GEFORCE.fullmatch(plain)
    sm = _BY_PRODUCT.get(plain) or (_SERIES.get(geforce[1], "") if geforce else plain)
    if sm in _COMPILED:
        return sm
    if sm in _PRODUCTS:
        raise BadInputError(
            f"TensorRT-RTX has no compiler for '{name}' ({sm}: {', '.join(_PRODUCTS[sm])}):"
            " run `rsrefseg build` with full TensorRT on that device"
        )
    raise BadInputError(f"unknown GPU '{name}': name one of {', '.join(_COMPILED)}, or e.g. rtx-4090")
