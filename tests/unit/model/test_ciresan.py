import pytest
import torch
from padding import forward_any_size

from pipeline.core.errors import ConfigError, DataError
from pipeline.model.ciresan import scan
from pipeline.model.cost import count_parameters, multiply_adds
from pipeline.model.spec import build_network

NARROW = {"features": (3, 4, 3, 2), "hidden": 5}


def narrow(**options):
    return build_network("ciresan_n4", 2, 2, 3, seed=0, **NARROW, **options).double().eval()


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_parameters_and_sizes():
    with torch.device("meta"):
        network = build_network("ciresan_n4", 2, 1, 2)
        assert network.eval()(torch.empty(3, 1, 120, 95)).shape == (3, 2, 26, 1)
    assert count_parameters(network) == 219_290
    assert (network.divisor, network.margin) == ((1, 1), (47, 47))
    assert network.legal_size((10, 200)) == (95, 200)


def test_window_costs_what_its_layers_cost():
    with torch.device("meta"):
        network = build_network("ciresan_n4", 2, 1, 2)
    maps = (92, 16 * 48), (42, 25 * 48 * 48), (18, 16 * 48 * 48), (6, 16 * 48 * 48), (1, 9 * 48 * 200), (1, 200 * 2)
    assert multiply_adds(network, (95, 95), 1) == sum(side**2 * each for side, each in maps)


@pytest.mark.parametrize("activation", ["scaled_tanh", "relu"])
def test_all_windows_at_once_are_the_windows_one_by_one(activation):
    network, x = narrow(activation=activation), image(2, 2, 97, 99)
    with torch.no_grad():
        dense = network(x)
    assert dense.shape == (2, 3, 3, 5)
    windows = scan(network, x, batch_size=7)
    torch.testing.assert_close(dense, windows, rtol=0, atol=1e-12)
    assert dense.std() > 1e-3


def test_a_window_is_where_it_was_cut():
    network, x = narrow(), image(1, 2, 99, 97)
    with torch.no_grad():
        torch.testing.assert_close(network(x)[..., 3, 1], network(x[..., 3:98, 1:96])[..., 0, 0], rtol=0, atol=1e-12)


def test_gradients_of_a_window_and_of_an_image_agree():
    network, x = narrow().train(), image(1, 2, 95, 95)
    wide = torch.cat([x, image(1, 2, 95, 1)], dim=3)
    gradients = []
    for logits in (network(x), network(wide)[..., :1]):
        network.zero_grad()
        logits.square().sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_activation_by_hand():
    network = narrow()
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        network.hidden.bias.fill_(1.5)
        network.head.weight.fill_(1.0)
        logits = network(torch.zeros(1, 2, 95, 95, dtype=torch.float64))
    # five neurons of 1.7159 * tanh(1)
    torch.testing.assert_close(logits.flatten(), torch.full((3,), 5 * 1.7159 * 0.7615941559557649, dtype=torch.float64))


def test_any_size_goes_through():
    assert forward_any_size(narrow(), image(1, 2, 20, 30)).shape == (1, 3, 20, 30)


def test_cases_of_a_batch_do_not_meet():
    network, x = narrow(), image(2, 2, 96, 97)
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]), rtol=0, atol=1e-12)


def test_what_is_smaller_than_a_window_is_refused():
    with pytest.raises(DataError, match=r"\(95, 95\) plus multiples of \(1, 1\), got \(94, 95\)"):
        narrow()(image(1, 2, 94, 95))


def test_four_convolutions_it_is():
    with pytest.raises(ConfigError, match="options of network ciresan_n4"):
        build_network("ciresan_n4", 2, 1, 2, features=(4, 4, 4))
