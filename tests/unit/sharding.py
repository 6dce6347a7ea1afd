# SPDX-License-Identifier: Apache-2.0
"""FSDP2 on two CPUs: accelerate shards over accelerators alone, so its state is told otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

__all__ = ["make_plugin", "sharding"]


def make_plugin(**options: Any) -> FullyShardedDataParallelPlugin:
    """As `fsdp_config` of a launch file says it."""
    return FullyShardedDataParallelPlugin(
        **(
            {
                "fsdp_version": 2,
                "auto_wrap_policy": "transformer_based_wrap",
                "reshard_after_forward": True,
                "state_dict_type": "FULL_STATE_DICT",
                "cpu_ram_efficient_loading": False,
            }
            | options
        )
    )


@contextmanager
def sharding(plugin: FullyShardedDataParallelPlugin) -> Iterator[None]:
    """A block in which every accelerator shards by this plugin, on whatever devices there are."""
    begin = AcceleratorState.__init__

    def begin_sharded(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = plugin

    AcceleratorState.__init__ = begin_sharded
    try:
        yield
    finally:
        AcceleratorState.__init__ = begin
        AcceleratorState._reset_state()
