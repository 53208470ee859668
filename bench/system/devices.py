"""What devices that are not here can do, so that a report can say what to expect of them."""

from .peaks import Peaks

_HOW = "published"

# Dense half-precision products summed in FP32, and memory. The H200's are what large products and copies reach (its
# data sheet says 989 TFLOP/s and 4.8 TB/s), the others' are their data sheets' at full power.
DEVICES = {
    "H200": Peaks("cuda", {"fp16": 790e12}, 4.3e12, _HOW),
    "RTX 4090": Peaks("cuda", {"fp16": 165e12}, 1.008e12, _HOW),
    "AGX Orin": Peaks("cuda", {"fp16": 42.6e12}, 0.205e12, _HOW),
    "Orin Nano Super": Peaks("cuda", {"fp16": 16.7e12}, 0.102e12, _HOW),
}
