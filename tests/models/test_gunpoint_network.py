from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from normfold.models import gunpoint
from normfold.models.gunpoint.network import KERNELS, InceptionTime


@pytest.fixture(scope="module")
def trained() -> InceptionTime:
    network = InceptionTime()
    network.load_state_dict(load_file(gunpoint.CHECKPOINT), strict=True)
    return network.eval()


def test_the_checkpoint_answers_the_samples_as_recorded(trained: InceptionTime) -> None:
    samples, labels = gunpoint.load_samples(), gunpoint.load_labels()
    assert labels == ("Gun-Draw", "Point")
    for sample in samples:
        assert sample.series.shape == (1, 1, 150)
        assert labels[int(trained(torch.from_numpy(sample.series)).argmax())] == sample.predicted
    assert [sample.motion for sample in samples].count("Point") == 3
    assert len(samples) == 6


def test_the_checkpoint_is_small_float32_and_finite() -> None:
    assert gunpoint.CHECKPOINT.stat().st_size < 800_000
    for key, value in load_file(gunpoint.CHECKPOINT).items():
        assert value.isfinite().all(), key
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32), key


def test_every_batchnorm_has_running_statistics_of_real_data(trained: InceptionTime) -> None:
    for name, norm in trained.named_modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.running_mean.std() > 0, name
            assert norm.running_var.std() > 0, name
            assert norm.weight.std() > 0, name


def test_kernels_are_odd_and_padding_keeps_the_length(trained: InceptionTime) -> None:
    assert all(kernel % 2 for kernel in KERNELS)
    block = trained.blocks[0]
    assert block(torch.zeros(2, 1, 77)).shape == (2, 64, 77)


@pytest.mark.parametrize("length", [1, 2, 38, 150, 151, 600])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_length_is_taken(trained: InceptionTime, length: int, batch: int) -> None:
    assert trained(torch.zeros(batch, 1, length)).shape == (batch, 2)


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 3, 4, 6])
def test_other_widths_and_depths_have_a_shortcut_every_third_block(channels: int, depth: int) -> None:
    network = InceptionTime(channels=channels, classes=4, filters=3, depth=depth).eval()
    assert len(network.shortcuts) == depth // 3
    assert network(torch.zeros(2, channels, 20)).shape == (2, 4)
