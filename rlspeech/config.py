"""The settings of every stage: typed, strict, each with the help text that `rlspeech VERB --help` prints.

A recipe is a TOML file with the same names. Reading recipes and flags is recipe.py's work.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlspeech.config_engines import ClusterConfig, DeepspeedConfig, EnginesConfig, VllmConfig
from rlspeech.config_objective import KL_CAP_NATS, GuardConfig, ImportanceConfig, MixedConfig, WeightingConfig
from rlspeech.config_rewards import RewardConfig
from rlspeech.config_rlbr import GroupsConfig, ListsConfig
from rlspeech.sections import Count, NotNegative, Positive, Section, Seed, Share


class TestsConfig(Section):
    """What is held out."""

    tests: dict[str, Path] = Field({}, description="held-out sets: name = manifest; never learned from")
    synth: Path | None = Field(None, description="recipe of `rlspeech synth` that makes the manifests where missing")
    skip_bad: bool = Field(False, description="skip bad lines (counted and listed) instead of stopping at the first")


class DataConfig(TestsConfig):
    """What is learned from and what is held out."""

    train: Path = Field(description="manifest (.jsonl), NeMo manifest, or Hugging Face dataset folder to learn from")
    kinds: list[str] = Field([], description="learn only from these kinds of instruction; empty: all")


class OptimConfig(Section):
    """AdamW and its schedule."""

    steps: Count = Field(description="optimiser steps")
    batch: Count = Field(8, description="audios a step, over all ranks")
    micro_batch: Count = Field(8, description="audios in one forward pass, at most")
    micro_batch_tokens: Count | None = Field(
        None,
        description="positions in one forward pass, at most, padding included; a longer audio stands alone; default: "
        "any number",
    )
    lr: Positive = Field(1e-4, description="peak learning rate of the adapter (LoRA) or the whole model")
    projector_lr: Positive | None = Field(None, description="peak learning rate of the projector; default: lr")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="decay after the warm-up")
    warmup_steps: int = Field(5, ge=0, description="steps of linear warm-up")
    final_lr_share: Share = Field(0.1, description="share of the peak rate that the decay ends at")
    weight_decay: NotNegative = Field(0.0, description="decoupled weight decay")
    max_grad_norm: Positive = Field(1.0, description="gradients are clipped to this global norm")


class AudioConfig(Section):
    """How the student hears."""

    windows_at_once: Count | None = Field(
        None,
        description="windows of audio (of 30 s, as the family has it) in one pass of the encoder: fewer need less "
        "memory; default: the family's own",
    )


class LoraConfig(Section):
    """Low-rank adapter on the linear layers of the language model."""

    rank: Count = Field(16, description="rank of the adapter")
    alpha: Positive = Field(32.0, description="scale of the adapter is alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout on the adapter's input")


class SamplingConfig(Section):
    """How the student writes its replies."""

    n: Count = Field(1, description="replies to each prompt")
    temperature: Positive = Field(1.0, description="of the distribution that replies are drawn from")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus share")
    max_tokens: Count = Field(64, description="longest reply, in the student's tokens")


class EvaluationConfig(Section):
    """How held-out numbers are taken."""

    samples: Count = Field(24, description="audios of each held-out set, the first ones")
    max_tokens: Count = Field(40, description="longest reply, in the student's tokens")
    batch: Count = Field(32, description="prompts decoded at once, at most")
    batch_tokens: Count = Field(
        65_536,
        description="tokens of the prompts decoded at once, at most, padding included; a longer one goes alone",
    )
    compare_below_wer: Positive = Field(
        1.0, description="KL and the cascade are taken where the student's word error rate is below this"
    )


class TeacherConfig(Section):
    """The text model that reads the transcript."""

    prompt: str = Field(
        'Transcript: "{transcript}"\n\n{instruction}',
        description="user message; {transcript} and {instruction} are filled in",
    )
    prompts: dict[str, str] = Field({}, description="other user messages, by kind of instruction")
    system: str | None = Field(None, description="system message; default: the template's own")
    template_options: dict[str, bool | int | float | str] = Field(
        {}, description="handed to the teacher's chat template, such as enable_thinking = false"
    )
    examples: Path | None = Field(None, description="JSONL of worked examples shown first, to a kind or to all")
    kinds: list[str] = Field([], description="kinds of instruction that the teacher is asked; empty: all")
    batch: Count = Field(32, description="replies scored in one forward pass")
    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(
        64, description="most probable tokens that a served teacher tells at each token of a reply"
    )
    timeout_s: Positive = Field(120.0, description="of one request to a teacher by URL")
    retries: int = Field(4, ge=0, description="further tries of a request that a teacher by URL did not answer")
    requests: Count = Field(16, description="requests to a teacher by URL under way at once")
    api_key_env: str = Field(
        "RLSPEECH_TEACHER_KEY", description="environment variable with the key of a teacher by URL; unset: no key"
    )
    tokenizer: str | None = Field(
        None,
        description="of a teacher by URL: short name, folder, or hub id of its tokenizer; default: the student's own",
    )

    @field_validator("prompt")
    @classmethod
    def _shows_the_transcript(cls, prompt: str) -> str:
        if "{transcript}" not in prompt or "{instruction}" not in prompt:
            raise ValueError("must hold {transcript} and {instruction}")
        return prompt


class TeacherRoute(Section):
    """One of several teachers, for the rows that name it in their column `teacher`."""

    model: str = Field(description="short name, folder, hub id, or URL of a vLLM server")
    weight: NotNegative = Field(1.0, description="of its word in the loss")
    reading: TeacherConfig | None = Field(None, description="how it is asked; default: as the main teacher is")


class HeldOutConfig(Section):
    """Held-out loss; of distill, the divergence from the teacher on replies that the student samples."""

    every_steps: Count = Field(10, description="steps between measurements; also before the first and after the last")
    samples: Count = Field(8, description="recordings of each held-out set, the first ones")


class Checkpointing(Section):
    """What is kept so that a killed run goes on with --resume."""

    every_steps: Count = Field(20, description="steps between checkpoints of the training state")
    keep: Count = Field(2, description="training states kept")


class Stage(Section):
    """Common to every stage that learns."""

    student: str = Field(description="short name (catalog.toml), folder, or hub id of the speech LLM")
    run_dir: Path = Field(description="folder of this run's results; refused where it is in use")
    held_out: HeldOutConfig = HeldOutConfig()
    after: str | None = Field(
        None,
        description="stage whose checkpoint this one starts from when `student` is a short name; run first if missing",
    )
    seed: Seed = Field(0, description="seed of every draw")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    trust_remote_code: bool = Field(False, description="allow Python code that comes with a checkpoint")
    data: DataConfig
    audio: AudioConfig = AudioConfig()
    optim: OptimConfig
    checkpoints: Checkpointing = Checkpointing()


class FramesConfig(Section):
    """First part of align: audio frames are placed on the language model's own token embeddings."""

    steps: int = Field(250, ge=0, description="optimiser steps; 0 skips this part (it needs word timings)")
    batch_frames: Count = Field(2048, description="frames a step")
    lr: Positive = Field(2e-3, description="peak learning rate of the projector")
    noise: NotNegative = Field(0.3, description="standard deviation of Gaussian noise on the encoder's output")
    pull: NotNegative = Field(0.2, description="weight of the squared distance to the token's embedding")
    label_smoothing: Share = Field(0.05, description="of the cross-entropy over token embeddings")


