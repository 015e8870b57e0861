"""Running an encoder fast: packed weights, fewer multiplications, bfloat16 or 8 bits."""

from .optimized import OptimizedEncoder, Precision, optimize

__all__ = ["OptimizedEncoder", "Precision", "optimize"]
