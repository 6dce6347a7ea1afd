# SPDX-License-Identifier: Apache-2.0
"""A model of random weights and random texts of given lengths: what a step is measured on."""

import functools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metarm.data.encoding import EncodedGroup, Encoder, PaddedBatch, encode_groups, pad_batch
from metarm.data.meta_batches import collate_groups
from metarm.models.loading import pick_device
from metarm.schema import PreferencePair, ResponseGroup
from metarm.speed.shapes import ModelShape
from metarm.speed.workload import Bundle, Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Problem", "build_model", "build_tokenizer"]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def build_tokenizer(vocabulary: int) -> "PreTrainedTokenizerBase":
    """One token a word, `w0` and on; a text begins with `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIAL, *(f"w{number}" for number in range(vocabulary - len(SPECIAL))))
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def build_model(
    shape: ModelShape,
    *,
    seed: int,
    context: int,
    attention: str = "sdpa",
    is_causal_lm: bool = False,
) -> "PreTrainedModel":
    """A model of random fp32 weights, on the accelerator where there is one."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context,
        num_labels=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
        tie_word_embeddings=is_causal_lm,
    )
    device = pick_device()
    kind = LlamaForCausalLM if is_causal_lm else LlamaForSequenceClassification
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(seed)
        model: PreTrainedModel = kind(config)
    return model.to(device)


@dataclass(frozen=True)
class Problem:
    """One batch of pairs and groups, the same in every step of every method."""

    shape: ModelShape
    workload: Workload
    seed: int = 0
    bf16: bool = False

    @functools.cached_property
    def pair_lengths(self) -> list[Bundle]:
        """Of the pairs, in tokens."""
        return self.workload.pairs(self.seed)

    @functools.cached_property
    def group_lengths(self) -> list[Bundle]:
        """Of the groups, in tokens."""
        return self.workload.groups(self.seed)

    @property
    def context(self) -> int:
        """Tokens of the longest row."""
        return max(bundle.padded for bundle in (*self.pair_lengths, *self.group_lengths))

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Of the model's own tokenizer."""
        return Encoder(build_tokenizer(self.shape.vocabulary))

    @functools.cached_property
    def preferences(self) -> list[PreferencePair]:
        """The pairs as text."""
        words = random.Random(f"pair texts {self.seed}")
        return [
            PreferencePair(prompt, responses[0], responses[1])
            for prompt, responses in (self._texts(words, bundle) for bundle in self.pair_lengths)
        ]

    @functools.cached_property
    def groups(self) -> list[ResponseGroup]:
        """The groups as text."""
        words = random.Random(f"group texts {self.seed}")
        return [
            ResponseGroup(prompt, responses)
            for prompt, responses in (self._texts(words, bundle) for bundle in self.group_lengths)
        ]

    def _texts(self, words: random.Random, bundle: Bundle) -> tuple[str, tuple[str, ...]]:
        """Texts of just so many tokens; `<s>` counts to the prompt, `</s>` to each response."""

        def text(count: int) -> str:
            last = self.shape.vocabulary - len(SPECIAL) - 1
            return " ".join(f"w{words.randint(0, last)}" for _ in range(count))

        prompt = text(bundle.prompt - 1)
        return prompt, tuple(f" {text(length - 1)}" for length in bundle.responses)

    @functools.cached_property
    def encoded_pairs(self) -> list[tuple[list[int], list[int]]]:
        """Token ids of both sides of each pair."""
        encode = self.encoder.encode
        return [
            (encode(p.prompt, p.chosen), encode(p.prompt, p.rejected)) for p in self.preferences
        ]

    @functools.cached_property
    def encoded_groups(self) -> list[EncodedGroup]:
        """Token ids of each response of each group."""
        return encode_groups(self.encoder, self.groups, None)[0]

    def pair_batch(self) -> PaddedBatch:
        """All chosen sides, then all rejected ones, collated anew as a trainer does."""
        rows = [chosen for chosen, _ in self.encoded_pairs]
        rows += [rejected for _, rejected in self.encoded_pairs]
        batch = pad_batch(rows, self.encoder.pad_token_id, side="right")
        device = pick_device()
        return PaddedBatch(batch.input_ids.to(device), batch.attention_mask.to(device))

    def group_batch(self) -> tuple[PaddedBatch, Tensor]:
        """All responses of all groups, and where each stands: a mask of shape (groups, k)."""
        batch = collate_groups(self.encoded_groups, self.encoder.pad_token_id, pick_device())
        return PaddedBatch(batch.input_ids, batch.attention_mask), batch.mask

    def build_model(self, attention: str = "sdpa") -> Any:
        """A reward model with the same weights every time."""
        return build_model(self.shape, seed=self.seed, context=self.context, attention=attention)
