# SPDX-License-Identifier: Apache-2.0
"""Which ways to train the meta step does not go along with, each refused by name."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from metarm.errors import ConfigError
from metarm.placement import sharded_modules
from metarm.training.settings import MetaRewardConfig

__all__ = ["is_sharding", "refuse_unsupported"]

SUPPORTED: Final = "The meta step supports one process, DDP and FSDP2"
WAY: Final = (
    "For a model that does not fit one device use FSDP2: accelerate launch --config_file "
    "configs/launch/fsdp2_one_node.yaml (docs/scale.md)"
)


def is_sharding(accelerator: Any, model: Any) -> bool:
    """Whether the weights are, or will be when training begins, shards of FSDP2."""
    return bool(getattr(accelerator, "is_fsdp2", False) or sharded_modules(model))


def refuse_unsupported(args: MetaRewardConfig, accelerator: Any, model: Any) -> None:
    """Refuse where the meta step would move weights wrongly, or not at all, without an error.

    Raises:
        ConfigError: Says what is not supported, and what is in its place.
    """
    if reason := _unsupported_processes(args, accelerator, model):
        raise ConfigError(f"{SUPPORTED}, got {reason}. {WAY}.")
    if is_sharding(accelerator, model):
        _refuse_with_shards(args, accelerator, is_loaded=bool(sharded_modules(model)))
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind != "NO" and args.meta_order == "exact":
        raise ConfigError("meta_order='exact' runs in one process only: use 'first' with DDP")
    attention = getattr(model.config, "_attn_implementation", None)
    if args.meta_order == "exact" and attention not in (None, "eager"):
        raise ConfigError(
            f"meta_order='exact' differentiates twice, which {attention!r} attention cannot: "
            "load the model with attn_implementation='eager'"
        )
    if args.meta_order == "finite-difference" and not args.disable_dropout:
        raise ConfigError(
            "meta_order='finite-difference' needs disable_dropout=True: between two passes that "
            "draw their own dropout the difference is noise"
        )
    if args.fp16:
        raise ConfigError(
            "the meta step does not support fp16: its loss scale would multiply eta. "
            "Use bf16=True or full fp32."
        )
    checkpointing = args.gradient_checkpointing_kwargs or {}
    if args.gradient_checkpointing and checkpointing.get("use_reentrant"):
        raise ConfigError(
            "the meta step cannot take a gradient through reentrant checkpointing: set "
            "gradient_checkpointing_kwargs={'use_reentrant': False}"
        )


def _unsupported_processes(args: MetaRewardConfig, accelerator: Any, model: Any) -> str:
    """What several processes do that the meta step cannot be part of; empty where they do not."""
    if args.n_gpu > 1:
        return f"nn.DataParallel over {args.n_gpu} GPUs (start with torchrun)"
    if parallel := getattr(accelerator, "parallelism_config", None):
        names = {"tp": "tensor", "cp": "context", "sp": "sequence"}
        used = [
            f"{name} parallelism"
            for short, name in names.items()
            if getattr(parallel, f"{short}_size", 1) > 1
        ]
        return " and ".join(used) or "a parallelism_config"
    if (getattr(model, "tp_size", None) or 1) > 1:
        return "tensor parallelism"
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    reasons: Mapping[str, Callable[[], str]] = {
        **dict.fromkeys(("NO", "MULTI_GPU", "MULTI_CPU"), lambda: ""),
        "FSDP": lambda: "" if accelerator.is_fsdp2 else "FSDP1, which is set by fsdp_version: 1",
        "DEEPSPEED": lambda: _deepspeed_stage(accelerator),
    }
    return reasons.get(kind, lambda: kind)()


def _deepspeed_stage(accelerator: Any) -> str:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    stage = getattr(plugin, "zero_stage", None)
    return (
        f"DeepSpeed{'' if stage is None else f' ZeRO-{stage}'}, which takes an optimiser step "
        "inside `backward`, from copies of the weights that a look-ahead would not move"
    )


def _refuse_with_shards(args: MetaRewardConfig, accelerator: Any, *, is_loaded: bool) -> None:
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    is_guarded = args.meta_strength == "auto" and args.meta_guard
    reasons = {
        "meta_order='exact', which runs in one process only: use 'first'": args.meta_order
        == "exact",
        "meta_parameters='head', which saves nothing where weights are gathered for the way back "
        "in any case: use 'all'": args.meta_parameters != "all",
        "fsdp_offload_params, whose shards are on the CPU: leave it out, or use more GPUs": type(
            getattr(plugin, "cpu_offload", None)
        ).__name__
        == "CPUOffloadPolicy",
        "bf16 on a model that was sharded when it was loaded, whose scores cannot be measured "
        "without it: load it whole, and let accelerate shard it": is_loaded
        and not accelerator.is_fsdp2
        and accelerator.mixed_precision == "bf16",
        "fsdp_activation_checkpointing, which the guard's two trainings would put on twice: set "
        "gradient_checkpointing=True instead": is_guarded
        and bool(getattr(plugin, "activation_checkpointing", False)),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"with FSDP2 the meta step does not support {reason}")
