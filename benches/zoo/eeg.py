"""Networks for EEG and sleep: 2-D kernels with one axis of 1, depthwise and separable convolutions, ELU, U-Nets."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benches.zoo.network import Network, without_init

if TYPE_CHECKING:
    from torch import nn


def braindecode(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of braindecode's networks: 4 classes; by default 22 channels of 4 s."""

    def build() -> nn.Module:
        import braindecode.models

        settings = {"n_chans": 22, "n_outputs": 4, "n_times": 1000, "sfreq": 250} | options
        made: nn.Module = getattr(braindecode.models, name)(**settings)
        return made

    return build


def torcheeg(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of torcheeg's convolutional networks."""

    def build() -> nn.Module:
        without_init("torcheeg")
        without_init("torcheeg.models")  # its __init__ needs compiled graph libraries
        made: nn.Module = getattr(importlib.import_module("torcheeg.models.cnn"), name)(**options)
        return made

    return build


BATCH = ({"N": 2}, {"N": 3})
SLEEP = {"n_chans": 1, "n_times": 3000, "sfreq": 100}


def motor(name: str, **options: Any) -> Network:
    return Network(f"braindecode_{name.lower()}", "braindecode", braindecode(name, **options), ("N", 22, 1000), BATCH)


NETWORKS = (
    motor("ATCNet"),
    motor("AttentionBaseNet"),
    motor("ContraWR"),
    motor("CTNet"),
    motor("EEGConformer"),
    motor("EEGITNet"),
    motor("EEGInceptionERP"),
    motor("EEGInceptionMI", n_filters=16),
    motor("EEGNeX"),
    motor("EEGTCNet"),
    motor("HybridNet"),
    motor("MSVTNet"),
    motor("SCCNet"),
    motor("SPARCNet"),
    motor("ShallowFBCSPNet"),
    motor("TCFormer"),
    motor("TIDNet"),
    motor("TSception"),
    motor("BrainModule"),
    motor("NeuroPose"),
    motor("IFNet"),
    motor("SincShallowNet"),
    motor("FBCNet"),
    Network("braindecode_deepsleepnet", "braindecode", braindecode("DeepSleepNet", **SLEEP), ("N", 1, 3000), BATCH),
    Network("braindecode_attnsleep", "braindecode", braindecode("AttnSleep", **SLEEP), ("N", 1, 3000), BATCH),
    Network(
        "braindecode_usleep", "braindecode", braindecode("USleep", **SLEEP | {"n_chans": 2}), ("N", 2, 3000), BATCH
    ),
    Network("torcheeg_usleep", "torcheeg", torcheeg("USleep", depth=6), ("N", 1, 3000), BATCH),
    Network(
        "torcheeg_fbcnet",
        "torcheeg",
        torcheeg("FBCNet", num_electrodes=28, chunk_size=512, in_channels=1),
        ("N", 1, 28, 512),
        BATCH,
    ),
    Network("torcheeg_lmda", "torcheeg", torcheeg("LMDA", num_electrodes=32, chunk_size=128), ("N", 1, 32, 128), BATCH),
    Network("torcheeg_tsception", "torcheeg", torcheeg("TSCeption"), ("N", 1, 28, 512), BATCH),
)
