"""The operations that DBLRNet is made of, as torch ops in the namespace ``dblr_fast``.

One file an op: its schema, its fake (shapes, strides and dtype, for torch.compile, torch.export and meta
tensors), its autograd and autocast rules. The arithmetic is in the backends.
"""

from .conv_bn_act import conv_bn_act
from .reconstruct import reconstruct
from .residual_block import residual_block
from .stem import stem

__all__ = ["conv_bn_act", "reconstruct", "residual_block", "stem"]
