"""Settings of what each role runs on: in this process, or as actors of a cluster.

rlspeech/config.py has the stages they belong to.
"""

from typing import Annotated, Literal

from pydantic import Field

from rlspeech.sections import Count, Positive, Section


class EnginesConfig(Section):
    """What each role runs on."""

    rollouts: Literal["transformers", "vllm"] = Field("transformers", description="what the student writes with")
    teacher: Literal["transformers", "vllm"] = Field(
        "transformers", description="what the teacher scores with; a URL as `teacher` asks that server"
    )
    learner: Literal["torch", "deepspeed"] = Field("torch", description="what the student learns with")


class VllmConfig(Section):
    """vLLM engines of this run, in process or in Ray actors."""

    max_model_len: Count = Field(4096, description="longest prompt and reply together, in tokens")
    max_num_seqs: Count = Field(64, description="sequences decoded at once by one engine")
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9, description="share of a GPU that an engine may fill"
    )
    kv_cache_gib: Positive = Field(1.0, description="memory of the KV cache of an engine on a CPU")
    enforce_eager: bool = Field(False, description="no CUDA graphs; a CPU has none")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of weights and activations; auto: float32 on a CPU, the checkpoint's own on a GPU"
    )


class DeepspeedConfig(Section):
    """DeepSpeed learners."""

    zero: Literal[0, 1, 2, 3] = Field(2, description="ZeRO stage")
    offload_optimizer: bool = Field(False, description="optimizer states live in the host's memory (ZeRO 1 to 3)")
    offload_parameters: bool = Field(False, description="parameters live in the host's memory (ZeRO 3)")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of the learner; default: bfloat16 on a GPU, float32 on a CPU"
    )
    activation_checkpointing: bool = Field(
        False, description="activations are computed again in the backward pass: less memory, a third more time"
    )


class ClusterConfig(Section):
    """The roles as Ray actors. Without this table everything runs in one process."""

    address: str | None = Field(
        None, description="of a running Ray cluster, or auto; default: one is started here and stopped at the end"
    )
    rollout_workers: Count = Field(1, description="vLLM engines that the student writes with")
    rollout_tensor_parallel: Count = Field(1, description="GPUs of one rollout engine")
    teachers: Count = Field(1, description="vLLM engines of each teacher; a teacher by URL needs none")
    teacher_tensor_parallel: Count = Field(1, description="GPUs of one teacher engine")
    learners: Count = Field(1, description="DeepSpeed ranks")
    colocated: bool = Field(False, description="rollout engines share the learners' GPUs and sleep while they learn")
    gpus: int | None = Field(None, ge=0, description="GPUs to plan for; default: those that are found")
    gpu_gib: Positive | None = Field(None, description="memory of each GPU to plan for; default: as found")
    sync_bucket_mib: Count = Field(512, description="weights sent to the samplers at a time")
    sync: Literal["merged", "adapter"] = Field(
        "merged",
        description="what the samplers are sent: the adapted matrices, or the LoRA factors alone, which vLLM applies "
        "itself (less to send, slower to decode with)",
    )
    heartbeat_s: Positive = Field(5.0, description="between looks at whether an actor is alive and gets on")
    hang_s: Positive = Field(600.0, description="an actor that has not got on for so long is taken for dead")
    start_s: Positive = Field(1800.0, description="longest start of an engine")
    max_restarts: int = Field(3, ge=0, description="restarts of a role's actors in one run, before it is given up")
    object_store_mib: Count = Field(512, description="Ray's shared memory, of a cluster started here")
    dashboard: bool = Field(False, description="Ray's dashboard, of a cluster started here")
    host: str = Field(
        "127.0.0.1", description="address that Ray and the dashboard listen on, of a cluster started here"
    )