class AlignConfig(Stage):
    """Stage 0. The projector learns to place speech where the frozen language model can read it."""

    frames: FramesConfig = FramesConfig()
    train_encoder: bool = Field(False, description="the audio encoder learns too")


class SftConfig(Stage):
    """Stage 1. The projector and the adapter learn to answer instructions about audio."""

    lora: LoraConfig | None = LoraConfig()
    lists: ListsConfig | None = None


class OnPolicyStage(Stage):
    """A stage whose student writes the replies that it learns from."""

    lora: LoraConfig | None = LoraConfig()
    train_projector: bool = Field(True, description="the projector learns too")
    loss: str = Field(description="file under rlspeech/losses/ or a path.py")
    loss_options: dict[str, float | str | bool] = Field({}, description="fields of the loss")
    importance: ImportanceConfig = ImportanceConfig()
    guard: GuardConfig = GuardConfig()
    max_policy_lag: int = Field(
        0, ge=0, description="steps that sampling may run ahead of learning on a cluster; 0: strictly on-policy"
    )
    engines: EnginesConfig = EnginesConfig()
    vllm: VllmConfig = VllmConfig()
    deepspeed: DeepspeedConfig = DeepspeedConfig()
    cluster: ClusterConfig | None = None
    sampling: SamplingConfig = SamplingConfig()

    @property
    def replies_learned(self) -> int:
        """About one audio, in a step."""
        return self.sampling.n


