"""What a model costs: parameters, multiply-accumulates, real-time factor, memory."""

from .costs import HEAD, REST, Profile, RuntimeCost, Timing, profile, short_name
from .measuring import measure, peak_memory, time_components

__all__ = [
    "HEAD",
    "REST",
    "Profile",
    "RuntimeCost",
    "Timing",
    "measure",
    "peak_memory",
    "profile",
    "short_name",
    "time_components",
]
