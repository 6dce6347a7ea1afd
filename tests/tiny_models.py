# SPDX-License-Identifier: Apache-2.0
"""Models of a few hundred weights and a word tokenizer, made in process; some of known logits."""

import hashlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

__all__ = [
    "CONTEXT",
    "ENCODERS",
    "EOS",
    "SPECIAL",
    "WORDS",
    "folder_digest",
    "save_causal_lm",
    "save_encoder_model",
    "save_fixed_policy",
    "save_reward_model",
    "save_tokenizer",
]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("a", "b", "c", "d", "e", "f")
EOS = 2
CONTEXT = 24


def save_tokenizer(folder: Path, words=WORDS, *, chat_template: str | None = None) -> Path:
    """A tokenizer of one token a word; words carry their leading space. Returns the folder."""
    ids = {word: index for index, word in enumerate((*SPECIAL, *(f"\u2581{w}" for w in words)))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = chat_template
    wrapped.save_pretrained(folder)
    return folder


def _config(num_words: int, *, layers: int = 2, tie: bool = False, **more) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(SPECIAL) + num_words,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
        **more,
    )


def save_causal_lm(folder: Path, *, seed: int = 0, words=WORDS) -> Path:
    """A language model whose weights are drawn by `seed`, far from uniform. Returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(_config(len(words))).save_pretrained(folder)
    return save_tokenizer(folder, words)


def save_reward_model(folder: Path, *, seed: int = 0, words=WORDS) -> Path:
    """A sequence classifier with one score. Returns the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(_config(len(words), num_labels=1))
    model.save_pretrained(folder)
    return save_tokenizer(folder, words)


_ENCODER = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "num_labels": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "initializer_range": 0.3,
}
_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT + 2,
}
_DISTIL_SIZES = {
    "dim": 16,
    "hidden_dim": 24,
    "n_layers": 2,
    "n_heads": 2,
    "max_position_embeddings": CONTEXT,
}
ENCODERS = {
    "roberta": (RobertaForSequenceClassification, RobertaConfig(**_ENCODER, **_SIZES)),
    "bert": (BertForSequenceClassification, BertConfig(**_ENCODER, **_SIZES)),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(**_ENCODER, **_DISTIL_SIZES),
    ),
}
"""Encoders that score the first token: through two layers, a pooler, a layer and a ReLU."""


def save_encoder_model(folder: Path, kind: str = "roberta") -> Path:
    """An encoder of `ENCODERS` with one score. Returns the folder."""
    model_class, config = ENCODERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    return save_tokenizer(folder)


def save_fixed_policy(folder: Path, logits: torch.Tensor, words=WORDS, **generation) -> Path:
    """A language model that gives these logits after any text; `generation` are its own defaults.

    Embeddings are ones, layers add nothing, the final norm keeps ones: logits are the head's sums.
    """
    model = LlamaForCausalLM(_config(len(words), layers=1))
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_((logits / 16)[:, None].expand(-1, 16))
    for name, value in generation.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    return save_tokenizer(folder, words)


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()
