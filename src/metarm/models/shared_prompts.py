# SPDX-License-Identifier: Apache-2.0
"""Rows of a batch that begin alike compute their beginning once: exact, for any causal model.

    prompts = SharedPrompts(model)
    with prompts.sharing(input_ids, attention_mask, group_of_row):
        scores = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        loss(scores).backward()

Inside the block a forward pass of that very batch (any other is as ever) computes each group's
common first tokens once, no padding, and of the last layer only what the rows' last tokens need;
the model's own head reads the scores. Before a way of doing so is used, it is held against the
plain pass on a part of the batch: the first that agrees is kept, and where none does the plain pass
is used, with a warning.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from metarm.errors import MetarmError, ModelError
from metarm.models.agreement import (
    few_parameters,
    largest_difference,
    measure_rounding,
    score_with_gradients,
    tolerance,
)
from metarm.models.attention_blocks import attend_in_blocks
from metarm.models.attention_tiles import attend_in_tiles
from metarm.models.prompt_layout import (
    GroupedLayout,
    PackedLayout,
    SharedRows,
    find_shared_rows,
    lay_out_grouped,
    lay_out_packed,
)
from metarm.models.shared_attention import PACKED_ATTENTION, Attends, attention, block_mask
from metarm.placement import sharded_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["SharedPrompts", "Way", "Work"]

LEAST_SAVING: Final = 0.1
"""Share of a batch's places that sharing must save: below it, its own work costs more."""
LEAST_WORK: Final = 2**18
"""Places times width times layers of a plain pass: below it, laying out costs more than it saves
(measured on two cores: 1.5 times as slow at a third of it, 0.8 at as much)."""
ROUNDINGS: Final = 4.0
"""A way may differ by so many times what padding and company change in the plain pass itself."""
MOST_ROUNDING: Final = 5e-2
"""Beyond it nothing passes for rounding."""