class DistillConfig(OnPolicyStage):
    """Stage 2. The student hears audio and replies; a text teacher that reads the transcript scores every token."""

    teacher: str = Field(description="short name, folder, or hub id of the text teacher, or the URL of its vLLM server")
    loss: str = Field(
        "reverse_kl", description="file under rlspeech/losses/ or a path.py: reverse_kl, forward_kl, jsd, k1"
    )
    loss_options: dict[str, float | str | bool] = Field({}, description="fields of the loss, such as beta of jsd")
    teachers: dict[str, TeacherRoute] = Field(
        {}, description="further teachers, by the name that rows have in their column `teacher`"
    )
    kl_cap_nats: Positive | None = Field(
        KL_CAP_NATS, description="a token further from the teacher counts for cap / |KL| of its gradient; none: no cap"
    )
    weighting: WeightingConfig = WeightingConfig()
    mixed: MixedConfig = MixedConfig()
    reading: TeacherConfig = TeacherConfig()


class RlbrConfig(OnPolicyStage):
    """Reinforcement learning: replies to one prompt are compared by rewards (RLBR: biasing words weigh more)."""

    loss: str = Field("grpo", description="file under rlspeech/losses/ or a path.py that knows advantages: grpo")
    loss_options: dict[str, float | str | bool] = Field({}, description="fields of the loss, such as clip_high of grpo")
    rewards: dict[str, RewardConfig] = Field(
        {"biasing": RewardConfig(reward="biasing")},
        description="what a reply is judged by, each under its name",
    )
    groups: GroupsConfig = GroupsConfig()
    lists: ListsConfig | None = None
    updates: Count = Field(1, description="optimiser steps on the replies of one step")
    importance: ImportanceConfig = ImportanceConfig(cap=5.0)
    sampling: SamplingConfig = SamplingConfig(n=8, temperature=1.2)


class EvaluateConfig(Section):
    """Held-out numbers of a student, of its text teacher, and of the cascade of the two."""

    student: str = Field(description="short name, folder, or hub id of the speech LLM")
    teacher: str | None = Field(None, description="text teacher; default: no teacher, no cascade, no KL")
    run_dir: Path = Field(description="folder that evaluation.json is written to")
    seed: Seed = Field(0, description="seed of every draw")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    trust_remote_code: bool = Field(False, description="allow Python code that comes with a checkpoint")
    data: TestsConfig
    audio: AudioConfig = AudioConfig()
    lists: ListsConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    reading: TeacherConfig = TeacherConfig()
    after: str = Field("start", description="the stage that made this student, as the report is to name it")
    reuse: Path | None = Field(
        None, description="earlier evaluation folder: its teacher's replies are taken where nothing of them differs"
    )


