from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from normfold.models import surnames
from normfold.models.recipe import negative_gammas
from normfold.models.surnames.network import MINIMUM_LENGTH, SurnameCNN
from normfold.models.surnames.vectorizer import TAIL, Vectorizer

VECTORIZER = Vectorizer.load()


@pytest.fixture(scope="module")
def trained() -> SurnameCNN:
    network = SurnameCNN()
    network.load_state_dict(load_file(surnames.CHECKPOINT), strict=True)
    return network.eval()


def test_the_network_without_arguments_fits_vocabulary_and_labels() -> None:
    network = SurnameCNN()
    assert network.conv.in_channels == len(VECTORIZER.tokens)
    assert network.classifier.out_features == len(surnames.load_labels()) == 18


def test_the_checkpoint_answers_the_samples_as_recorded(trained: SurnameCNN) -> None:
    samples, labels = surnames.load_samples(), surnames.load_labels()
    with torch.inference_mode():
        logits = trained(torch.from_numpy(VECTORIZER([sample.surname for sample in samples])))
    assert [labels[int(i)] for i in logits.argmax(dim=1)] == [sample.predicted for sample in samples]
    assert len({sample.nationality for sample in samples}) == len(samples) == 12
    assert sum(sample.predicted == sample.nationality for sample in samples) > len(samples) / 2


def test_the_checkpoint_is_small_float32_and_finite() -> None:
    assert surnames.CHECKPOINT.stat().st_size < 800_000
    for key, value in load_file(surnames.CHECKPOINT).items():
        assert value.isfinite().all(), key
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float32), key


def test_every_batchnorm_has_running_statistics_of_real_data(trained: SurnameCNN) -> None:
    for name, norm in trained.named_modules():
        if isinstance(norm, nn.BatchNorm1d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert norm.running_mean.min() >= 0, f"{name} stands behind a ReLU"
            assert norm.running_var.std() > 0, name
            assert norm.weight.std() > 0, name


def test_every_batchnorm_stands_between_a_relu_and_unpadded_convolutions() -> None:
    """If nothing is padded, a constant that is added to a BatchNorm's output leaves its reader as a constant."""
    assert all(module.padding == (0,) for module in SurnameCNN().modules() if isinstance(module, nn.Conv1d))
    assert set(negative_gammas(SurnameCNN())) == {name for name in dict(SurnameCNN().named_modules()) if "bn" in name}


@pytest.mark.parametrize("length", [MINIMUM_LENGTH, MINIMUM_LENGTH + 1, 17, 24, 100])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_length_from_the_minimum_on_is_taken(trained: SurnameCNN, length: int, batch: int) -> None:
    assert trained(torch.zeros(batch, len(VECTORIZER.tokens), length)).shape == (batch, 18)


def test_a_length_below_the_minimum_is_not_taken(trained: SurnameCNN) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        trained(torch.zeros(1, len(VECTORIZER.tokens), MINIMUM_LENGTH - 1))


@pytest.mark.parametrize("name", ["Ng", "Garcia", "Beknazar-Yuzbashev"])
def test_more_zeros_after_the_tail_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    network = SurnameCNN().double().eval()
    one_hot = VECTORIZER([name]).astype(np.float64)
    shortest = one_hot[:, :, : int(one_hot.sum()) + TAIL]
    with torch.inference_mode():
        expected = network(torch.from_numpy(shortest))
        for zeros in range(1, 20):
            padded = np.pad(shortest, ((0, 0), (0, 0), (0, zeros)))
            # Each sum of at most 1000 products of values of order 1 rounds by less than 1000 · 2^-53 in float64.
            assert torch.allclose(network(torch.from_numpy(padded)), expected, rtol=0, atol=1e-12)