_FAILURES: Final = (
    *(AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    MetarmError,
)
"""What a model raises where it does not take a way."""

logger = logging.getLogger(__name__)
_LOCKS: Final[WeakKeyDictionary[nn.Module, Any]] = WeakKeyDictionary()
_LOCKS_GUARD: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Way:
    """A way of computing shared beginnings."""

    attention: Literal["tiles", "blocks", "flex", "mask"]
    """`tiles`, `blocks`: one row without padding, whose attention is calls for texts of like
    length; `flex`: in one call of FlexAttention; `mask`: one row a group, and a dense mask."""
    trimmed: bool
    """Of the last layer, only what the rows' last tokens need."""

    def __str__(self) -> str:
        return f"{self.attention}{', last layer trimmed' if self.trimmed else ''}"


TILES: Final = (Way("tiles", trimmed=True), Way("tiles", trimmed=False))
BLOCKS: Final = (Way("blocks", trimmed=True), Way("blocks", trimmed=False))
FLEX: Final = (Way("flex", trimmed=True), Way("flex", trimmed=False))
MASK: Final = (Way("mask", trimmed=True), Way("mask", trimmed=False))

WAYS: Final[Mapping[str, tuple[Way, ...]]] = {
    "sdpa": (*TILES, *BLOCKS, *MASK),
    "eager": MASK,
    "flex_attention": (*FLEX, *BLOCKS),
    "flash_attention_2": BLOCKS,
    "flash_attention_3": BLOCKS,
}
"""What is tried for each attention implementation of transformers, fastest first."""

DEVICES: Final[Mapping[str, str]] = {"tiles": "cpu", "flex": "cuda"}
"""Where a kernel says its log-sum-exp, and where FlexAttention has a way back (torch 2.13)."""

ATTENDS: Final[Mapping[str, Callable[[PackedLayout], tuple[Attends, Attends]]]] = {
    "tiles": attend_in_tiles,
    "blocks": attend_in_blocks,
}
"""How a packed row attends in a layer, and in the last one."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a forward pass computes, in places: tokens and what pads them."""

    computed: int
    padding: int
    """Of `computed`, places without a token."""
    plain: int
    """What the plain pass computes: all places of the padded batch."""


class SharedPrompts:
    """Lets a causal model with a head compute the common beginnings of rows once.

    Args:
        model: A sequence classifier of transformers, bare or wrapped (PEFT, DDP). Nothing is
            changed in it outside a `sharing` block.
    """

    def __init__(self, model: nn.Module) -> None:
        from transformers import PreTrainedModel

        found = (m for m in model.modules() if isinstance(m, PreTrainedModel))
        self._outer, self._model = model, next(found, None)
        self.ways: dict[bool, Way | None] = {}
        """The way that was found to agree, with gradients and without; None: none did."""
        self._told: set[str] = set()

    @contextmanager
    def sharing(
        self, input_ids: Tensor, attention_mask: Tensor, group_of_row: Sequence[int]
    ) -> Iterator[Work]:
        """A block in which forward (and backward) passes of this batch share beginnings.

        Args:
            input_ids: Shape (rows, tokens), padded on the right.
            attention_mask: Shape (rows, tokens), 1 where there is a token.
            group_of_row: Rows of equal number begin alike; any other rows do so at most by chance.

        Yields:
            How many tokens a forward pass of this batch computes.
        """
        places = input_ids.numel()
        plain = Work(places, places - int(attention_mask.sum()), places)
        model = self._model
        if model is None or places * _width_times_layers(model) < LEAST_WORK:
            yield plain
            return
        with ExitStack() as stack:
            stack.enter_context(_lock_of(model.base_model))
            shared_pass = self._plan(model, input_ids, attention_mask, group_of_row)
            if shared_pass is None:
                stack.close()
                yield plain
                return
            stack.enter_context(shared_pass.in_place())
            computed = shared_pass.num_places
            yield Work(computed, computed - shared_pass.num_tokens, places)

    def _plan(
        self,
        model: "PreTrainedModel",
        input_ids: Tensor,
        attention_mask: Tensor,
        group_of_row: Sequence[int],
    ) -> "_Pass | None":
        """The shared pass of a batch; None where the plain one is better, or the only one."""
        if reason := self._why_not(model, attention_mask):
            self._tell(f"prompts are not shared: {reason}")
            return None
        rows = _rows_to_their_ends(input_ids, model.config.get_text_config().pad_token_id)
        shared = find_shared_rows(rows, group_of_row)
        real = attention_mask.sum(dim=1).tolist()
        if any(len(row) > count for row, count in zip(rows, real, strict=True)):
            self._tell(
                "prompts are not shared: rows are padded with another than the padding token"
            )
            return None
        if shared.num_tokens > (1 - LEAST_SAVING) * input_ids.numel():
            return None
        with_gradient = torch.is_grad_enabled()
        if with_gradient not in self.ways:
            if not shared.sharing_groups:
                return None  # nothing to hold a way against
            self.ways[with_gradient] = self._find_way(model, input_ids, attention_mask, shared)
        way = self.ways[with_gradient]
        return None if way is None else _Pass(model, way, shared, input_ids)

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            # Training is where it costs; a score is asked for now and then.
            logger.log(logging.WARNING if torch.is_grad_enabled() else logging.INFO, message)

    def _why_not(self, model: "PreTrainedModel", attention_mask: Tensor) -> str:
        """Why the beginnings of this batch cannot be shared; empty where they can."""
        if model.base_model is model:
            return "the model has no head over a base model"
        name, config = type(model).__name__, model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        others = kinds - {"full_attention", "sliding_attention"}
        window = _shortest_window(config, kinds)
        # Each is checked where the one before holds.
        reasons: Mapping[str, Callable[[], bool]] = {
            f"{name} is no decoder: its prompt sees the response": lambda: (
                config.is_encoder_decoder
                or any(getattr(m, "is_causal", True) is False for m in model.base_model.modules())
            ),
            f"{name} has layers other than full or sliding attention: {sorted(others)}": lambda: (
                model._is_stateful or bool(others)
            ),
            f"{name} does not take another attention function": lambda: (
                not model._supports_attention_backend
            ),
            f"{config._attn_implementation!r} attention cannot be told who sees whom": lambda: (
                config._attn_implementation not in WAYS
            ),
            "its weights are shards, which a pass of its own would wait for": lambda: bool(
                sharded_modules(model)
            ),
            "the model has no padding token": lambda: config.pad_token_id is None,
            "dropout is on, and would be drawn once for all responses": lambda: _has_dropout(model),
            f"texts are longer than the attention window of {window} tokens": lambda: (
                attention_mask.shape[1] > window
            ),
            "gradient checkpointing is reentrant": lambda: _is_reentrant(model),
            "rows are not padded on the right": lambda: bool(
                (attention_mask.diff(dim=1) > 0).any()
            ),
        }
        return next((reason for reason, holds in reasons.items() if holds()), "")

    def _find_way(
        self,
        model: "PreTrainedModel",
        input_ids: Tensor,
        attention_mask: Tensor,
        shared: SharedRows,
    ) -> Way | None:
        """The first way that agrees with the plain pass on two rows of two groups of the batch."""
        by_size = sorted(
            shared.sharing_groups, key=lambda group: sum(len(shared.rows[row]) for row in group)
        )
        few_groups = [group[:2] for group in by_size[:2]]
        chosen = [row for group in few_groups for row in group]
        group_of_row = [number for number, group in enumerate(few_groups) for _ in group]
        few = find_shared_rows([shared.rows[row] for row in chosen], group_of_row)
        width = int(attention_mask[chosen].sum(dim=1).max())
        ids, mask = input_ids[chosen][:, :width], attention_mask[chosen][:, :width]
        parameters = few_parameters(model) if torch.is_grad_enabled() else []
        tolerances: set[float] = set()
        with model.base_model.register_forward_pre_hook(
            lambda base, _: tolerances.add(tolerance(base))
        ):
            plain = score_with_gradients(self._outer, ids, mask, group_of_row, parameters)
        rounding = measure_rounding(self._outer, ids, mask, group_of_row, parameters, plain)
        allowed = min(max(*tolerances, ROUNDINGS * rounding), MOST_ROUNDING)
        problems = []
        for way in WAYS[model.config.get_text_config()._attn_implementation]:
            if way.trimmed and _trimmable_layer(model) is None:
                continue
            if input_ids.device.type not in DEVICES.get(way.attention, input_ids.device.type):
                continue
            try:
                with _Pass(model, way, few, ids).in_place():
                    found = score_with_gradients(self._outer, ids, mask, group_of_row, parameters)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                problems.append(f"{way}: {error}")
                continue
            difference = largest_difference(found, plain)
            if difference <= allowed:
                logger.info("prompts are shared (%s); differs by %.1e", way, difference)
                return way
            problems.append(f"{way}: differs by {difference:.1e}")
        self._tell(
            f"prompts are not shared: for {type(model).__name__} no way gives the plain pass's "
            f"scores and gradients ({'; '.join(problems)}). Training is right, and slower."
        )
        return None


class _Pass:
    """One batch in one layout, and the forward pass of a base model that uses it."""

    def __init__(
        self, model: "PreTrainedModel", way: Way, shared: SharedRows, input_ids: Tensor
    ) -> None:
        self._model, self._base = model, model.base_model
        self._way, self._input_ids, self.num_tokens = way, input_ids, shared.num_tokens
        self._attention = model.config.get_text_config()._attn_implementation
        self._plain_forward = self._base.forward
        self._thread = threading.get_ident()
        self._last = torch.tensor([len(row) - 1 for row in shared.rows], device=input_ids.device)
        self._layout: PackedLayout | GroupedLayout
        self._attends: tuple[Attends, Attends] | None = None
        if way.attention == "mask":
            pad_token_id = model.config.get_text_config().pad_token_id
            self._layout = lay_out_grouped(shared, pad_token_id, input_ids.device)
        else:
            self._layout = lay_out_packed(shared, input_ids.device)
            if way.attention in ATTENDS:
                self._attends = ATTENDS[way.attention](self._layout)

    @property
    def num_places(self) -> int:
        """Tokens that go through the layers, and what pads them."""
        return self._layout.input_ids.numel()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A block in which the base model's forward pass of this batch is this one."""
        with ExitStack() as stack:
            if self._attends is not None:
                stack.enter_context(attention(self._base, PACKED_ATTENTION))
            stack.enter_context(_replaced(self._base, "forward", self._forward))
            yield

    def _forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        if threading.get_ident() != self._thread:
            raise ModelError(
                "another thread is inside a `sharing` block of this model: score through "
                "RewardModelScore, whose calls wait for each other, or give each thread a model"
            )
        mine = self._input_ids
        if input_ids is None or input_ids.shape != mine.shape or not input_ids.equal(mine):
            with attention(self._base, self._attention):
                return self._plain_forward(input_ids, attention_mask=attention_mask, **options)
        layout = self._layout
        mask: Any = None
        if isinstance(layout, GroupedLayout):
            mask = self._dense_mask(layout.mask)
        elif self._attends is None:
            mask = block_mask(layout)
        else:
            options["attends"] = self._attends[0]
        options |= {"use_cache": False, "position_ids": layout.position_ids}
        with self._trimmed() if self._way.trimmed else ExitStack():
            output = self._plain_forward(input_ids=layout.input_ids, attention_mask=mask, **options)
        states = output.last_hidden_state.flatten(0, 1)
        if not self._way.trimmed:
            states = states.index_select(0, layout.ends)
        # The head reads each row's last token and nothing else.
        hidden = states.new_zeros(*input_ids.shape, states.shape[-1])
        rows = torch.arange(len(states), device=states.device)
        hidden = hidden.index_put((rows, self._last), states)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    @contextmanager
    def _trimmed(self) -> Iterator[None]:
        """A block in which the last layer gives the states of the rows' last tokens alone."""
        layer, ends, attends = _trimmable_layer(self._model), self._layout.ends, self._attends
        assert layer is not None, "checked before this way is tried"

        def take_ends(states: Tensor) -> Tensor:
            return states.flatten(0, 1).index_select(0, ends).unsqueeze(0)

        def forward(hidden_states: Tensor, **options: Any) -> Tensor:
            if attends is not None:
                options["attends"] = attends[1]
            hook = layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, inputs: (take_ends(inputs[0]),)
            )
            with hook:
                attended, _ = layer.self_attn(
                    hidden_states=layer.input_layernorm(hidden_states), **options
                )
            states = take_ends(hidden_states) + attended
            return states + layer.mlp(layer.post_attention_layernorm(states))

        with _replaced(layer, "forward", forward):
            yield

    def _dense_mask(self, is_seen: Tensor) -> Tensor:
        """As the attention takes it: boolean for SDPA, added to the logits for eager."""
        if self._attention == "sdpa":
            return is_seen
        dtype = next(self._model.parameters()).dtype
        return torch.zeros_like(is_seen, dtype=dtype).masked_fill(~is_seen, torch.finfo(dtype).min)


