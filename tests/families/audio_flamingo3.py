"""A small Audio Flamingo 3."""

from pathlib import Path

from families.tiny import MODEL, STOPS_S, inputs, write_flamingo

__all__ = ["MODEL", "STOPS_S", "inputs", "write"]

TEMPLATE = (  # as published: audio comes first, wherever it stands in the message
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages if m['content'] is not none %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% set audio = namespace(found=False) %}{% set text_buf = namespace(v='') %}{% for c in m['content'] %}"
    "{% if c.get('type') == 'audio' or 'audio' in c %}{% set audio.found = True %}"
    "{% elif c.get('type') == 'text' or 'text' in c %}{% set text_buf.v = text_buf.v + c['text'] %}{% endif %}"
    "{% endfor %}{% if audio.found %}{{ '<sound>' }}{% endif %}{{ text_buf.v }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    return write_flamingo("audio_flamingo3", folder, TEMPLATE, head_dim=head_dim, context=context)
