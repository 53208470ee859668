"""A bench report's JSON document, made by hand: four contenders of which one is wrong."""

from typing import Any

SPEEDS = {"torch": 1.0, "onnxruntime": 3.2, "openvino": 3.9, "openvino-bf16": 8.5}
STAGES_MS = {
    "siglip_vision": 3900.0,
    "siglip_text": 450.0,
    "attn_prompter": 21.0,
    "sam_encoder": 13_600.0,
    "sam_decoder": 60.0,
}
FLOORS_MS = {
    "siglip_vision": 800.0,
    "siglip_text": 90.0,
    "attn_prompter": 4.2,
    "sam_encoder": 2400.0,
    "sam_decoder": 10.8,
}
PHRASE_STAGES = ("siglip_text", "attn_prompter", "sam_decoder")
WRONG = "openvino-bf16"


def latency(contender: str, scenario: str, span: str, time_ms: float, **more: Any) -> dict[str, Any]:
    percentiles = {"p50": 1.0, "p90": 1.1, "p99": 1.25}
    figures = {f"{name}_ms": factor * time_ms for name, factor in percentiles.items()}
    figures |= {f"{name}_low_ms": 0.95 * factor * time_ms for name, factor in percentiles.items()}
    figures |= {f"{name}_high_ms": 1.05 * factor * time_ms for name, factor in percentiles.items()}
    wrong = contender == WRONG
    agreement = {"holds": not wrong, "text": "IoU 0.9120" if wrong else "IoU 0.9991"}
    return {
        "contender": contender,
        "scenario": scenario,
        "span": span,
        **figures,
        "agreement": agreement,
        "wrong": wrong,
        **more,
    }


def made_document() -> dict[str, Any]:
    """With everything in it."""
    times = {"first_phrase": sum(STAGES_MS.values()), "next_phrase": sum(STAGES_MS[stage] for stage in PHRASE_STAGES)}
    latencies, ratios, roofline = [], [], []
    for name, speed in SPEEDS.items():
        for scenario, time_ms in times.items():
            images = {"images_per_s": 1e3 * speed / time_ms} if scenario == "first_phrase" else {}
            per_s = {"phrases_per_s": 1e3 * speed / time_ms, "floor_share": 0.31, **images}
            latencies.append(latency(name, scenario, "total", time_ms / speed, **per_s))
            if name != "torch":
                row = {"contender": name, "reference": "torch", "scenario": scenario, "span": "total"}
                ratios.append({**row, "median": speed, "low": 0.9 * speed, "high": 1.1 * speed, "rounds": 10})
        for stage, time_ms in STAGES_MS.items():
            latencies.append(latency(name, "stages", stage, time_ms / speed))
            half = name.endswith("bf16")
            floor_ms = FLOORS_MS[stage] / (2 if half else 1)
            share = floor_ms / (time_ms / speed)
            roofline.append(
                {
                    "contender": name,
                    "stage": stage,
                    "precision": "bf16" if half else "fp32",
                    "flops": 972_077_334_528,
                    "bytes": 374_700_000,
                    "bound": "compute",
                    "floor_ms": floor_ms,
                    "p50_ms": time_ms / speed,
                    "share": share,
                }
            )
    shares = [{"contender": name, "scenario": "next_phrase", "median": 0.029} for name in SPEEDS]
    contenders = [
        {
            "name": name,
            "threads": 2,
            "providers": dict.fromkeys(STAGES_MS, f"{name} on the CPU"),
            "agrees": name != WRONG,
            "startup": {
                "import_ms": 812.0,
                "load_ms": 3100.0,
                "load_least_ms": 2900.0,
                "load_most_ms": 4400.0,
                "first_answer_ms": 9100.0,
                "peak_memory_mib": 5123.4,
            },
        }
        for name in SPEEDS
    ]
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "bundle": {"preset": "b", "digest": "113883c7b730" + "0" * 52, "precision": {"sam_encoder": "fp32"}},
        "machine": {
            "cpu": "AMD EPYC",
            "usable_cores": 2,
            "cores": 2,
            "memory_mib": 24_000.0,
            "system": "Linux 6.1",
            "python": "3.11.9",
            "versions": {"numpy": "2.4.6", "torch": "2.15.0"},
        },
        "settings": {"rounds": 10, "picture": [800, 1200]},
        "contenders": contenders,
        "health": {"ranges": {"stolen_share": {"min": 0.0, "median": 0.01, "max": 0.07}}},
        "peaks": {
            "cpu": {
                "flops_per_s": {"fp32": 2.05e11, "bf16": 4.3e11},
                "bandwidth_bytes_per_s": 3.1e10,
                "how": "numpy 2.4.6",
                "threads": 2,
            }
        },
        "expected_floors_ms": {"H200": {"sam_encoder": 1.23, "sum": 2.26}, "AGX Orin": {"sam_encoder": 22.8}},
        "notes": ["the hypervisor took up to 7% of the cores", "a | b"],
        "latencies": latencies,
        "ratios": ratios,
        "shares": shares,
        "roofline": roofline,
    }
