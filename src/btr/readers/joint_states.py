"""What distillation looks at in a joint encoder, whatever the family."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class JointStates:
    """Outputs and attention of each joint layer.

    ``R`` sequences, a question and a passage each, of ``S = Q + P`` padded tokens; ``H`` heads.

    Attributes:
        hidden: ``[R, S, d]`` a layer.
        probabilities: ``[R, H, S, S]`` a layer.
    """

    hidden: list[Tensor] = field(default_factory=list)
    probabilities: list[Tensor] = field(default_factory=list)
