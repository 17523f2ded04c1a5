"""The factories that a user writes to export networks whose constructors need more than plain arguments."""

from __future__ import annotations

from torch import Tensor, nn


def decoder() -> nn.Module:
    """HiFi-GAN's generator: transposed convolutions upsample 16 times."""
    from speechbrain.lobes.models.HifiGAN import HifiganGenerator

    return HifiganGenerator(
        in_channels=80,
        out_channels=1,
        resblock_type="1",
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        resblock_kernel_sizes=[3, 7],
        upsample_kernel_sizes=[8, 8],
        upsample_initial_channel=32,
        upsample_factors=[4, 4],
    )


def gated() -> nn.Module:
    """A temporal convolutional network with gates, dilations 1, 2, 4 and skip connections."""
    from pytorch_tcn import TCN

    return TCN(8, [16, 16, 16], kernel_size=3, use_skip_connections=True, use_gate=True, use_norm="batch_norm")


class Text(nn.Module):
    """The encoder of FastSpeech2Conformer: an embedding, attention, convolutions with BatchNorms."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import FastSpeech2ConformerConfig
        from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import FastSpeech2ConformerEncoder

        config = FastSpeech2ConformerConfig(hidden_size=32, vocab_size=78, encoder_layers=2, decoder_layers=1)
        self.encoder = FastSpeech2ConformerEncoder(config, config.encoder_config, use_encoder_input_layer=True)
        for name, parameter in self.encoder.named_parameters():
            if "pos_bias" in name:  # the package leaves their initialisation to the class of the whole network
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the states for tokens (N, L)."""
        states: Tensor = self.encoder(tokens, return_dict=True).last_hidden_state
        return states


def resnet() -> nn.Module:
    """MONAI's residual network for 1-D inputs."""
    from monai.networks.nets import ResNet

    return ResNet("basic", [1, 1, 1, 1], [8, 16, 32, 64], spatial_dims=1, n_input_channels=12, num_classes=4)