def _lock_of(base: nn.Module) -> AbstractContextManager[Any]:
    """One lock a model: a block changes its attention and its forward pass for all threads."""
    with _LOCKS_GUARD:
        lock: AbstractContextManager[Any] = _LOCKS.setdefault(base, threading.RLock())
        return lock


def _trimmable_layer(model: "PreTrainedModel") -> Any:
    """The last layer, where it is built as Llama's is: norm, attention, norm, MLP."""
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return None
    last: Any = layers[-1]
    parts = {"self_attn", "input_layernorm", "post_attention_layernorm", "mlp"}
    has_parts = {name for name, _ in last.named_children()} == parts
    if "forward" in last.__dict__:
        return None  # a hook of another library's is in its place
    return last if has_parts and "o_proj" in dict(last.self_attn.named_children()) else None


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    """A block in which an attribute of the module itself, not of its class, is another one."""
    kept = module.__dict__.get(name)
    setattr(module, name, value)
    try:
        yield
    finally:
        if kept is None:
            delattr(module, name)
        else:
            setattr(module, name, kept)


def _rows_to_their_ends(input_ids: Tensor, pad_token_id: int) -> list[list[int]]:
    """Each row up to the last token that is no padding: the one that transformers' heads read."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (places * (input_ids != pad_token_id)).argmax(dim=1).tolist()
    return [row[: end + 1] for row, end in zip(input_ids.tolist(), last, strict=True)]


def _width_times_layers(model: "PreTrainedModel") -> int:
    config = model.config.get_text_config()
    return int(config.hidden_size * config.num_hidden_layers)


def _shortest_window(config: Any, kinds: set[str]) -> float:
    slides = "sliding_attention" in kinds if kinds else True
    window = getattr(config, "sliding_window", None)
    return window if slides and window else float("inf")


def _has_dropout(model: nn.Module) -> bool:
    rates = ("p", "attention_dropout", "dropout")
    return any(
        isinstance(rate := getattr(module, name, None), float) and rate > 0
        for module in model.modules()
        if module.training
        for name in rates
    )


def _is_reentrant(model: nn.Module) -> bool:
    """Whether layers are recomputed by the kind of checkpointing that takes `.backward` alone."""
    functions = (
        getattr(m, "_gradient_checkpointing_func", None)
        for m in model.modules()
        if m.training and getattr(m, "gradient_checkpointing", False)
    )
    return any(getattr(f, "keywords", {}).get("use_reentrant") for f in functions)
