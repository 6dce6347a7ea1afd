# SPDX-License-Identifier: Apache-2.0
"""Loading of language models, sequence classifiers and tokenizers, with errors that help."""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from metarm.data.encoding import Encoder
from metarm.errors import ConfigError, ModelError
from metarm.models.safe_files import SAFE_OPTIONS, refuse_pickles

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "context_length",
    "default_learning_rate",
    "load_backbone",
    "load_causal_lm",
    "load_encoder",
    "load_language_head",
    "load_reward_model",
    "lora_config",
    "pick_device",
    "read_context_length",
]


def pick_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.device("cpu")


def load_encoder(model: str | Path) -> Encoder:
    """The encoder of a model folder or hub id.

    Raises:
        ModelError: When there is no tokenizer there.
    """
    from transformers import AutoTokenizer

    with _loading(model, "tokenizer"):
        return Encoder(AutoTokenizer.from_pretrained(model, **SAFE_OPTIONS))


def load_causal_lm(model: str | Path) -> "PreTrainedModel":
    """A causal language model in fp32, on the accelerator, without dropout.

    Raises:
        ModelError: When it is missing or of another kind.
    """
    from transformers import AutoModelForCausalLM

    kind = "causal language model"
    with _loading(model, kind):
        loaded, found = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **SAFE_OPTIONS,
        )
    _refuse_missing(model, kind, found["missing_keys"])
    # With tied embeddings nothing is missing: a policy of a judge's weights would be let through.
    if any(name.startswith("score.") for name in found["unexpected_keys"]):
        raise ModelError(f"expected a {kind} at {str(model)!r}, got a reward model: give a policy")
    return loaded.to(pick_device()).eval()


def load_reward_model(
    model: str | Path,
    encoder: Encoder,
    *,
    seed: int | None = 0,
    attn_implementation: str | None = None,
    device: torch.device | None = None,
) -> "PreTrainedModel":
    """A sequence classifier with one score, in fp32.

    Args:
        model: Folder or hub id.
        encoder: Names the padding token that the score is not read at.
        seed: A language model gets a new score head, drawn from it; with None it is refused.
        attn_implementation: None is the model's own; `eager` can be differentiated twice.
        device: None: `pick_device`. A model that will be sharded stays on the CPU.

    Raises:
        ModelError: When it is missing or of another kind.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    kind = "reward model"
    with _loading(model, kind), torch.random.fork_rng(devices=[]):
        # Not torch's own manual_seed: that seeds every device, which the fork does not put back.
        torch.default_generator.manual_seed(seed or 0)
        _check_labels(model, AutoConfig.from_pretrained(model, **SAFE_OPTIONS))
        loaded, found = AutoModelForSequenceClassification.from_pretrained(
            model,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **SAFE_OPTIONS,
        )
    trunk = f"{loaded.base_model_prefix}."
    missing = found["missing_keys"]
    _refuse_missing(model, kind, [k for k in missing if seed is None or k.startswith(trunk)])
    # The score is read at the last token that is not padding: model and encoder must agree on it.
    loaded.config.get_text_config().pad_token_id = encoder.pad_token_id
    return loaded.to(device or pick_device()).eval()


def load_language_head(name: str | Path, model: "PreTrainedModel") -> torch.nn.Module:
    """What makes words of the states of a reward model that begins as the language model `name`.

    Frozen, and on the model's device; tied to the embeddings or not, it is a copy.

    Raises:
        ModelError: When `name` is no language model: a reward model has no such head.
    """
    head = load_causal_lm(name).get_output_embeddings()
    frozen: torch.nn.Module = head.requires_grad_(False).to(model.device)
    return frozen


def load_backbone(
    model: str | Path,
) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
    """A tokenizer and a model without a head, in fp32 and without dropout, to read states of.

    Raises:
        ModelError: When one of them is missing.
    """
    from transformers import AutoModel, AutoTokenizer

    with _loading(model, "backbone"):
        tokenizer = AutoTokenizer.from_pretrained(model, **SAFE_OPTIONS)
        loaded = AutoModel.from_pretrained(
            model, dtype=torch.float32, use_safetensors=True, **SAFE_OPTIONS
        )
    return tokenizer, loaded.to(pick_device()).eval()


def context_length(model: "PreTrainedModel") -> int:
    """Tokens the model can attend to; a very large number where its configuration names none."""
    return _context_length(model.config)


def read_context_length(model: str | Path) -> int:
    """The same of a model folder or hub id, without its weights.

    Raises:
        ModelError: When there is no model there.
    """
    from transformers import AutoConfig

    with _loading(model, "model"):
        return _context_length(AutoConfig.from_pretrained(model, **SAFE_OPTIONS))


def _context_length(config: Any) -> int:
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def default_learning_rate(model: torch.nn.Module) -> float:
    """The paper's 5e-6 at 7e9 trainable weights, more for fewer: 1.9e-5 at 5e8, 1e-3 at most.

    The exponent is a rule of thumb: on this project's models of 1e5 to 3e5 weights 5e-6 learns
    nothing and 1e-3 does.
    """
    num_weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return min(5e-6 * math.sqrt(7e9 / num_weights), 1e-3)


def lora_config(lora_r: int, *, has_score_head: bool) -> Any:
    """An adapter on every linear layer but a language model's head; a score head in full.

    Raises:
        ConfigError: When the peft package is not there.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError("use_peft needs the peft package: pip install 'metarm[peft]'") from error
    return LoraConfig(
        task_type="SEQ_CLS" if has_score_head else "CAUSAL_LM",
        r=lora_r,
        lora_alpha=2 * lora_r,
        target_modules="all-linear",
        modules_to_save=["score"] if has_score_head else None,
    )


def _check_labels(model: str | Path, config: Any) -> None:
    is_classifier = any("Classification" in name for name in config.architectures or ())
    if is_classifier and config.num_labels != 1:
        raise ModelError(
            f"expected a reward model with one score at {str(model)!r}, got a classifier with "
            f"num_labels={config.num_labels}. Give a reward model or a language model."
        )


def _refuse_missing(model: str | Path, kind: str, missing: Iterable[str]) -> None:
    names = sorted(missing)
    if names:
        raise ModelError(
            f"expected a whole {kind} at {str(model)!r}, got one without {', '.join(names[:3])} "
            f"({len(names)} missing): what is missing would be random. Give a folder that was "
            f"saved as a {kind}."
        )


def _refuse_lost_folder(model: str | Path, kind: str) -> None:
    """A name that can only be a folder's is not looked for on the hub."""
    name = str(model)
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(model).exists():
        raise ModelError(f"expected a {kind} at {name!r}: there is no such folder. Check the path.")


@contextmanager
def _loading(model: str | Path, kind: str) -> Iterator[None]:
    """Errors that help, and quiet: metarm shows its own bars and checks the load report itself."""
    from transformers.utils.logging import disable_progress_bar

    _refuse_lost_folder(model, kind)
    refuse_pickles(model)
    disable_progress_bar()
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except ModelError:
        raise
    # Broken files surface as errors of any kind: transformers checks some fields, others it uses.
    except Exception as error:
        text = str(error).strip()
        first = text.splitlines()[0] if text else type(error).__name__
        place = "the folder exists" if Path(model).is_dir() else "there is no such folder"
        raise ModelError(
            f"expected a {kind} in Hugging Face format at {str(model)!r} ({place}): {first} "
            "Give a folder with config.json, model.safetensors and tokenizer files, or a hub id."
        ) from error
    finally:
        logger.setLevel(level)
