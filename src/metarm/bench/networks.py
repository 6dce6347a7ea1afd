# SPDX-License-Identifier: Apache-2.0
"""What a method trains: a small head on frozen features, or a pretrained model under a linear one.

Both take row numbers of a problem's texts and give their scores, so every method trains either.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from metarm.bench.features import mean_over_response
from metarm.bench.settings import HEAD_LEARNING_RATE
from metarm.bench.tokens import TokenTable, read_tokens
from metarm.errors import ConfigError
from metarm.models.loading import default_learning_rate, load_backbone
from metarm.schema import Prompt

__all__ = [
    "Backbone",
    "FeatureHead",
    "Network",
    "TransformerScore",
    "read_backbone",
]

Trained = Literal["top", "lora", "all"]
MEASURE_BATCH: Final = 64


class Network(nn.Module, abc.ABC):
    """Row numbers of texts in, scores out."""

    default_learning_rate: float
    width: int
    """Of its last hidden layer."""

    @abc.abstractmethod
    def hidden(self, rows: Tensor) -> Tensor:
        """What the last layer sees, shape (rows, width); `rows` has one dimension."""

    @abc.abstractmethod
    def forward(self, rows: Tensor) -> Tensor:
        """Scores in logits, shape (rows,), with their graph."""

    @abc.abstractmethod
    def measure(self, rows: Tensor) -> Tensor:
        """The same without a graph, for any number of rows."""

    def trainable(self) -> list[Tensor]:
        """The weights that training moves."""
        return [p for p in self.parameters() if p.requires_grad]

    def reconstruct(self, rows: Tensor) -> Tensor:
        """Mean squared error of the features given back from the hidden states of some rows.

        Raises:
            ConfigError: Where there are no frozen features to give back.
        """
        raise ConfigError("reconstruct gives back frozen features: use it with trained=head")

    def head(self) -> list[Tensor]:
        """Those of them that stand on the pretrained model, whose gradients need no way into it."""
        return self.trainable()


class FeatureHead(Network):
    """Features -> hidden layers with ReLU -> one score."""

    default_learning_rate = HEAD_LEARNING_RATE

    def __init__(
        self,
        features: Tensor,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        own_head: bool = False,
        reconstructs: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        size = features.shape[1]
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Linear(size, width), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            size = width
        self.width = size
        self.trunk = nn.Sequential(*layers)
        self.score = nn.Linear(size, 1)
        # Last: what is drawn before is what a plain head begins with. Scores are those of the own
        # layer, where there is one.
        self.own_score = nn.Linear(size, 1) if own_head else None
        self.decoder = nn.Linear(size, features.shape[1]) if reconstructs else None

    def hidden(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        states: Tensor = self.trunk(self.features[rows])
        return states

    def forward(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        layer = self.score if self.own_score is None else self.own_score
        scores: Tensor = layer(self.hidden(rows)).squeeze(-1)
        return scores

    def by_task(self, rows: Tensor, is_own: Tensor) -> Tensor:
        """Scores of rows, shape (rows,), by the last layer of the task that each belongs to."""
        assert self.own_score is not None, "made with own_head"
        hidden = self.hidden(rows)
        own, others = (layer(hidden).squeeze(-1) for layer in (self.own_score, self.score))
        scores: Tensor = torch.where(is_own, own, others)
        return scores

    def reconstruct(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        assert self.decoder is not None, "made with reconstructs"
        given = self.decoder(self.hidden(rows))
        error: Tensor = (given - self.features[rows]).square().mean()
        return error

    @torch.no_grad()
    def measure(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        was_training = self.training
        self.eval()
        scores: Tensor = self(rows)
        self.train(was_training)
        return scores


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained model to train, the texts as its tokens, and which of its weights move."""

    model: str
    """Folder or hub id."""
    tokens: TokenTable
    trained: Trained
    top_layers: int
    """Of `top`: how many of the last layers move."""
    lora_r: int
    """Of `lora`: rank of the adapter on every linear layer."""
    first_score: Tensor | None = None
    """What the score layer starts from, shape (hidden size,); None: drawn by the seed."""


def read_backbone(
    model: str,
    texts: Sequence[tuple[Prompt, str]],
    *,
    max_length: int,
    trained: Trained,
    top_layers: int,
    lora_r: int,
) -> Backbone:
    """Texts as the tokens of the model at `model`: see `Backbone`.

    Raises:
        ModelError: When there is no model.
    """
    tokenizer, _ = load_backbone(model)
    return Backbone(model, read_tokens(tokenizer, texts, max_length), trained, top_layers, lora_r)


class TransformerScore(Network):
    """Tokens -> a pretrained model -> mean of the last states over the response -> one score.

    Bidirectional encoders and causal models both; without dropout, so that methods differ in
    nothing but themselves.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.tokens = backbone.tokens
        _, model = load_backbone(backbone.model)
        self.model = _CHOOSE_TRAINED[backbone.trained](model, backbone)
        self.model.eval()
        self.width = model.config.get_text_config().hidden_size
        self.score = nn.Linear(self.width, 1).to(model.device)
        if backbone.first_score is not None:
            self.score.weight.data.copy_(backbone.first_score.unsqueeze(0))
            self.score.bias.data.zero_()
        self.default_learning_rate = default_learning_rate(self)

    def hidden(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        batch = self.tokens.batch(rows.tolist())
        device = self.score.weight.device
        states = self.model(
            input_ids=batch.ids.to(device), attention_mask=batch.is_text.long().to(device)
        ).last_hidden_state
        return mean_over_response(states, batch.is_response.to(device))

    def forward(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        scores: Tensor = self.score(self.hidden(rows)).squeeze(-1).float().cpu()
        return scores

    def head(self) -> list[Tensor]:
        """See `Network`."""
        return list(self.score.parameters())

    @torch.no_grad()
    def measure(self, rows: Tensor) -> Tensor:
        """See `Network`."""
        order = self.tokens.by_length(rows.tolist())
        found: dict[int, float] = {}
        for start in range(0, len(order), MEASURE_BATCH):
            part = order[start : start + MEASURE_BATCH]
            found.update(zip(part, self(torch.tensor(part)).tolist(), strict=True))
        return torch.tensor([found[row] for row in rows.tolist()])


def _train_all(model: nn.Module, backbone: Backbone) -> nn.Module:
    return model


def _train_top(model: Any, backbone: Backbone) -> Any:
    """Freezes everything but the last layers."""
    num_layers = model.config.get_text_config().num_hidden_layers
    stacks = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers
    ]
    if len(stacks) != 1:
        raise ConfigError(
            f"trained=top looks for one list of {num_layers} layers in {backbone.model!r} and "
            f"found {len(stacks)}: use trained=lora or trained=all"
        )
    model.requires_grad_(False)
    for layer in stacks[0][max(0, num_layers - backbone.top_layers) :]:
        layer.requires_grad_(True)
    return model


def _train_lora(model: Any, backbone: Backbone) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            "trained=lora needs the peft package: pip install 'metarm[peft]'"
        ) from error
    settings = LoraConfig(
        r=backbone.lora_r, lora_alpha=2 * backbone.lora_r, target_modules="all-linear"
    )
    return get_peft_model(model, settings)


_CHOOSE_TRAINED: Final = {"all": _train_all, "top": _train_top, "lora": _train_lora}
