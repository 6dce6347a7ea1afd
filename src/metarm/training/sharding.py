# SPDX-License-Identifier: Apache-2.0
"""FSDP2 under a Hugging Face trainer: in which type weights are gathered, and whole models of them.

accelerate has FSDP2 gather bfloat16 weights and give bfloat16 scores. A small look-ahead is then
rounded away where its effect on scores is measured, and scores of a group tie. So weights are
gathered in float32, and autocast turns to bfloat16 where the products are: what DDP does, at twice
the bytes between processes.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from metarm.errors import ModelError
from metarm.placement import is_sharded, sharded_modules

__all__ = ["check_optimizer", "gather_in_full_precision", "sharded_autocast", "whole_model"]

logger = logging.getLogger(__name__)


def gather_in_full_precision(accelerator: Any, model: nn.Module, args: Any) -> None:
    """Before the model is sharded: have its weights gathered, and gradients added up, in fp32.

    The bfloat16 copies that autocast makes live until the way back where nothing is recomputed:
    half of the whole model's bytes in each process.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or accelerator.mixed_precision != "bf16":
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    model.register_forward_hook(_scores_in_full_precision)
    if not args.gradient_checkpointing:
        logger.warning(
            "bf16 with FSDP2 and without gradient_checkpointing: each process holds a bfloat16 "
            "copy of all weights through a pass"
        )


def _scores_in_full_precision(module: nn.Module, inputs: Any, output: Any) -> Any:
    """As accelerate does around autocast: losses are not taken in bfloat16."""
    output.logits = output.logits.float()
    return output


def sharded_autocast(accelerator: Any) -> AbstractContextManager[Any]:
    """Autocast for a forward pass of a model whose weights are gathered in fp32; else nothing."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    policy = getattr(plugin, "mixed_precision_policy", None)
    if accelerator.mixed_precision != "bf16" or policy is None or policy.param_dtype is not None:
        return nullcontext()
    # Cached, all layers' bfloat16 weights would be held at once.
    return torch.autocast(accelerator.device.type, torch.bfloat16, cache_enabled=False)


def check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Fail where the optimiser would not step on the model's own shards.

    accelerate finds them again by their addresses, and shards without a row have none of their own:
    a model that is sharded already, over more processes than some weights have rows, gets a wrong
    optimiser without a word.

    Raises:
        ModelError: Says how many parameters it has lost.
    """
    for module in sharded_modules(model):
        module.reshard()
    wanted = {id(p) for p in model.parameters() if p.requires_grad}
    found = [id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if lost := len(wanted - set(found)):
        raise ModelError(
            f"the optimiser has lost {lost} of {len(wanted)} parameters when the model was sharded "
            "a second time: weights with fewer rows than processes. Set meta_guard=False, which "
            "trains once, or use fewer processes"
        )


def whole_model(
    accelerator: Any, model: nn.Module, make: Callable[[], nn.Module]
) -> nn.Module | None:
    """A whole model with the weights of a sharded one, on the first process; elsewhere None.

    Args:
        accelerator: accelerate's; every process must call this.
        model: Sharded.
        make: Makes an unsharded model of the same names, on the CPU.
    """
    state = accelerator.get_state_dict(model)
    if not accelerator.is_main_process:
        return None
    found = make()
    held = {name for name, tensor in state.items() if is_sharded(tensor)}
    assert not held, "accelerate gathers a whole state"
    found.load_state_dict(state)
    return found
