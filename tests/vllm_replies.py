"""A script: vLLM's greedy replies to one audio. Arguments: checkpoint folder, .npy of 16 kHz sound, JSON of prompts.

Prints a JSON list of prompt token ids, reply token ids and log-probs. In a process of its own, for vLLM's settings.
"""

import json
import os
import sys

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
}


def main(folder: str, sound: str, prompts: str) -> None:
    os.environ.update(SETTINGS)
    import numpy as np
    from vllm import LLM, SamplingParams

    limits = {"max_model_len": 1024, "max_num_seqs": 4, "limit_mm_per_prompt": {"audio": 1}}
    llm = LLM(folder, dtype="float32", enforce_eager=True, **limits)
    audio = {"audio": (np.load(sound), 16_000)}
    asked = [{"prompt": prompt, "multi_modal_data": audio} for prompt in json.loads(prompts)]
    replies = []
    for output in llm.generate(asked, SamplingParams(max_tokens=12, temperature=0, logprobs=0), use_tqdm=False):
        reply = output.outputs[0]
        logprobs = [next(iter(step.values())).logprob for step in reply.logprobs]
        replies.append([list(output.prompt_token_ids), list(reply.token_ids), logprobs])
    print(json.dumps(replies))


if __name__ == "__main__":
    main(*sys.argv[1:])
