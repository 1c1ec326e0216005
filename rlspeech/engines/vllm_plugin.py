"""The plug-in `rlspeech` under vllm.general_plugins: what vLLM is to know in each process of its own."""

from rlspeech.engines import vllm_models, vllm_phi4mm, vllm_shared_memory


def register() -> None:
    """Once is enough, and more does no harm."""
    vllm_shared_memory.register()
    vllm_models.register()
    vllm_phi4mm.register()
