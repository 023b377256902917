"""What holds for every network of the family. Exact parameter counts are tested beside each network."""

from __future__ import annotations

import pytest
import torch
from networks import MEMBERS, TINY, batch, silent_parameters, tiny

from pipeline.model.base import start_outputs_at
from pipeline.model.registry import list_networks

SUPERVISED = [
    (info.name, dims) for info in list_networks() if "deep_supervision" in info.defaults for dims in info.dims
]


def test_the_family_is_complete() -> None:
    assert sorted(info.name for info in list_networks()) == sorted(TINY)
    assert len(TINY) == 18


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_logits_have_the_promised_size(name, dims) -> None:
    network = tiny(name, dims, 2, 3).eval()
    x = batch(network)
    with torch.no_grad():
        assert network(x).shape == (2, 3, *network.output_size(tuple(x.shape[2:])))
    assert network.output_size(tuple(x.shape[2:])) == tuple(
        n - 2 * lost for n, lost in zip(x.shape[2:], network.margin, strict=True)
    )


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_a_batch_of_two_is_two_batches_of_one(name, dims) -> None:
    network = tiny(name, dims).eval().double()
    x = batch(network).double()
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(x[:1]), network(x[1:])]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_a_gradient_reaches_every_parameter(name, dims) -> None:
    network = tiny(name, dims)
    assert silent_parameters(network, batch(network, at_least=9)) == []


@pytest.mark.parametrize(("name", "dims"), MEMBERS)
def test_outputs_start_at_a_probability(name, dims) -> None:
    network = tiny(name, dims, 1, 3).eval()
    before = {part: value.clone() for part, value in network.named_parameters()}
    start_outputs_at(network, 0.2)
    changed = [part for part, value in network.named_parameters() if not torch.equal(value, before[part])]
    assert changed
    assert all(part.endswith("bias") for part in changed)
    with torch.no_grad():  # of logits that are nothing but these biases
        for part, value in network.named_parameters():
            if part not in changed:
                value.zero_()
        logits = network(batch(network))
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.2))


@pytest.mark.parametrize(("name", "dims"), SUPERVISED)
def test_a_gradient_reaches_every_parameter_with_heads(name, dims) -> None:
    network = tiny(name, dims, deep_supervision=True)
    assert silent_parameters(network, batch(network, at_least=9)) == []


@pytest.mark.parametrize(("name", "dims"), SUPERVISED)
def test_heads_have_names_and_the_first_predicts(name, dims) -> None:
    features = (4, 4, 4, 4)
    options = {"features": features, "dropout": 0.0, "norm": "instance", "deep_supervision": True}
    if "convs_per_stage" in TINY[name]:
        options |= {"convs_per_stage": (1,) * 4, "decoder_convs": (1,) * 3}
    network = tiny(name, dims, **options)
    x = batch(network, 1, 9)
    with torch.no_grad():
        heads = network(x)
        assert isinstance(heads, dict)
        assert len(heads) > 1
        logits = network.eval()(x)
    torch.testing.assert_close(next(iter(heads.values())), logits)