class SynthConfig(Section):
    """Render a synthesiser's samples to 16 kHz audio and manifests."""

    synth: str = Field("exchanges", description="file under data_synth/ or a path.py")
    out: Path = Field(description="folder that the manifests and the audio are written to")
    sets: dict[str, Count] = Field(description="manifests to write: name = number of recordings")
    seed: Seed = Field(0, description="seed of every draw")
    noise_share: Share = Field(0.3, description="share of recordings with white noise added")
    snr_db: tuple[float, float] = Field((15.0, 35.0), description="range of the signal-to-noise ratio")
    max_silence_s: NotNegative = Field(0.3, description="longest silence before and after the speech")
    options: dict[str, int | float | str] = Field({}, description="fields of the synthesiser")


class ReportConfig(Section):
    """One self-contained HTML file about a run folder or a folder of runs."""

    run_dir: Path = Field(description="a run folder, or a folder that holds run folders")
    out: Path | None = Field(None, description="the file to write; default: report.html in run_dir")
    samples: Count = Field(12, description="samples shown with audio")


class PipelineConfig(Section):
    """Stages run in order as one resumable job, each from the checkpoint of its `after`, or of the one before."""

    run_dir: Path = Field(description="folder of the whole job: each stage gets a folder in it")
    stages: list[str] = Field(description="recipes, run in this order; a stage folder is named after its recipe")
    evaluate: Path | None = Field(None, description="recipe of `evaluate`, run before the first stage and after each")
    evaluations: dict[str, Path] = Field({}, description="recipes of `evaluate` in its place, by the name of a stage")
    seed: Seed = Field(0, description="seed handed to every stage that learns")


class ParityConfig(Section):
    """The same checkpoint and audio in transformers and in vLLM, in float32."""

    student: str = Field(description="short name, folder, run folder, or hub id of the speech LLM")
    audio: list[Path] = Field([], description="recordings to ask about, in place of held-out sets")
    instruction: str = Field("Transcribe the speech.", description="what is asked about them")
    data: TestsConfig = TestsConfig()
    prompts: Count = Field(6, description="prompts compared, the first ones of each held-out set")
    max_tokens: Count = Field(16, description="longest reply, in the student's tokens")
    gate_nats: Positive = Field(1e-3, description="largest difference of log-probs that passes")
    run_dir: Path | None = Field(None, description="folder that parity.json is written to")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    trust_remote_code: bool = Field(False, description="allow Python code that comes with a checkpoint")
    vllm: VllmConfig = VllmConfig(max_model_len=2048, max_num_seqs=8)


class ConvertConfig(Section):
    """A model in another layout of its family, in a new folder."""

    model: str = Field(description="short name, folder, run folder, or hub id of the speech LLM")
    to: str = Field(
        description="native: transformers' own layout, of a model downloaded in the hub's; apart: a trained "
        "checkpoint's adapter beside the weights again; hub: back to the hub's layout (all of phi4mm); merged: a "
        "published adapter as part of the weights (granite_speech)"
    )
    out: Path = Field(description="folder to write; refused where it is there")
    base: Path | None = Field(
        None, description="of apart: the native folder that the stage began with; of hub: the downloaded folder"
    )


class ServeConfig(Section):
    """A model behind an OpenAI-compatible address, by vLLM: a teacher for others, or a student to talk to."""

    model: str = Field(description="short name, folder, run folder, or hub id of a text or speech LLM")
    name: str | None = Field(None, description="what requests call the model; default: as `model` has it")
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every one of this machine")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="port to listen on")
    api_key_env: str = Field(
        "RLSPEECH_TEACHER_KEY",
        description="environment variable with the key that is asked for; unset: VLLM_API_KEY, or no key",
    )
    max_logprobs: Count = Field(1000, description="most probable tokens that a request may ask for at each token")
    tensor_parallel: Count = Field(1, description="GPUs that the model is spread over")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    trust_remote_code: bool = Field(False, description="allow Python code that comes with a checkpoint")
    vllm: VllmConfig = VllmConfig()
