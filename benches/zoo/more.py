"""Networks that only the export is tried on: those that this project was not developed with.

``python -m benches.zoo.export`` exports them. They come from packages for images, segmentation, speech, EEG,
electrocardiograms, earthquakes and time series, and are as their authors wrote them; where a size was changed so that a
proof takes seconds, the constructor's arguments here show it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benches.zoo.eeg import braindecode, torcheeg
from benches.zoo.network import Dim, Network, one_output
from benches.zoo.timeseries import tsai

if TYPE_CHECKING:
    from torch import nn


def made(place: str, *arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes ``package.module:Name`` with these arguments."""

    def build() -> nn.Module:
        module, _, name = place.partition(":")
        network: nn.Module = getattr(importlib.import_module(module), name)(*arguments, **options)
        return network

    return build


def timm(name: str) -> Callable[[], nn.Module]:
    """Return a function that makes one of timm's networks, without weights, for ten classes."""

    def build() -> nn.Module:
        import timm

        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=10)
        return network

    return build


def torchvision(name: str) -> Callable[[], nn.Module]:
    """Return a function that makes one of torchvision's networks, without weights, for ten classes."""

    def build() -> nn.Module:
        from torchvision import models

        network: nn.Module = models.get_model(name, weights=None, num_classes=10)
        return network

    return build


def segmentation(name: str, encoder: str) -> Callable[[], nn.Module]:
    """Return a function that makes one of the networks of segmentation_models_pytorch."""

    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        network: nn.Module = getattr(smp, name)(encoder, encoder_weights=None, classes=2)
        return network

    return build


