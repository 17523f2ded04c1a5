"""Networks for time series classification and forecasting: inception, residual, separable and recurrent ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benches.zoo.network import Network, without_init

if TYPE_CHECKING:
    from torch import nn


def tsai(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of tsai's networks for three variables and five classes."""

    def build() -> nn.Module:
        without_init("fastai.vision.models")  # imports torchvision
        made: nn.Module = getattr(importlib.import_module(f"tsai.models.{module}"), name)(3, 5, **options)
        return made

    return build


def torchtime_inception() -> nn.Module:
    from torchtime.models.inception import InceptionTime

    made: nn.Module = InceptionTime(3, 5)
    return made


SERIES = ({"N": 2, "L": 150}, {"N": 3, "L": 97})
FIXED = ({"N": 2}, {"N": 3})
NETWORKS = (
    Network("tsai_xception_time", "tsai", tsai("XceptionTime", "XceptionTime", nf=8), ("N", 3, "L"), SERIES),
    Network("tsai_xresnet1d18", "tsai", tsai("XResNet1d", "xresnet1d18"), ("N", 3, "L"), SERIES),
    Network("tsai_omniscale", "tsai", tsai("OmniScaleCNN", "OmniScaleCNN", seq_len=150), ("N", 3, "L"), SERIES),
    Network("tsai_rescnn", "tsai", tsai("ResCNN", "ResCNN"), ("N", 3, "L"), SERIES),
    Network("tsai_lstm_fcn", "tsai", tsai("RNN_FCN", "LSTM_FCN", seq_len=150), ("N", 3, 150), FIXED),
    Network("tsai_mgru_fcn", "tsai", tsai("RNN_FCN", "MGRU_FCN", seq_len=150), ("N", 3, 150), FIXED),
    Network("tsai_xcm", "tsai", tsai("XCM", "XCM", seq_len=150), ("N", 3, 150), FIXED),
    Network("tsai_mwdn", "tsai", tsai("mWDN", "mWDN", seq_len=160), ("N", 3, 160), FIXED),
    Network("tsai_tst", "tsai", tsai("TST", "TST", seq_len=150, n_layers=2), ("N", 3, 150), FIXED),
    Network("tsai_convtran", "tsai", tsai("ConvTranPlus", "ConvTranPlus", seq_len=150), ("N", 3, 150), FIXED),
    Network("tsai_inception_time_plus", "tsai", tsai("InceptionTimePlus", "InceptionTimePlus"), ("N", 3, "L"), SERIES),
    Network("tsai_mlp", "tsai", tsai("MLP", "MLP", seq_len=150, use_bn=True), ("N", 3, 150), FIXED),
    Network("torchtime_inception", "pytorchtime", torchtime_inception, ("N", 3, "L"), SERIES),
)
