import pytest
import torch
from networks import silent_parameters
from torch import nn

from pipeline.model.cost import count_parameters
from pipeline.model.spec import build_network

NARROW = {"features": (2, 2, 4), "activation": "prelu"}


def test_parameters_are_the_papers_without_those_of_batch_norm():
    with torch.device("meta"):
        network = build_network("unet3d_cicek", 3, 3, 3)
    norms = sum(count_parameters(layer) for layer in network.modules() if isinstance(layer, nn.BatchNorm3d))
    assert count_parameters(network) - norms == 19_069_955
    assert norms == 4_672


def test_channels_double_before_pooling_and_are_kept_by_steps_up():
    with torch.device("meta"):
        network = build_network("unet3d_cicek", 3, 3, 3)
    encoder = [(stage.unit1.conv.out_channels, stage.unit2.conv.out_channels) for stage in network.encoder]
    decoder = [(stage.unit1.conv.out_channels, stage.unit2.conv.out_channels) for stage in network.decoder]
    assert encoder == [(32, 64), (64, 128), (128, 256), (256, 512)]
    assert decoder == [(64, 64), (128, 128), (256, 256)]
    assert [(up.in_channels, up.out_channels, up.bias) for up in network.upsamplings] == [
        (128, 128, None),
        (256, 256, None),
        (512, 512, None),
    ]
    assert [name for name, _ in network.encoder[0].unit1.named_children()] == ["conv", "norm", "activation"]
    assert network.encoder[0].unit1.conv.bias is not None


def test_sizes_are_the_papers():
    with torch.device("meta"):
        network = build_network("unet3d_cicek", 3, 3, 3).eval()
        assert network(torch.empty(1, 3, 132, 132, 116)).shape == (1, 3, 44, 44, 28)
    assert network.divisor == (8, 8, 8)
    assert network.margin == (44, 44, 44)
    assert network.legal_size((1, 93, 116)) == (92, 100, 116)
    assert network.output_size((92, 100, 116)) == (4, 12, 28)


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_gradients_reach_every_parameter(deep_supervision):
    network = build_network("unet3d_cicek", 3, 2, 3, seed=0, deep_supervision=deep_supervision, **NARROW)
    x = torch.randn(1, 2, 44, 44, 44, generator=torch.Generator().manual_seed(1))
    assert silent_parameters(network, x) == []


def test_cases_of_a_batch_do_not_meet_in_evaluation():
    network = build_network("unet3d_cicek", 3, 1, 2, seed=0, **NARROW).double().eval()
    x = torch.randn(2, 1, 44, 44, 44, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]), rtol=0, atol=1e-10)
