"""The methods by name: what is compared, how, and what the student hears; any other point can be asked for.

A method is a row here; docs/methods.md tells where it comes from and what it costs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from .inputs import Input
from .loss import Distance
from .targets import Targets


class Objective(NamedTuple):
    """What a method distills.

    Attributes:
        targets: which layers of the student are to match which layers of the teacher.
        distance: how far apart they are.
        input: what the student hears.
        units: of the teacher that the student predicts in stage 2; 0 for none.
    """

    targets: Targets
    distance: Distance = "l1-cosine"
    input: Input = "clean"
    units: int = 0


Method = Literal[
    "skill",
    "skill-teacher-mean",
    "medoid",
    "equal-groups",
    "dphubert",
    "all-layers",
    "star",
    "skill-star",
    "masked",
    "noisy",
    "skill-units",
]
METHODS: dict[str, Objective] = {
    "skill": Objective("skill"),
    "skill-teacher-mean": Objective("skill-teacher-mean"),
    "medoid": Objective("medoid"),
    "equal-groups": Objective("equal-groups"),
    "dphubert": Objective("dphubert"),
    "all-layers": Objective("all-layers"),
    "star": Objective("all-layers", "temporal"),
    "skill-star": Objective("skill", "both"),
    "masked": Objective("skill", "l1-cosine", "masked"),
    "noisy": Objective("skill", "l1-cosine", "noisy"),
    "skill-units": Objective("skill", "l1-cosine", "masked", units=500),
}
assert METHODS.keys() == set(get_args(Method))
