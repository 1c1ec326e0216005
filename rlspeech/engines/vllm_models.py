"""The models that our plug-in puts in the places of vLLM's, each in a file of its own.

So they take the weights, and hear the audio, as transformers does, and need no package for pictures or for features.
vLLM imports a file when it meets the architecture.
"""

from __future__ import annotations

MODELS = {  # by the architecture in config.json
    "GraniteSpeechForConditionalGeneration": "vllm_granite:GraniteSpeech",
    "Qwen2_5OmniForConditionalGeneration": "vllm_omni:Qwen2_5Thinker",
    "Qwen2_5OmniModel": "vllm_omni:Qwen2_5Thinker",
    "Qwen3OmniMoeForConditionalGeneration": "vllm_omni:Qwen3Thinker",
    "VoxtralForConditionalGeneration": "vllm_voxtral:Voxtral",
}


def register() -> None:
    """Makes them known to vLLM in this process; once is enough, and more does no harm."""
    from vllm import ModelRegistry

    here = __name__.rpartition(".")[0]
    for architecture, model in MODELS.items():
        if not getattr(ModelRegistry.models[architecture], "module_name", "").startswith(here):
            ModelRegistry.register_model(architecture, f"{here}.{model}")
