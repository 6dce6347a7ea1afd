# SPDX-License-Identifier: Apache-2.0
"""Shards are moved and put back exactly; and the three ways in which they silently are not, are.

The wrong ways are here so that a torch in which they have become right, or wrong otherwise, is
noticed.
"""

import json

import pytest
import torch
from torch import nn

from metarm.errors import ModelError
from metarm.meta_step import inner_product, look_ahead, read_sum
from metarm.placement import (
    ShardedParameters,
    backward_inputs,
    hold,
    is_sharded,
    named_shards,
    sharded_modules,
    standing_at,
    sums_over_shards,
)
from unit.two_processes import start_two


@pytest.fixture(scope="module")
def found(repository, tmp_path_factory):
    """All numbers, of one start of two processes."""
    output = tmp_path_factory.mktemp("shards") / "found.json"
    start_two(repository / "tests" / "unit" / "two_shards.py", [str(output)], repository)
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["all sharded", "an adapter beside"])
def test_shards_are_moved_as_a_whole_model_is(found, case):
    pair = found if case == "all sharded" else found["adapted"]
    for name, value in pair["reference"].items():
        assert pair["right"][name] == pytest.approx(value, rel=1e-11), name
    assert pair["right"]["ahead"] != pytest.approx(pair["right"]["home"], rel=1e-3)


@pytest.mark.slow
def test_an_error_brings_shards_home(found):
    numbers = found["error"]
    assert numbers["after"] == numbers["before"]
    assert numbers["moved"] != pytest.approx(numbers["before"], rel=1e-3)


@pytest.mark.slow
def test_wrong_a_an_edit_is_not_seen_until_modules_reshard(found):
    numbers = found["a"]
    assert numbers["unseen"] == numbers["before"] != 0.0
    assert numbers["seen"] == 0.0


@pytest.mark.slow
def test_wrong_b_data_assigned_does_not_bring_the_weights_back(found):
    numbers = found["b"]
    assert abs(numbers["after"] - numbers["before"]) > 0.1 * abs(numbers["before"])


@pytest.mark.slow
def test_wrong_c_a_gradient_without_sync_is_lost_and_comes_back_later(found):
    numbers = found["c"]
    assert numbers["without_gradient"] == numbers["count"]
    assert abs(numbers["mixed"] - numbers["clean"]) > 0.01 * numbers["clean"]


def test_whole_parameters_are_held_as_they_are():
    model = nn.Linear(3, 2)
    parameters = list(model.parameters())
    assert hold(parameters, model) is parameters
    assert backward_inputs(parameters) == parameters
    assert sharded_modules(model) == []
    assert not any(map(is_sharded, parameters))
    assert [name for name, _ in named_shards(model)] == ["weight", "bias"]
    numbers = [torch.tensor(2.0), torch.tensor(3.0)]
    assert sums_over_shards(numbers) == numbers


def test_a_whole_parameter_keeps_its_address_and_its_values():
    model = nn.Linear(3, 2)
    parameters = list(model.parameters())
    before = [(p.data_ptr(), p.detach().clone()) for p in parameters]
    with look_ahead(parameters, [torch.ones_like(p) for p in parameters], 0.5):
        assert all(not torch.equal(p, b) for p, (_, b) in zip(parameters, before, strict=True))
    assert all(
        p.data_ptr() == address and torch.equal(p, value)
        for p, (address, value) in zip(parameters, before, strict=True)
    )


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_shards_without_their_modules_are_refused(one_process):
    model = torch.distributed.fsdp.fully_shard(nn.Linear(3, 2))
    parameters = list(model.parameters())
    places = [parameter.detach() * 2 for parameter in parameters]
    with (
        pytest.raises(ModelError, match=r"hold\(parameters, model\)"),
        standing_at(parameters, places),
    ):
        pass
    held = hold(parameters, model)
    assert isinstance(held, ShardedParameters)
    assert held.modules == (model,)
    assert backward_inputs(held) is None
    with standing_at(held, places):
        assert torch.equal(parameters[0].full_tensor(), model.weight.full_tensor())
    product = inner_product(parameters[0].detach(), parameters[0].detach())
    assert read_sum([product]) == pytest.approx(parameters[0].full_tensor().square().sum().item())