def transformers(config: str, model: str, output: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of transformers' networks from its configuration, with one of its outputs."""

    def build() -> nn.Module:
        import transformers as hf

        network: nn.Module = getattr(hf, model)(getattr(hf, config)(**options))
        return one_output(network, output)

    return build


def seisbench(name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of seisbench's networks."""
    return made(f"seisbench.models:{name}", **options)


def image(package: str, name: str, build: Callable[[], nn.Module], side: int = 32) -> Network:
    return Network(f"{package}_{name}".lower(), package, build, ("N", 3, side, side), BATCH)


def eeg(name: str, shape: tuple[Dim, ...] = ("N", 22, 1000), **options: Any) -> Network:
    return Network(f"braindecode_{name.lower()}", "braindecode", braindecode(name, **options), shape, BATCH)


def series(name: str, module: str, kind: str, free: bool = False, **options: Any) -> Network:
    shape: tuple[Dim, ...] = ("N", 3, "L") if free else ("N", 3, 150)
    sizes = ({"N": 2, "L": 150}, {"N": 3, "L": 97}) if free else BATCH
    return Network(f"tsai_{name}", "tsai", tsai(module, kind, **options), shape, sizes)


def medical(name: str, length: int, *arguments: Any, **options: Any) -> Network:
    place = f"monai.networks.nets:{options.pop('kind', name)}"
    return Network(f"monai_{name.lower()}_1d", "monai", made(place, *arguments, **options), ("N", 2, length), BATCH)


BATCH = ({"N": 2}, {"N": 3})
TIMM = (
    "resnet10t", "resnet18d", "seresnet18", "resnext26ts", "resnest14d", "skresnet18", "gernet_s", "ese_vovnet19b_slim",
    "regnetx_002", "regnety_002", "mobilenetv2_035", "mobilenetv3_small_050", "efficientnet_lite0", "tinynet_e",
    "lcnet_035", "ghostnet_050", "mnasnet_small", "fbnetc_100", "spnasnet_100", "rexnet_100", "dla46_c",
    "hrnet_w18_small", "repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9", "selecsls42", "cspresnet50",
    "mobilevit_xxs", "efficientvit_b0", "starnet_s1", "mobilenetv4_conv_small", "res2net50_26w_4s", "ghostnetv2_100",
)  # fmt: skip

SIGNALS: tuple[Network, ...] = (
    Network("transformers_patchtst", "transformers", transformers(
        "PatchTSTConfig", "PatchTSTForClassification", "prediction_logits",
        num_input_channels=3, context_length=64, patch_length=8, patch_stride=8, d_model=16, num_attention_heads=2,
        num_hidden_layers=2, ffn_dim=32, num_targets=4, use_cls_token=True,
    ), ("N", 64, 3), BATCH),
    series("fcn_plus", "FCNPlus", "FCNPlus", free=True),
    series("resnet_plus", "ResNetPlus", "ResNetPlus", free=True),
    series("xception_time_plus", "XceptionTimePlus", "XceptionTimePlus", nf=8),
    series("xcm_plus", "XCMPlus", "XCMPlus", seq_len=150),
    series("lstm_fcn_plus", "RNN_FCNPlus", "LSTM_FCNPlus", seq_len=150),
    series("gru_fcn", "RNN_FCN", "GRU_FCN", seq_len=150),
    series("xresnet1d18_plus", "XResNet1dPlus", "xresnet1d18plus"),
    series("tst_plus", "TSTPlus", "TSTPlus", seq_len=150, n_layers=2),
    eeg("FBMSNet", n_bands=9),
    eeg("FBLightConvNet", n_bands=9),
    eeg("SSTDPN"),
    eeg("EEGMiner", method="mag"),
    eeg("SyncNet"),
    eeg("SleepStagerChambon2018", ("N", 2, 3000), n_chans=2, n_times=3000, sfreq=100, apply_batch_norm=True),
    Network("torcheeg_fbccnn", "torcheeg", torcheeg("FBCCNN"), ("N", 4, 9, 9), BATCH),
    Network("seisbench_gpd", "seisbench", seisbench("GPD"), ("N", 3, 400), BATCH),
    Network("seisbench_phasenet_light", "seisbench", seisbench("PhaseNetLight"), ("N", 3, 3001), BATCH),
    Network("seisbench_skynet", "seisbench", seisbench("Skynet"), ("N", 3, 30_000), BATCH),
    medical("UNet", 64, 1, 2, 3, (8, 16, 32), (2, 2), num_res_units=1, norm="batch"),
    medical("AttentionUnet", 64, 1, 2, 3, (8, 16, 32), (2, 2)),
    medical("BasicUNet", 64, 1, 2, 3, (8, 8, 16, 16, 32, 8), norm=("batch", {})),
    medical("EfficientNet", 64, "efficientnet-b0", False, True, 1, 2, 5, kind="EfficientNetBN"),
    medical("SEResNet50", 64, spatial_dims=1, in_channels=2, num_classes=5),
    medical("HighResNet", 32, 1, 2, 3),
    medical("AutoEncoder", 64, 1, 2, 2, (8, 16, 32), (2, 2, 2), norm="batch", num_res_units=1),
    Network("speechbrain_cnn14", "speechbrain", made(
        "speechbrain.lobes.models.Cnn14:Cnn14", mel_bins=64, emb_dim=64
    ), ("N", 64, 64), BATCH),
)  # fmt: skip
IMAGES: tuple[Network, ...] = (
    *(image("timm", name, timm(name)) for name in TIMM),
    Network("timm_levit_128s", "timm", timm("levit_128s"), ("N", 3, 224, 224), BATCH),
    *(image("torchvision", n, torchvision(n)) for n in ("shufflenet_v2_x0_5", "mnasnet0_5", "vgg11_bn", "googlenet")),
    image("segmentation_models_pytorch", "unet", segmentation("Unet", "resnet18"), 64),
    image("segmentation_models_pytorch", "linknet", segmentation("Linknet", "mobilenet_v2"), 64),
    image("segmentation_models_pytorch", "fpn", segmentation("FPN", "resnet18"), 64),
    image("transformers", "regnet", transformers(
        "RegNetConfig", "RegNetForImageClassification", "logits",
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], groups_width=8,
    )),
    image("transformers", "mobilenet_v1", transformers(
        "MobileNetV1Config", "MobileNetV1ForImageClassification", "logits", depth_multiplier=0.25
    )),
    image("transformers", "cvt", transformers(
        "CvtConfig", "CvtForImageClassification", "logits", embed_dim=[16, 32, 48], depth=[1, 1, 2], num_heads=[1, 2, 3]
    )),
)  # fmt: skip
NETWORKS = (*SIGNALS, *IMAGES)
