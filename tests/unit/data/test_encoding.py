# SPDX-License-Identifier: Apache-2.0
"""The encoder gives TRL's token ids for every format, and counts what it leaves out."""

import json

import datasets
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from metarm.data.encoding import (
    Encoder,
    check_prompt_length,
    encode_groups,
    encode_pairs,
    pad_batch,
)
from metarm.data.preferences import load_preferences
from metarm.errors import DataError, EmptySetError, ModelError
from metarm.schema import Message, PreferencePair, ResponseGroup

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXTS = ["The sky is blue. The sky is green.", "Question: is snow hot? Answer: No, it is cold."]
QUESTION = (Message("system", "Be brief."), Message("user", "Is snow hot?"))


def make_tokenizer(**special):
    """A byte-level BPE with merges: two texts in one piece are not their pieces in a row."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["</s>", "<pad>", "<unk>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(8 * TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **({"eos_token": "</s>", "pad_token": "<pad>"} | special)
    )
    made.chat_template = TEMPLATE
    return made


def _trl_rows(tokenizer, rows, output_dir):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=1,
    )
    trainer = RewardTrainer(
        LlamaForSequenceClassification(config),
        RewardConfig(output_dir=str(output_dir), use_cpu=True, bf16=False, report_to=[]),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    return [(row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"], ids=["pad is not eos", "pad is eos"])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("trl-explicit", slice(None)),
        ("trl-implicit", slice(None)),
        ("conversational-explicit", slice(0, 1)),  # the others are formats TRL does not take
        ("conversational-implicit", slice(None)),
    ],
)
def test_token_ids_are_trls(repository, tmp_path, name, rows, pad):
    path = repository / "tests" / "data" / f"{name}.jsonl"
    kept = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][rows]
    columns = [
        {k: v for k, v in row.items() if k in ("prompt", "chosen", "rejected")} for row in kept
    ]
    written = tmp_path / path.name
    written.write_text("".join(json.dumps(row) + "\n" for row in columns), encoding="utf-8")
    tokenizer = make_tokenizer(pad_token=pad)
    pairs, report = encode_pairs(Encoder(tokenizer), load_preferences(written).pairs, None)
    expected = _trl_rows(make_tokenizer(pad_token=pad), columns, tmp_path)
    assert [(pair.chosen_ids, pair.rejected_ids) for pair in pairs] == expected
    assert report.num_read == len(columns)


def test_a_real_tokenizer_gives_trls_ids(shared, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K-hf")
    rows = [
        {"prompt": "Once upon a time", "chosen": ", there was", "rejected": "was a cat.</s>"},
        {"prompt": "The end.</s>", "chosen": "", "rejected": " No"},
    ]
    encoder = Encoder(tokenizer)
    ours = [
        tuple(encoder.encode(row["prompt"], row[k]) for k in ("chosen", "rejected")) for row in rows
    ]
    assert ours == _trl_rows(tokenizer, rows, tmp_path)
    assert all(side[-1] == tokenizer.eos_token_id for pair in ours for side in pair)


def test_prompt_and_response_are_one_piece():
    encoder = Encoder(make_tokenizer())
    whole = encoder.encode("The sk", "y is")
    assert whole == encoder.encode("", "The sky is")
    apart = [*encoder.encode_prompt("The sk"), *encoder.encode("", "y is")]
    assert whole != apart
    assert whole.count(encoder.eos_token_id) == 1
    assert whole[-1] == encoder.eos_token_id


def test_a_prompt_ends_where_its_answer_begins():
    encoder = Encoder(make_tokenizer())
    ids = encoder.encode_prompt(QUESTION)
    assert encoder.encode(QUESTION, "No.")[: len(ids)] == ids
    assert encoder.decode(ids).endswith("<assistant>")
    assert encoder.encode_prompt("Is it?")[-1] != encoder.eos_token_id


@pytest.mark.parametrize("response", [" blue. The sky", "blue", " is"])
def test_a_decoded_response_follows_its_prompt(shared, response):
    from transformers import AutoTokenizer

    real = AutoTokenizer.from_pretrained(shared / "models" / "stories260K-hf")
    for encoder in (Encoder(make_tokenizer()), Encoder(real)):
        ids = encoder.encode("The sky is", response)[len(encoder.encode_prompt("The sky is")) :]
        assert encoder.decode(ids) == response


def test_a_tokenizer_that_ends_texts_does_not_end_prompts():
    from tokenizers import processors

    tokenizer = make_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    assert tokenizer("Is it?")["input_ids"][-1] == tokenizer.eos_token_id
    plain = Encoder(make_tokenizer()).encode_prompt("Is it?")
    assert Encoder(tokenizer).encode_prompt("Is it?") == plain


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"pad_token": "<pad>"}, "<pad>"),
        ({"pad_token": "</s>"}, "</s>"),
        ({"pad_token": None, "unk_token": "<unk>"}, "<unk>"),
        ({"pad_token": None}, "</s>"),
    ],
)
def test_padding_is_not_eos_where_there_is_a_choice(special, expected):
    tokenizer = make_tokenizer(**special)
    encoder = Encoder(tokenizer)
    assert tokenizer.pad_token == expected
    assert encoder.pad_token_id == tokenizer.convert_tokens_to_ids(expected)


def test_what_cannot_be_encoded_says_what_is_missing():
    with pytest.raises(ModelError, match="no EOS token"):
        Encoder(make_tokenizer(eos_token=None))
    named = make_tokenizer(eos_token=None, sep_token="</s>")
    assert Encoder(named).encode("a", " b") == Encoder(make_tokenizer()).encode("a", " b")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        Encoder(tokenizer).encode(QUESTION, "No.")


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_rows_are_padded_on_a_side(side, ids, mask):
    batch = pad_batch([[5, 6, 7], [8]], 0, side=side)
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.tolist() == mask
    assert batch.input_ids.dtype == torch.long


def test_too_long_pairs_are_counted():
    encoder = Encoder(make_tokenizer())
    short, long = PreferencePair("a", "b", "c", 0.5, 0.9), PreferencePair("a", "b", "c" * 40)
    limit = len(encoder.encode("a", "b"))
    kept, report = encode_pairs(encoder, [short, long, short], limit)
    assert [pair.margin for pair in kept] == [0.5, 0.5]
    assert [pair.p for pair in kept] == [0.9, 0.9]
    assert (report.num_read, report.num_too_long, report.max_length) == (3, 1, limit)
    assert report.summary().startswith(f"2 of 3 encoded; 1 left out: longer than {limit} tokens")
    assert len(encode_pairs(encoder, [short, long], None)[0]) == 2
    with pytest.raises(EmptySetError, match=r"1 read, all longer than max_length=1 "):
        encode_pairs(encoder, [short], 1)
    with pytest.raises(EmptySetError, match="the preference set is empty"):
        encode_pairs(encoder, [], 10)


def test_too_long_responses_leave_their_group():
    encoder = Encoder(make_tokenizer())
    long = "c" * 40
    groups = [
        ResponseGroup("a", ("b", long, "d")),
        ResponseGroup("a", ("b", long)),
        ResponseGroup("a", (long, long)),
    ]
    limit = len(encoder.encode("a", "b"))
    kept, report = encode_groups(encoder, groups, limit)
    assert [group.response_ids for group in kept] == [
        (encoder.encode("a", "b"), encoder.encode("a", "d"))
    ]
    assert (report.num_read, report.num_too_long, report.num_too_small) == (3, 1, 1)
    assert "1 of 3 encoded" in report.summary()
    assert "1 groups left out" in report.summary()
    assert report.num_responses_too_long == 4
    assert "4 responses of groups left out: longer than" in report.summary()
    assert encode_groups(encoder, groups, None)[1].num_responses_too_long == 0
    with pytest.raises(EmptySetError, match=r"2 read, 1 longer than .* 1 with one response"):
        encode_groups(encoder, groups[1:], limit)


def test_a_prompt_must_leave_room_for_its_response():
    encoder = Encoder(make_tokenizer())
    ids = encoder.encode_prompt("The sky is")
    context = len(ids) + 5 + 1  # the response and its EOS
    assert check_prompt_length(encoder, "The sky is", context, 5) == ids
    with pytest.raises(DataError, match=r"'The sky is'.*max_completion_length=6.*context is"):
        check_prompt_length(encoder, "The sky is", context, 6)


def test_a_sampled_nul_can_be_written_and_read():
    encoder = Encoder(make_tokenizer())
    ids = encoder.tokenizer.convert_tokens_to_ids(["a", "\u0100", "b"])  # byte-level for 0
    assert encoder.decode(ids) == "a\ufffdb"
