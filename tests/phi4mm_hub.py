"""Phi-4-multimodal as the hub has it: its config.json, in full size and small, and the names that vLLM reads there."""

from copy import deepcopy
from typing import Any

SHORT = [1.0] * 48
LONG = [
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649),
    *(2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533),
    *(5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651),
    *(14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03),
    *(32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
]
ENCODER = {
    "activation": "swish",
    "activation_checkpointing": {"interval": 1, "module": "transformer", "offload": False},
    "attention_dim": 1024,
    "attention_heads": 16,
    "batch_norm": False,
    "bias_in_glu": True,
    "causal": True,
    "chunk_size": -1,
    "cnn_layer_norm": True,
    "conv_activation": "swish",
    "conv_glu_type": "swish",
    "depthwise_multiplier": 1,
    "depthwise_seperable_out_channel": 1024,
    "dropout_rate": 0.0,
    "encoder_embedding_config": {"input_size": 80},
    "ext_pw_kernel_size": 1,
    "ext_pw_out_channel": 1024,
    "input_layer": "nemo_conv",
    "input_size": 80,
    "kernel_size": 3,
    "left_chunk": 18,
    "linear_units": 1536,
    "nemo_conv_settings": {"conv_channels": 1024},
    "num_blocks": 24,
    "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
    "time_reduction": 8,
}
ADAPTED = "((layers.*self_attn\\.(qkv|o)_proj)|(layers.*mlp\\.(gate_up|down)_proj))"
CONFIG = {
    "architectures": ["Phi4MMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "audio_processor": {"config": ENCODER, "name": "cascades"},
    "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
    "bos_token_id": 199999,
    "embd_layer": {
        "audio_embd_layer": {
            "compression_rate": 8,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "enable_gradient_checkpointing": True,
            "projection_cls": "mlp",
            "use_conv_downsample": False,
            "use_qformer": False,
        },
        "embedding_cls": "image_audio",
        "image_embd_layer": {"crop_size": 448, "embedding_cls": "tune_image", "projection_cls": "mlp"},
    },
    "embd_pdrop": 0.0,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi4mm",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "speech_lora": {"dp": 0.01, "layer": ADAPTED, "lora_alpha": 640, "r": 320},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.1",
    "use_cache": True,
    "vision_lora": {"dp": 0.0, "layer": ADAPTED, "lora_alpha": 512, "r": 256},
    "vocab_size": 200064,
}


def small(native: Any) -> dict[str, Any]:
    """The config of the hub that a small native one (of tests/families/phi4mm.py) would have come from."""
    config: dict[str, Any] = deepcopy(CONFIG)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    more = ("vocab_size", "max_position_embeddings", "original_max_position_embeddings", "bos_token_id", "pad_token_id")
    config |= {name: getattr(native, name) for name in (*names, *more)}
    rope = native.rope_parameters
    config["rope_scaling"] = {name: rope[name] for name in ("long_factor", "short_factor")} | {"type": "longrope"}
    audio = native.audio_config
    config["audio_processor"]["config"] |= {
        "attention_dim": audio.hidden_size,
        "attention_heads": audio.num_attention_heads,
        "linear_units": audio.intermediate_size,
        "num_blocks": audio.num_blocks,
        "ext_pw_out_channel": audio.ext_pw_out_channel,
        "depthwise_seperable_out_channel": audio.depthwise_separable_out_channel,
        "nemo_conv_settings": {"conv_channels": audio.nemo_conv_channels},
        "relative_attention_bias_args": {"t5_bias_max_distance": audio.bias_max_distance, "type": "t5"},
    }
    for name in ("speech_lora", "vision_lora"):
        config[name] |= {"r": 4, "lora_alpha": 8}
    return config
