"""What is left of the BatchNorms of each network after folding, in any form, and why.

Most of these are left because gamma has both signs here, and is sometimes 0.
"""

from __future__ import annotations

_DEPTHWISE = "the reader is depthwise and padded with zeros: one Add keeps the shift"
_SMOOTH = "the activation behind is smooth and the tensor has other readers"
_MIXED = "ReLU behind, shared tensor, gamma of both signs: a Max and a Min would be slower than BatchNorm and ReLU"
_SIGN = "gamma of both signs before a max-pool or a sum: the signs of the channels stay"
_SKIP = "on a skip connection whose tensor other nodes read, with gamma of both signs and 0"
_POOLED = "behind pooled statistics whose mean is much larger than their deviation: folding would lose digits"
_OWN = "a constant of the network's own"

#: Network -> the largest number that may be left; 0 for a network that is not named.
KEPT: dict[str, tuple[int, str]] = {
    "asteroid_conv_tasnet": (8, _DEPTHWISE),
    "asteroid_tdconvnet_plus": (8, _DEPTHWISE),
    "braindecode_neuropose": (1, _OWN),
    "braindecode_sparcnet": (35, _SMOOTH),
    "braindecode_tidnet": (4, _POOLED),
    "braindecode_usleep": (12, _SIGN),
    "deepecgkit_deep_res_cnn": (3, _MIXED),
    "deepecgkit_resnet_hannun": (17, _MIXED),
    "deepecgkit_tcn": (3, _MIXED),
    "deepecgkit_xresnet1d_benchmark": (1, _POOLED),
    "ecapa_tdnn": (24, _SIGN),
    "monai_densenet": (11, _MIXED),
    "monai_densenet_2d": (5, _MIXED),
    "monai_highresnet": (8, _MIXED),
    "monai_segresnet_2d": (9, _MIXED),
    "net1d": (5, _SMOOTH),
    "penn_crepe": (6, _SIGN),
    "pointnet_gelu": (3, _SIGN),
    "pointnet_segment": (4, _SIGN),
    "resnet1d": (8, _MIXED),
    "seisbench_cred": (2, _MIXED),
    "seisbench_dppdetector": (5, _DEPTHWISE),
    "seisbench_eqtransformer": (7, _MIXED),
    "seisbench_obstransformer": (7, _MIXED),
    "speaker_resnet": (3, _MIXED),
    "torch_ecg_densenet_vanilla": (24, _MIXED),
    "torch_ecg_multi_scopic": (9, _SIGN),
    "torch_ecg_multi_scopic_leadwise": (9, _MIXED),
    "torchcrepe_full": (1, _SIGN),
    "torcheeg_usleep": (6, _SIGN),
    "tsai_inception_time": (1, _SKIP),
    "tsai_inception_time_plus": (1, _SKIP),
    "tsai_mwdn": (1, _SKIP),
    "tsai_resnet": (1, _SIGN),
    "tsai_tst": (4, _SIGN),
    "x_vector": (1, _SIGN),
}

_SHAPES = "the TorchScript exporter computes shapes in the graph, which the fold does not infer"

#: Claims that do not hold yet: (name of the claim, network, file) -> why.
GAPS: dict[tuple[str, str, str], str] = {
    (
        "gone",
        "ecapa_tdnn",
        "unfolded_legacy",
    ): "the graph computes the shape of the mask in its gates: one more sign stays",
    ("gone", "seisbench_obstransformer", "unfolded_legacy"): _SHAPES,
}
