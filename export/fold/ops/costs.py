"""The costs of operators in onnxruntime on a CPU: every measured constant of the fold. None decides what is written.

The unit is a *pass*: the time of one operator over a tensor that computes each entry from one entry, where that time is
not shared with a convolution. A cost only chooses between ways to fold; what an operator is written as follows from its
params alone (``AffineForm``, ``ClampForm``, ``SlopeForm``).

The machine and the exact procedure were not recorded with the single figures; the project's other figures of those days
come from onnxruntime 1.32 on two shared cores of an AMD EPYC. The dates are those of the commits that brought the
constants. Measure again with ``python -m benches.folding.costs``, which prints each cost beside the constant used here.
"""

from __future__ import annotations

from normfold.export.fold.net import Tensor

# 22 November 2026. One node for an affine that stays: a Mul by signs, a Mul, an Add, a BatchNormalization, a Mul and an
# Add. A BatchNormalization of 1 is the unit.
SIGNS_COST = 0.8
SCALE_COST = 0.95
SHIFT_COST = 0.95
# 28 November 2026. Before a depthwise convolution with zero padding no other exact form of a shift is faster than this
# Add beyond the noise (``python -m benches.folding.depthwise``), so none is tried.
BATCHNORM_COST = 1.0
SCALE_SHIFT_COST = 1.8

# 22 November 2026. A Relu and a Clip that no convolution before them computes; a Max or a Min by channel; a PRelu by
# channel.
RELU_COST = 0.6
CLIP_COST = 0.7
BOUND_COST = 0.9
PRELU_COST = 6.0

#: 26 November 2026. A Max and a Min by channel: 4 to 5 % slower than BatchNorm and Relu between 1-D convolutions.
BOTH_COST = 2.2
#: 26 November 2026. A Max or a Min by channel between 2-D convolutions in blocks of channels, where the runtime leaves
#: this layout for it: 13 to 40 % slower than BatchNorm and Relu.
UNBLOCKED_COST = 1.9

#: 22 November 2026. What one more channel costs a convolution that carries it, but for its multiply-adds.
CARRIER_COST = 0.05
#: 22 November 2026. What a Pad costs that puts a channel of ones before one convolution.
PUT_COST = 0.85
#: 25 November 2026. The Add that gives a MatMul its bias: no more than the Add of a shift that would stay.
BIAS_COST = 0.9
#: 22 November 2026. One more channel in a 2-D convolution in blocks of channels: 1.1 to 2.5 times slower, which is more
#: than any affine is worth.
BLOCK_COST = 10.0

#: 26 November 2026. The multiply-adds of a convolution, for each entry of the tensor, that take as long as a pass over
#: it: 10 to 20 in one and in two dimensions, with 4 to 128 channels and 3 to 15 taps.
PASS_MACS = 12.0
#: 26 November 2026. The multiply-adds that take as long as the call of an operator: 15,000 to 30,000.
NODE_MACS = 20_000.0

# Chosen, not measured.

#: An option must save at least this many passes to be taken.
LEAST_GAIN = 1e-6
#: The length that a dynamic one is taken for: a short one, where one node less gains most.
OPEN_LENGTH = 100
#: How much of their own time the convolutions that carry a channel may lose against the affine before. They are a part
#: of a network, and other parts gain: with this share every affine of the public networks goes that can go, and none of
#: the networks is slower (26 November 2026, ``python -m benches.folding.bench_folding``).
LOSS = 0.05

#: onnxruntime's blocked layout takes channels in multiples of ALIGNED, from LEAST channels on, and a Concat in it takes
#: whole blocks of BLOCK. 26 November 2026: 93 channels of a Concat in place of 96 cost EEGInceptionMI 3 % of its time
#: (``python -m benches.folding.bench_folding ZOO braindecode_eeginceptionmi``).
ALIGNED, BLOCK = 4, 16
LEAST = 8


def fits_blocks(channels: int) -> bool:
    """Whether the blocked layout takes this number of channels."""
    return channels % ALIGNED == 0 and channels >= LEAST


def in_blocks(tensor: Tensor) -> bool:
    """Whether the runtime may hold it in blocks of channels: between 2-D convolutions, with a fitting channel count."""
    shape = tensor.shape
    return shape is not None and len(shape) == 4 and isinstance(shape[1], int) and fits_blocks(shape[1])
