"""The verbs of the command, and what its help says of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """`learns`: --dry-run tells memory and what is missing. `resumes`, `self_tests`: there is that flag.

    `words`: the settings that the words behind the verb give; none: that word is a recipe.
    """

    summary: str
    about: str
    examples: tuple[str, ...]
    learns: bool = False
    resumes: bool = False
    self_tests: bool = False
    words: tuple[str, ...] = ()


VERBS = {
    "synth": Verb(
        "render spoken exchanges to audio and manifests",
        "Writes a synthesiser's samples (a file under data_synth/, or your own) as 16 kHz audio and one JSONL manifest "
        "a set, spoken in process by eSpeak NG with many voices, rates and pitches, some of it in noise. A set whose "
        "manifest is there already is left as it is.",
        ("rlspeech synth tiny/synth", "rlspeech synth tiny/synth --seed 1 --out data/other"),
    ),
    "align": Verb(
        "stage 0: the projector learns to place speech where the language model can read it",
        "The audio encoder and the language model are frozen; the projector between them learns, first from the "
        "language model's own token embeddings at each audio frame (where the data has word timings), then from the "
        "language model's loss on the transcript. Ends in a checkpoint folder that transformers loads.",
        ("rlspeech align --student tiny", "rlspeech align tiny/align --optim.lr 1e-3 --run-dir runs/try"),
        learns=True,
        resumes=True,
    ),
    "sft": Verb(
        "stage 1: the projector and an adapter learn to answer instructions about audio",
        "The audio encoder stays frozen, so that it keeps its robustness; projector and LoRA adapter learn from "
        "(audio, instruction) -> answer, with loss on the tokens of the answer only.",
        ("rlspeech sft --student tiny", "rlspeech sft tiny/sft --lora.rank 32 --optim.steps 200"),
        learns=True,
        resumes=True,
    ),
    "distill": Verb(
        "stage 2: on-policy distillation from a text teacher that reads the transcript",
        "The main job. The student hears the audio and samples a reply; the teacher, which has the transcript, says "
        "at every token of that reply how it would have gone on; the student moves towards it. The teacher may have "
        "another tokenizer. Losses: reverse_kl, forward_kl, jsd (over the whole vocabulary, or the teacher's top "
        "tokens), k1 (sampled tokens only).",
        (
            "rlspeech distill --teacher tiny-llm --student tiny",
            "rlspeech distill --teacher llama-70b --student phi4mm --dry-run",
        ),
        learns=True,
        resumes=True,
        self_tests=True,
    ),
    "pairs": Verb(
        "the student's own replies to each audio, and pairs of a good and a faulty one",
        "Samples several replies to each prompt at several temperatures, looks for faults in them (loops, lists that "
        "say the same again and again, names, numbers and quotes that are not in the transcript), asks the teacher how "
        "likely they are where one is named, and pairs a faultless reply with a faulty one of about its length. Writes "
        "pairs.jsonl and pairs.parquet in TRL's columns (prompt, chosen, rejected), and a report of reasons, margins "
        "and lengths.",
        (
            "rlspeech pairs --student tiny",
            "rlspeech pairs tiny/pairs --replies.temperatures 0.7,1.2 --choosing.length-ratio 3",
        ),
        resumes=True,
    ),
    "dpo": Verb(
        "stage 3: preference learning against repetition and hallucination",
        "Of two replies to the same audio the preferred one becomes more likely and the rejected one less (DPO; also "
        "IPO, length-normalised, with a term that holds on to the preferred reply). Learns from the pairs that "
        "`rlspeech pairs` made, from any file with prompt, chosen, rejected and audio, or with --online from fresh "
        "replies while it learns. The reference is the student that the stage begins with.",
        (
            "rlspeech dpo --student tiny",
            "rlspeech dpo tiny/dpo --loss-options.beta 0.2 --loss-options.nll_weight 0.5",
        ),
        learns=True,
        resumes=True,
    ),
    "rlbr": Verb(
        "contextual speech recognition by reinforcement learning with biasing rewards",
        "The student hears audio, reads a list of words that may be said, and samples several transcripts; rewards "
        "(files under reward_models/, your own, or plain TRL-style functions) compare them, and GRPO moves the student "
        "towards the better ones. The right transcript can join each group. With other rewards the same verb learns "
        "translation, spoken question answering, audio understanding or safety.",
        (
            "rlspeech rlbr --student tiny",
            "rlspeech rlbr phi4mm/rlbr --groups.reference replace_worst --dry-run",
        ),
        learns=True,
        resumes=True,
    ),
    "evaluate": Verb(
        "held-out numbers of a student, its text teacher, and the cascade of the two",
        "Word error rate, exact and fuzzy accuracy of answers, repetition, and KL to the teacher on held-out sets; the "
        "same scores of the teacher reading the true transcript, and reading the student's own, so that the share of "
        "the gap that was closed is a number. Writes evaluation.json.",
        (
            "rlspeech evaluate tiny/evaluate --student runs/tiny/distill/checkpoint",
            "rlspeech evaluate --student tiny --teacher none --evaluation.samples 8",
        ),
    ),
    "report": Verb(
        "one self-contained HTML file about a run, or a folder of runs",
        "Curves of every stage, a table of held-out numbers before and after, and a dozen samples with their audio, "
        "the replies before and after, and the KL of each token as colour. No recipe is needed.",
        ("rlspeech report --run-dir runs/tiny", "rlspeech report --run-dir runs/tiny --out tiny.html --samples 20"),
    ),
    "pipeline": Verb(
        "stages run in order as one job that can be resumed",
        "Runs the recipes it lists, each from the checkpoint of the one before, with evaluations between them. What "
        "is finished is not run again: a killed job goes on with --resume.",
        ("rlspeech pipeline tiny/quickstart", "rlspeech pipeline tiny/quickstart --resume"),
        resumes=True,
    ),
    "parity": Verb(
        "the same checkpoint and audio in transformers and in vLLM: equal replies, equal log-probs",
        "What is learned from and what is sampled from must be one model. In float32, prompt ids and greedy replies "
        "have to be equal and log-probs to agree within --gate-nats; otherwise the first input that differs is named "
        "(prompt ids, audio features, encoder output, projector output, logits) and the status is 1. Without audio or "
        "a held-out set, a few exchanges are spoken by eSpeak NG.",
        (
            "rlspeech parity --student tiny",
            "rlspeech parity --student runs/tiny/distill/checkpoint --data.tests.voice runs/tiny/data/test_voice.jsonl",
        ),
    ),
    "serve": Verb(
        "a model behind an OpenAI-compatible address, by vLLM: a teacher for others, or a student to talk to",
        "Runs a vLLM server until it is stopped. It listens on this machine alone unless --host says otherwise, asks "
        "for the key in an environment variable where one is set, and tells as many log-probs as a teacher is asked. "
        "`rlspeech distill --teacher http://HOST:PORT` asks it.",
        (
            "rlspeech serve --model tiny-llm",
            "rlspeech serve --model runs/tiny/distill/checkpoint --port 8001 --vllm.max-num-seqs 8",
        ),
    ),
    "convert": Verb(
        "a model in another layout of its family: from the hub's own to the one that is trained, and back",
        "All tensors are checked by name and shape before anything is written. The new folder is written beside its "
        "place, a file of weights at a time, and is there whole or not at all; one that is there is never written "
        "over. None of the code that a download comes with is run.",
        (
            "rlspeech convert Phi-4-multimodal-instruct --to native --out phi4mm-native",
            "rlspeech convert runs/phi4mm/sft --to apart --base phi4mm-native --out phi4mm-sft",
        ),
        words=("model",),
    ),
}
SCORING = {
    "score": Verb(
        "word errors of transcripts, those of rare words apart",
        "`score biasing` compares transcripts with references: WER, U-WER (of words that are not rare) and B-WER (of "
        "those that are), as Le et al., Interspeech 2021, and how many of the listed words and phrases are found. It "
        "reads the LibriSpeech biasing files as they are: id, text, JSON list of rare words, JSON list of biasing "
        "words, a tab between; hypotheses are id and text.",
        (
            "rlspeech score biasing --refs test-clean.biasing_100.tsv --hyps mine.tsv",
            "rlspeech score biasing --refs refs.tsv --hyps a.tsv --hyps b.tsv --normalise english --out scores.json",
        ),
        words=("what",),
    ),
    "reward": Verb(
        "a reward over recorded rollouts, before any GPU is spent on it",
        "`reward try FILE` runs a reward (a shipped name, or path.py[:Class or function]) over the rollouts.jsonl of a "
        "run, in a process of its own as training does, and prints how its values spread: over all replies and within "
        "groups, and the best and the worst replies.",
        (
            "rlspeech reward try biasing --on runs/tiny-calls/rlbr/rollouts.jsonl",
            "rlspeech reward try mine.py:my_reward --on runs/tiny-calls/rlbr/rollouts.jsonl --timeout-s 5",
        ),
        words=("what", "reward"),
    ),
}
VERBS |= SCORING
TOOLS = {
    "doctor": "what is installed, which devices there are, and what each stage could do here",
    "plan": "models, data, memory of a learning verb, and what is missing here: `rlspeech plan VERB [RECIPE]`",
}
EVERYTHING = [*VERBS, *TOOLS]
