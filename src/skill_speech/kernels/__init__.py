"""The encoder's operations, faster: on CPUs while training and analyzing, and for encoders that only run.

`attach_kernels` (attend, convolution, dropout) leaves an encoder what it is; `optimize` (frontend, layer, linear,
position) makes another one of it: packed weights, fewer multiplications, bfloat16 or 8 bits.
"""

from .attach import attach_kernels, has_kernels
from .optimized import OptimizedEncoder, Precision, optimize

__all__ = ["OptimizedEncoder", "Precision", "attach_kernels", "has_kernels", "optimize"]
