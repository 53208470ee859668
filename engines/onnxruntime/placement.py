"""Where ONNX Runtime put the nodes of a graph: a provider may leave some to the CPU, and nothing says so unasked."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RECORD_KEY = "session.record_ep_graph_assignment_info"

# What sizes are computed with. ONNX Runtime leaves such nodes to the CPU on purpose: they hold a few integers.
_SIZES = {"Shape", "Size", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Cast", "Range", "ConstantOfShape"}
_SIZES |= {"Add", "Sub", "Mul", "Div", "Identity"}


@dataclass(frozen=True, slots=True)
class Placement:
    """The nodes of one graph by where they run, before the provider fuses them.

    Attributes:
        provider: the one that was asked for.
        own: how many nodes it took.
        shapes: how many others do no more than compute sizes.
        elsewhere: how many of each operator run elsewhere besides.
    """

    provider: str
    own: int
    shapes: int
    elsewhere: Mapping[str, int]

    def __str__(self) -> str:
        others = [f"{count} {operator}" for operator, count in sorted(self.elsewhere.items())]
        if self.shapes:
            others.append(f"{self.shapes} nodes that compute sizes")
        return f"{self.provider}; on the CPU: {', '.join(others)}" if others else self.provider


def placement_of(session: Any, provider: str) -> Placement | None:
    """The placement of a session made with ``RECORD_KEY``; ``None`` before ONNX Runtime 1.24, which does not tell.

    Args:
        session: an ``InferenceSession``.
        provider: the one that was asked for.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    parts = session.get_provider_graph_assignment_info()
    own = sum(len(part.get_nodes()) for part in parts if part.ep_name == provider)
    others = Counter(node.op_type for part in parts if part.ep_name != provider for node in part.get_nodes())
    elsewhere = {operator: count for operator, count in others.items() if operator not in _SIZES}
    return Placement(provider, own, others.total() - sum(elsewhere.values()), elsewhere)
