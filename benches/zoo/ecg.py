"""Networks for electrocardiograms: 1-D ResNets with every order of norm and activation, DenseNets, and others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benches.zoo.network import Network, from_repository, without_init

if TYPE_CHECKING:
    from torch import nn


def deepecgkit(module: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    """Return a function that makes one of deepecgkit's networks."""

    def build() -> nn.Module:
        made: nn.Module = getattr(importlib.import_module(f"deepecgkit.models.{module}"), name)(**options)
        return made

    return build


def torch_ecg(backbone: str) -> Callable[[], nn.Module]:
    """Return a function that makes torch_ecg's convolutional recurrent network with one of its backbones."""

    def build() -> nn.Module:
        without_init("torch_ecg.components")
        import copy

        from torch_ecg.model_configs import ECG_CRNN_CONFIG
        from torch_ecg.models import ECG_CRNN

        config = copy.deepcopy(ECG_CRNN_CONFIG)
        config.cnn.name = backbone
        config.rnn.name = "none"
        config.attn.name = "none"
        config.global_pool = "avg"
        made: nn.Module = ECG_CRNN(list("abcd"), 12, config)
        return made

    return build


def torch_ecg_unet() -> nn.Module:
    without_init("torch_ecg.components")
    from torch_ecg.model_configs import ECG_UNET_VANILLA_CONFIG
    from torch_ecg.models import ECG_UNET

    made: nn.Module = ECG_UNET(list("abcd"), 12, ECG_UNET_VANILLA_CONFIG)
    return made


def net1d() -> nn.Module:
    module = from_repository("hsd1503/resnet1d", "net1d.py")
    made: nn.Module = module.Net1D(
        in_channels=12,
        base_filters=32,
        ratio=1.0,
        filter_list=[32, 64, 64],
        m_blocks_list=[2, 2, 2],
        kernel_size=16,
        stride=2,
        groups_width=16,
        n_classes=4,
    )
    return made


TWELVE = ({"N": 2, "L": 1000}, {"N": 3, "L": 777})


def kit(module: str, name: str, **options: Any) -> Network:
    options = {"input_channels": 12, "output_size": 4} | options
    return Network(f"deepecgkit_{module}", "deepecgkit", deepecgkit(module, name, **options), ("N", 12, "L"), TWELVE)


def crnn(backbone: str) -> Network:
    return Network(f"torch_ecg_{backbone.lower()}", "torch-ecg", torch_ecg(backbone), ("N", 12, "L"), TWELVE)


NETWORKS = (
    kit("se_resnet1d", "SEResNet1D", base_channels=16),
    kit("fcn_wang", "FCNWang"),
    kit("resnet_hannun", "ResNetHannun", base_channels=16),
    kit("simple_cnn", "SimpleCNN"),
    kit("crnn", "CRNN"),
    kit("tcn", "TCN", num_channels=[32, 32, 64, 64]),
    kit("kanres_wide_x", "KanResWideX", base_channels=32),
    kit("kanres_deep_x", "KanResDeepX", base_channels=16),
    kit("inception_time", "InceptionTime1D"),
    kit("deep_res_cnn", "DeepResCNN"),
    kit("xresnet1d", "XResNet1D", base_channels=16),
    kit("resnet1d_wang", "ResNetWang", base_channels=64),
    kit("xresnet1d_benchmark", "XResNet1dBenchmark"),
    crnn("vgg16"),
    crnn("resnet_nature_comm_se"),
    crnn("resnet_stanford"),
    crnn("tresnetP"),
    crnn("regnet_S"),
    crnn("multi_scopic"),
    crnn("multi_scopic_leadwise"),
    crnn("mobilenet_v1"),
    crnn("mobilenet_v3"),
    crnn("xception_vanilla"),
    crnn("densenet_vanilla"),
    Network("torch_ecg_unet", "torch-ecg", torch_ecg_unet, ("N", 12, "L"), ({"N": 2, "L": 1024}, {"N": 3, "L": 512})),
    Network("net1d", "hsd1503/resnet1d", net1d, ("N", 12, "L"), ({"N": 2, "L": 1024}, {"N": 3, "L": 777})),
)
