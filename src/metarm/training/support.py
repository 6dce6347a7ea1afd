# SPDX-License-Identifier: Apache-2.0
"""Which ways to train the meta step does not go along with, each refused by name."""

from typing import Any

from metarm.errors import ConfigError
from metarm.training.settings import MetaRewardConfig

__all__ = ["refuse_unsupported"]


def refuse_unsupported(args: MetaRewardConfig, accelerator: Any, model: Any) -> None:
    """Refuse where the meta step would move weights wrongly, or not at all, without an error.

    Raises:
        ConfigError: Says what is not supported, and what is in its place.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if args.n_gpu > 1:
        kind = f"nn.DataParallel over {args.n_gpu} GPUs (start with torchrun)"
    if accelerator.parallelism_config is not None:
        kind = "a parallelism_config"
    if kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        raise ConfigError(
            f"the meta step supports one process and DDP, got {kind}: sharded parameters are "
            "not moved and put back exactly yet. Use DDP, LoRA, or meta_mode='off'."
        )
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
