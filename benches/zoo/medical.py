"""MONAI's networks in one and two dimensions, and PointNet: DenseNets, squeeze-and-excitation, U-Nets, and others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benches.zoo.network import Network, one_output

if TYPE_CHECKING:
    from torch import nn


def monai(name: str, *positional: Any, first: bool = False, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of MONAI's networks; with ``first``, only the first of its outputs."""

    def build() -> nn.Module:
        made: nn.Module = getattr(importlib.import_module("monai.networks.nets"), name)(*positional, **options)
        return one_output(made) if first else made

    return build


def se_resnext() -> nn.Module:
    from monai.networks.blocks.squeeze_and_excitation import SEResNeXtBottleneck
    from monai.networks.nets import SENet

    made: nn.Module = SENet(1, 3, SEResNeXtBottleneck, [1, 1, 1, 1], 32, 16, num_classes=5)
    return made


def pointnet_gelu() -> nn.Module:
    from pointnet import PointNetCls

    made: nn.Module = PointNetCls(3, 10)
    return made


def pointnet_segment() -> nn.Module:
    from pointnet import PointNetSeg

    made: nn.Module = PointNetSeg(3, 10)
    return made


LINE = ({"N": 2, "L": 256}, {"N": 3, "L": 192})
POINTS = ({"N": 2, "L": 128}, {"N": 3, "L": 75})
PLANE = ({"N": 2}, {"N": 3})


def line(name: str, build: Callable[[], nn.Module]) -> Network:
    return Network(f"monai_{name}", "monai", build, ("N", 3, "L"), LINE)


def plane(name: str, build: Callable[[], nn.Module]) -> Network:
    return Network(f"monai_{name}_2d", "monai", build, ("N", 3, 64, 64), PLANE)


SMALL = (16, 32, 64)
SIX = (16, 16, 32, 32, 64, 16)
NETWORKS = (
    line("densenet", monai("DenseNet", 1, 3, 5, init_features=16, growth_rate=8, block_config=(3, 4, 3))),
    line("se_resnext", se_resnext),
    line("resnet", monai("ResNet", "basic", [1, 1, 1, 1], [16, 32, 64, 128], 1, 3, num_classes=5)),
    line("unet_residual", monai("UNet", 1, 3, 2, SMALL, (2, 2), num_res_units=2, norm="batch")),
    line("unet", monai("UNet", 1, 3, 2, SMALL, (2, 2), num_res_units=0, norm="batch")),
    line("attention_unet", monai("AttentionUnet", 1, 3, 2, SMALL, (2, 2))),
    line("basic_unet", monai("BasicUNet", 1, 3, 2, SIX, norm="batch")),
    line("basic_unet_plus_plus", monai("BasicUNetPlusPlus", 1, 3, 2, SIX, norm="batch", first=True)),
    line("highresnet", monai("HighResNet", 1, 3, 2)),
    line("efficientnet", monai("EfficientNetBN", "efficientnet-b0", False, spatial_dims=1, num_classes=5)),
    line("autoencoder", monai("AutoEncoder", 1, 3, 2, SMALL, (2, 2, 2), num_res_units=1, norm="batch")),
    plane("segresnet", monai("SegResNet", 2, 8, 3, 2, norm="batch")),
    plane("dynunet", monai("DynUNet", 2, 3, 2, [3, 3, 3], [1, 2, 2], [2, 2], norm_name="batch")),
    plane("densenet", monai("DenseNet", 2, 3, 5, init_features=16, growth_rate=8, block_config=(2, 2))),
    Network("pointnet_gelu", "pointnet", pointnet_gelu, ("N", 3, "L"), POINTS),
    Network("pointnet_segment", "pointnet", pointnet_segment, ("N", 3, "L"), POINTS),
)
