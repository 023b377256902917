"""Beginning with another model's weights."""

import torch

from pipeline.model.factory import build_network
from pipeline.model.transfer import transfer_weights


def test_everything_but_the_outputs_is_taken_over() -> None:
    donor = build_network("unet", 3, 1, 4, seed=1, features=(4, 8), deep_supervision=True)
    network = build_network("unet", 3, 1, 2, seed=2, features=(4, 8), deep_supervision=True)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = transfer_weights(network, donor.state_dict())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, first[name] if name.startswith("heads") else donor.state_dict()[name])
    assert all(name.startswith("heads") for name in result.outputs)
    assert (result.missing, dict(result.reshaped)) == ((), {})
    heads = sum(parameter.numel() for name, parameter in network.named_parameters() if name.startswith("heads"))
    assert result.loaded == result.parameters - heads
    assert len(result.lines()) == 1


def test_what_does_not_fit_is_told() -> None:
    donor = build_network("unet", 3, 2, 2, seed=1, features=(4, 8))  # two channels
    network = build_network("unet", 3, 1, 2, seed=2, features=(4, 8, 16))  # one, and one more level
    result = transfer_weights(network, donor.state_dict())
    ((name, shapes),) = result.reshaped.items()
    assert shapes[0][1], shapes[1][1] == (1, 2)
    assert result.missing
    told = " ".join(result.lines())
    assert f"{name} begins anew: its shape is (4, 1, 3, 3, 3), in the other model (4, 2, 3, 3, 3)" in told
    assert "tensors are not in the other model" in told
