"""Published peaks of other devices, to say what to expect of them."""

from .peaks import Peaks

# Dense FP16 products summed in FP32, and memory bandwidth. The H200's are what large products and copies reach, the
# others' are their data sheets' at full power.
DEVICES = {
    "H200": Peaks("cuda", {"fp16": 790e12}, 4.3e12, "published"),
    "RTX 4090": Peaks("cuda", {"fp16": 165e12}, 1.008e12, "published"),
    "AGX Orin": Peaks("cuda", {"fp16": 42.6e12}, 0.205e12, "published"),
    "Orin Nano Super": Peaks("cuda", {"fp16": 16.7e12}, 0.102e12, "published"),
}
