"""The demo's tokenizer: byte-level BPE trained on tickets, with a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from understudy.demo.tickets import Ticket

VOCAB_SIZE = 1024
PAD_TOKEN, END_TOKEN = "<|pad|>", "<|end|>"
SPECIAL_TOKENS = (PAD_TOKEN, END_TOKEN, "<|tools|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MAX_LENGTH_TOKENS = 2048

# Every message is <|role|>content<|end|>; a tools section, when there is one, comes first.
CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|tools|>' + (tools | tojson) + '<|end|>' }}{% endif %}
{%- for message in messages %}
{{- '<|' + message['role'] + '|>' + (message['content'] or '') }}
{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}
{{- '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def train_tokenizer(tickets: Sequence[Ticket]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of VOCAB_SIZE entries; digits are tokens of their own, so that numbers can be copied."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((f"{ticket.text}\n{ticket.reply}" for ticket in tickets), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        extra_special_tokens=list(SPECIAL_TOKENS[2:]),
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH_TOKENS,
        clean_up_tokenization_spaces=False,
    )
