"""The networks that are timed, by family: the two reference networks, trained, and part of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benches.zoo.network import Network
from benches.zoo.networks import named

import normfold.models

if TYPE_CHECKING:
    from torch import nn

MODELS = Path(normfold.models.__file__).parent


def surnames() -> nn.Module:
    from normfold.models.surnames.network import SurnameCNN

    return trained(SurnameCNN(), "surnames")


def gunpoint() -> nn.Module:
    from normfold.models.gunpoint.network import InceptionTime

    return trained(InceptionTime(), "gunpoint")


def trained(network: nn.Module, name: str) -> nn.Module:
    """Return the network with the weights of its checkpoint."""
    from safetensors.torch import load_file

    network.load_state_dict(load_file(MODELS / name / f"{name}.safetensors"))
    return network


REFERENCE = (
    Network("surnames", "normfold", surnames, ("N", 42, "L"), ({"N": 2, "L": 24}, {"N": 3, "L": 17}), trained=True),
    Network("gunpoint", "normfold", gunpoint, ("N", 1, "L"), ({"N": 2, "L": 150}, {"N": 3, "L": 97}), trained=True),
)

#: Network -> family. Only networks whose run takes less than some tens of milliseconds are here.
FAMILIES: dict[str, str] = {
    "surnames": "convolution, ReLU, BatchNorm",
    "gunpoint": "Inception",
    "tsai_inception_time": "Inception",
    "torchtime_inception": "Inception",
    "tsai_resnet": "ResNet",
    "tsai_xresnet1d18": "ResNet",
    "monai_resnet": "ResNet",
    "torch_ecg_resnet_stanford": "ResNet",
    "deepecgkit_se_resnet1d": "ResNet",
    "deepecgkit_resnet_hannun": "pre-activation ResNet",
    "monai_densenet": "pre-activation DenseNet",
    "pytorch_tcn": "TCN",
    "deepecgkit_tcn": "TCN",
    "asteroid_conv_tasnet": "dilated depthwise",
    "asteroid_tdconvnet_plus": "dilated depthwise",
    "nemo_matchbox": "separable",
    "quartz_net": "separable",
    "tsai_xception_time": "separable",
    "jasper_dense": "Jasper",
    "torch_ecg_unet": "U-Net",
    "monai_unet": "U-Net",
    "seisbench_phasenet": "U-Net",
    "deepecgkit_crnn": "CRNN",
    "tsai_lstm_fcn": "CRNN",
    "pointnet_gelu": "PointNet",
    "pointnet_segment": "PointNet",
    "torchcrepe_tiny": "crepe",
    "penn_crepe": "crepe",
    "penn_fcnf0": "plain",
    "tsai_fcn": "plain",
    "m5": "plain",
    "tacotron2_postnet": "plain",
    "ecapa_tdnn": "TDNN",
    "eegnet": "EEG, kernels of one axis",
    "eeg_deep4": "EEG, kernels of one axis",
}


def is_first(name: str) -> bool:
    """Whether a network is the first of its family, or of none."""
    return name not in FAMILIES or next(n for n, family in FAMILIES.items() if family == FAMILIES[name]) == name


def network(name: str) -> Network:
    """Return the network called ``name``. Raises ValueError if it is neither a reference network nor in the zoo."""
    return next((own for own in REFERENCE if own.name == name), None) or named(name)
