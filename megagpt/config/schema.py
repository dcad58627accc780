"""The typed, frozen form of every configuration file.

One class for each part that stages share, then one class for each stage. A field's docstring says what it means
and in which unit; `megagpt VERB --help` prints these docstrings, so there is no second description to keep true.
Rules that involve several fields live in `check.py`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


class Frozen(BaseModel):
    """Base of all parts: immutable, no unknown keys, no silent conversion between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


# ---------------------------------------------------------------- parts that stages share


class RunConfig(Frozen):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run; everything is written under `<root>/<name>/<stage>/`."""
    root: str = "runs"
    """Folder that holds all runs; relative paths start at the working directory."""
    seed: int = 1234
    """Every random choice (initial weights, data order, dropout, sampling) is a function of this number and a counter."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where torch finds a device, else the CPU."""
    timeout_seconds: int = Field(600, gt=0)
    """A collective that waits longer than this ends the job with an error; seconds."""
    resume: Literal["auto", "never"] = "auto"
    """`auto`: continue from the last good checkpoint of the stage's folder; `never`: clear the folder and start anew."""
    wandb_project: str | None = None
    """Send the metrics to this Weights & Biases project too, where the package is installed and logged in."""


class ModelConfig(Frozen):
    family: Literal["gpt", "llama"] = "gpt"
    """`gpt`: learned positions, LayerNorm, GELU, biases. `llama`: rotary positions, RMSNorm, SwiGLU, no biases."""
    num_layers: int = Field(gt=0)
    """Number of transformer blocks."""
    hidden_size: int = Field(gt=0)
    """Width of the residual stream."""
    num_attention_heads: int = Field(gt=0)
    """Number of query heads; must divide hidden_size."""
    num_query_groups: int | None = Field(None, gt=0)
    """Number of key/value heads (grouped-query attention); default: num_attention_heads."""
    ffn_hidden_size: int | None = Field(None, gt=0)
    """Width of the MLP; default: 4 x hidden_size for `gpt`, 8/3 x hidden_size rounded up to 16 for `llama`."""
    max_sequence_length: int = Field(gt=0)
    """Longest sequence in tokens (the number of learned positions for `gpt`)."""
    vocab_size: int | None = Field(None, gt=0)
    """Number of token ids, without padding; default: that of the tokenizer."""
    tie_embeddings: bool | None = None
    """Output weights are the token embedding; default: true for `gpt`, false for `llama`."""
    norm_epsilon: float = Field(1e-5, gt=0)
    """Added to the variance in LayerNorm and RMSNorm."""
    rotary_base: int = Field(10000, gt=0)
    """Base period of the rotary embedding (`llama`)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability for embedding, attention and residual dropout during pre-training, SFT and reward training; never active in `rlhf`."""
    init_std: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights; projections into the residual stream get init_std / sqrt(2 num_layers)."""

    @property
    def mlp_width(self) -> int:
        """ffn_hidden_size with its default filled in."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return math.ceil(8 * self.hidden_size / 3 / 16) * 16 if self.family == "llama" else 4 * self.hidden_size


class ParallelConfig(Frozen):
    tensor_parallel_size: int = Field(1, gt=0)
    """Ranks that share each weight matrix."""
    pipeline_parallel_size: int = Field(1, gt=0)
    """Ranks that hold consecutive blocks of layers."""
    context_parallel_size: int = Field(1, gt=0)
    """Ranks that share each sequence (DeepSpeed-Ulysses): each has a part of the tokens and, in attention, a part of the heads."""
    data_parallel_size: int | None = Field(None, gt=0)
    """Replicas; default: ranks / (tensor x pipeline x context)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO shards over the replicas: 1 optimizer states, 2 also gradients (after a step's last microbatch), 3 also parameters (no pipeline)."""
    sequence_parallel: bool = False
    """Tensor-parallel ranks share the activations between the matrix products too, along the sequence."""
    virtual_pipeline_size: int = Field(1, gt=0)
    """Blocks of layers on each pipeline rank (interleaved 1F1B); more than one shrinks the pipeline's idle time."""
    stage_layers: list[int] | None = None
    """Layers of each pipeline stage, where they are not to be equal; with virtual stages in the order that a token passes them.
    0 in the first or the last leaves it the embedding or the head alone."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations computed again in the backward pass instead of kept: those of attention alone, or those of whole layers."""
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where ZeRO (stage 1-3; nvme: stage 3) keeps optimizer states while they are not in use."""
    offload_path: str | None = None
    """Folder on the NVMe drive, for `offload_optimizer: nvme`."""


class LossScaleConfig(Frozen):
    """Dynamic loss scaling, for FP16 (Micikevicius et al. 2018, section 3.2)."""

    initial: float = Field(65536.0, gt=0)
    """Scale at the start."""
    window: int = Field(1000, gt=0)
    """Steps without an overflow after which the scale doubles."""
    hysteresis: int = Field(2, gt=0)
    """Overflows until the scale halves (every one of them skips its step); 1: at the first."""
    minimum: float = Field(1.0, gt=0)
    """The scale never falls below this."""


class PrecisionConfig(Frozen):
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of weights and activations; with bf16 and fp16 the optimizer keeps float32 masters and gradients add up in float32."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    """FP16 only."""


class OptimizerConfig(Frozen):
    name: Literal["adamw", "sgd"] = "adamw"
    """Update rule; weight decay is decoupled and never applied to norms and biases."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Course of the learning rate after the warm-up: down to min_lr_ratio by a cosine or a line, `wsd`: stable, then a line down, or constant."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """The schedule ends at this fraction of lr."""
    warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Fraction of the run, whatever decay_tokens says, over which the learning rate rises linearly from zero."""
    warmup_tokens: int | None = Field(None, ge=0)
    """The same as a number of tokens (pre-training); overrides warmup_ratio."""
    decay_tokens: int | None = Field(None, gt=0)
    """Token count at which the schedule reaches its end, warm-up included (pre-training; GPT-3: 260e9 of 300e9); default: the whole run."""
    wsd_decay_ratio: float = Field(0.1, gt=0, le=1)
    """`wsd` only: fraction of the whole schedule over which the rate falls at its end, at most all after the warm-up (Hu et al. 2024, section 4)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's first and second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the square root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of the weight matrices, in units of the learning rate."""
    clip_grad: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) < len(values):
        raise ValueError("names one of them twice")
    return values


LoraTarget = Literal["qkv", "proj", "fc1", "fc2"]


class LoraConfig(Frozen):
    """Low-rank adapters (Hu et al. 2021): the weights W stay as they are, and W + alpha / rank * B A is what the model computes with. Only A and B
    are trained (and the scalar head of a reward or value model), so that only they have gradients and optimizer states. Later stages and
    `convert export` get the sum as plain weights."""

    rank: int = Field(8, gt=0)
    """Rows of A and columns of B; at most hidden_size."""
    alpha: float = Field(16.0, gt=0, allow_inf_nan=False)
    """Factor of the product, divided by rank."""
    targets: Annotated[tuple[LoraTarget, ...], AfterValidator(_distinct)] = Field(("qkv", "proj", "fc1", "fc2"), min_length=1)
    """Which linear layers have adapters: query, key and value (one A for all three), attention's output, the first of the MLP (one A for gate and
    up), the second. All of them come closest to training everything (Dettmers et al. 2023, section 4); Hu et al. have query and value only."""


class BatchConfig(Frozen):
    micro_batch_size: int = Field(gt=0)
    """Rows in one forward pass of one replica."""
    global_batch_size: int = Field(gt=0)
    """Rows in one optimizer step over all replicas; a multiple of micro_batch_size x replicas."""


class BatchRampConfig(Frozen):
    """Batch-size warm-up (Brown et al. 2020, appendix B): linear in the tokens seen, in equal steps."""

    initial_batch_size: int = Field(gt=0)
    """Rows in the first optimizer step."""
    increment: int = Field(gt=0)
    """Rows by which the batch grows; divides global_batch_size - initial_batch_size."""
    tokens: int = Field(gt=0)
    """Tokens over which the batch grows to global_batch_size."""


class PretrainBatchConfig(BatchConfig):
    ramp: BatchRampConfig | None = None
    """Start with smaller batches."""


class EveryConfig(Frozen):
    """How often, in optimizer steps, things happen beside training; 0 means never (except at the end)."""

    log: int = Field(10, gt=0)
    """Print a line; metrics.jsonl gets every step."""
    evaluate: int = Field(0, ge=0)
    """Evaluate on held-out data; always done at the first and last step."""
    save: int = Field(0, ge=0)
    """Save a checkpoint; always done at the last step."""
    keep: int = Field(2, gt=0)
    """Checkpoints kept in the stage's folder, newest first; the best on held-out data stays too (SFT, DPO)."""
    keep_every: int = Field(0, ge=0)
    """Besides those, keep each checkpoint whose step is a multiple of this; 0: none."""


# ---------------------------------------------------------------- text, tokenizer, token files


class DataConfig(Frozen):
    """Raw sources to the records that the later stages read: documents, demonstrations, rankings, prompts."""

    stage: Literal["data"] = "data"
    """Which stage this file is for."""
    run: RunConfig
    source: str
    """`python-docs` (the Python installation that runs this) or a folder of files (kinds: see `megagpt data run --help`)."""
    valid_fraction: float = Field(0.02, gt=0, lt=1)
    """Share of the documents that is held out for validation."""
    max_documents: int | None = Field(None, gt=0)
    """Stop after this many documents; default: all."""
    min_characters: int = Field(100, gt=0)
    """Shorter documents are dropped."""
    max_prompt_characters: int = Field(400, gt=0)
    """Longest question made from a document (`python-docs`)."""
    max_answer_characters: int = Field(400, gt=0)
    """Longest answer made from a document (`python-docs`); longer ones are cut at a sentence."""


class TokenizerTrainConfig(Frozen):
    """Train a tokenizer that can spell every text."""

    stage: Literal["tokenizer"] = "tokenizer"
    """Which stage this file is for."""
    run: RunConfig
    documents: list[str] = Field(min_length=1)
    """Documents to learn from: files, folders, patterns (`prepare/documents/train-*.parquet`)."""
    kind: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    """`bpe`, `unigram`: sentencepiece with byte fallback. `byte_bpe`: byte-level BPE as GPT-2 has it, with Hugging Face's library. A model with a
    `unigram` vocabulary cannot be exported to Hugging Face: its library cuts some words otherwise."""
    vocab_size: int = Field(gt=300)
    """Number of ids, special and byte tokens included."""
    sample_characters: int = Field(20_000_000, gt=0)
    """Text to learn from (and to measure in the report) at most, in characters."""
    sampling: Literal["spread", "first"] = "spread"
    """`spread`: pieces from all documents of all files, chosen by a hash of the document's id. `first`: the documents that come first; reads no further."""
    source_weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """How much likelier a piece of this source is to be chosen than one of a source of weight 1, the default; 0 leaves the source out (`spread`)."""


class MixtureConfig(Frozen):
    """What each source gives to a training run; by `weights` or by `epochs`."""

    input: str = "train"
    """Which of `inputs` is mixed; `valid`, where there is one, is blended in the same proportions."""
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    """Share of each source; only ratios count. Every source needs one, 0 leaves it out."""
    epochs: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    """How often the run goes through each source (0.5: half of it, 0: nothing of it); once where it is not named."""
    tokens: int | None = Field(None, gt=0)
    """Length of the run for `weights`, in tokens; default: as many as their sources have. With `epochs` it follows from them."""


class TokenizeConfig(Frozen):
    """Documents to Megatron `.bin/.idx` token files."""

    stage: Literal["tokenize"] = "tokenize"
    """Which stage this file is for."""
    run: RunConfig
    tokenizer: str = "tokenizer"
    """Tokenizer: a stage of the same run, a folder or a file."""
    inputs: dict[str, list[str]]
    """Name of each output (for example `train`, `valid`) and the documents that go into it: files, folders, patterns."""
    by_source: bool = False
    """One pair for each source of the documents, `<name>/<source>`, instead of one for all."""
    mixture: MixtureConfig | None = None
    """Shares of the sources in a training run, written to `mixture.yaml` as the base file of a `pretrain` configuration."""
    document_weights: bool = True
    """Documents that have a `weight` are there so often on average: 0.25 in one case of four, 2.5 two or three times. Copies stand far apart."""
    workers: int = Field(1, gt=0)
    """Threads that encode; from nine on processes."""


# ---------------------------------------------------------------- stages


class ProfileConfig(Frozen):
    """A torch profiler trace of chosen steps, written to `<stage>/profile/` (open it in Perfetto or chrome://tracing)."""

    first_step: int = Field(0, ge=0)
    """First profiled step; 0: no profile."""
    num_steps: int = Field(3, gt=0)
    """Steps in the trace."""


class StageConfig(Frozen):
    run: RunConfig
    parallel: ParallelConfig = ParallelConfig()
    precision: PrecisionConfig = PrecisionConfig()
    every: EveryConfig = EveryConfig()
    profile: ProfileConfig = ProfileConfig()
    """Off unless first_step is given."""
    kernels: Literal["auto", "fused", "reference", "apex"] = "auto"
    """The fastest that is installed for each operator (`auto`), the fused kernels of csrc/ and nothing else (`fused`), plain PyTorch
    (`reference`), or NVIDIA's apex for what it has (`apex`). What runs is printed at the start."""


class BlendSource(Frozen):
    path: str
    """Megatron indexed dataset, path without `.bin`/`.idx`."""
    weight: float = Field(gt=0, allow_inf_nan=False)
    """Rows taken from this source, in proportion to the weights of the others."""


def _as_blend(value: Any) -> Any:
    if value == []:
        raise ValueError("a blend needs at least one source")
    return [{"path": value, "weight": 1.0}] if isinstance(value, str) else value


class TokenFilesConfig(Frozen):
    train: Annotated[list[BlendSource], BeforeValidator(_as_blend)]
    """Token files to train on: the path of one, or a blend of several."""
    valid: Annotated[list[BlendSource] | None, BeforeValidator(_as_blend)] = None
    """Held-out token files, written as `train`; or give `split`."""
    split: tuple[float, float, float] | None = None
    """Parts of every training file's documents, in order, for training, validation and test, such as [0.98, 0.01, 0.01]; only ratios count."""
    reset_at_documents: bool = False
    """Attention and positions start anew at every document of a row; else a document sees those before it in the row."""


class AnomalyConfig(Frozen):
    """What a run does about a step that went wrong."""

    spike_factor: float = Field(0.0, ge=0)
    """A loss above this multiple of the running median sends the run back to its last checkpoint and past the batch; 0: never."""
    window: int = Field(50, gt=0)
    """Steps in the running median."""
    max_skipped: int = Field(10, gt=0)
    """Steps in a row without a finite loss and gradient after which the run stops; each of them is skipped."""
    max_rollbacks: int = Field(3, ge=0)
    """Returns to a checkpoint after which the run stops."""


class PretrainGates(Frozen):
    """Checks at the end of pre-training; a value that is not given is not checked."""

    max_loss_over_unigram: float | None = Field(None, gt=0)
    """Validation loss at most this fraction of the cross-entropy of token frequencies alone."""


class PretrainConfig(StageConfig):
    """Pre-training: next-token prediction over packed sequences."""

    stage: Literal["pretrain"] = "pretrain"
    """Which stage this file is for."""
    model: ModelConfig
    optimizer: OptimizerConfig
    batch: PretrainBatchConfig
    tokenizer: str = "tokenizer"
    """Tokenizer: a stage of the same run, a folder or a file."""
    data: TokenFilesConfig
    sequence_length: int = Field(gt=0)
    """Tokens in one packed row."""
    train_tokens: int = Field(gt=0)
    """Length of the run in tokens; rounded down to whole steps."""
    eval_rows: int = Field(64, ge=0)
    """Rows of held-out text in one evaluation, evenly spread; 0: all of it."""
    anomaly: AnomalyConfig = AnomalyConfig()
    """Losses that are not finite, and spikes."""
    gates: PretrainGates = PretrainGates()
    """Checks at the end."""


class RecordSource(Frozen):
    path: str
    """Record file (JSONL, JSONL.gz or parquet); public formats are recognised by their rows."""
    slice: str | None = Field(None, min_length=1)
    """Rankings only: the part of the data that they are reported as; default: what each record says, else the file's name."""
    hold_out: bool = True
    """Where `valid` is not given: take held-out records from this source too; false trains on all of it but what opens with a held-out prompt."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Rankings only: factor of each of them in the loss, on top of (multiplied by) the weight that the record itself names."""


def _as_sources(value: Any) -> Any:
    return [{"path": source} if isinstance(source, str) else source for source in value] if isinstance(value, list) else value


class RecordsConfig(Frozen):
    train: Annotated[list[RecordSource], BeforeValidator(_as_sources)] = Field(min_length=1)
    """Record files: the path of each, or {path, slice, weight}."""
    valid: Annotated[list[RecordSource] | None, BeforeValidator(_as_sources)] = Field(None, min_length=1)
    """Held-out record files, written as `train`; default: `valid_fraction` of the training records, split by prompt."""
    valid_fraction: float = Field(0.05, gt=0, lt=1)
    """Held-out share where `valid` is not given."""
    max_length: int = Field(gt=0)
    """Longest conversation in tokens; with longer ones is done what `overlong` says."""
    overlong: Literal["refuse", "drop", "truncate"] = "refuse"
    """A record longer than max_length stops the run with its file and line (`refuse`), is left out and counted (`drop`) or, demonstrations only, keeps
    its first max_length tokens (`truncate`), and is left out where no token of an answer is among them."""


class SftGates(Frozen):
    """Checks at the end of SFT."""

    max_loss_over_start: float | None = Field(None, gt=0)
    """Held-out response loss at most this fraction of what it was before the first step."""


class SftOptimizerConfig(OptimizerConfig):
    """The schedule of Ouyang et al. 2022, appendix C.1 (a cosine down to a tenth; Adam with 0.9 and 0.95), but for the warm-up."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate; Ouyang et al. 2022, appendix C.1: 9.65e-6 at batches of 32 conversations (175B: 5.03e-6 and 8)."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Fraction of the run over which the learning rate rises linearly from zero; the paper has none."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of the weight matrices, in units of the learning rate."""


class SftConfig(StageConfig):
    """Supervised fine-tuning on demonstrations: the same objective, on the assistant's tokens."""

    stage: Literal["sft"] = "sft"
    """Which stage this file is for."""
    parent: str = "pretrain"
    """Checkpoint to start from: a stage of the same run, a stage folder, or a checkpoint folder."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Overrides the parent model's dropout; Ouyang et al. 2022, appendix C.1, have 0.2 on the residual stream."""
    lora: LoraConfig | None = None
    """Train adapters of low rank instead of the model; default: the whole model. Adapters want a higher rate than whole models, such as 2e-4."""
    optimizer: SftOptimizerConfig = SftOptimizerConfig()
    batch: BatchConfig
    """In rows: conversations, or packed rows of several."""
    data: RecordsConfig
    packing: bool = False
    """Fill rows of max_length tokens with several conversations that do not see each other: less padding, and the same loss. A step then
    reads more conversations, so divide global_batch_size by the number in a row, which is printed at the start."""
    epochs: int = Field(2, gt=0)
    """Passes over the demonstrations. After each one a checkpoint is measured on held-out data; the best is the stage's result. Ouyang et al.
    2022 make 16 and choose by reward-model score; held-out loss, which chooses here, is lowest after the first of them (section 3.5)."""
    gates: SftGates = SftGates()
    """Checks at the end."""


class RewardGates(Frozen):
    """Checks at the end of reward training."""

    min_pair_accuracy: float | None = Field(None, ge=0, le=1)
    """Share of held-out pairs in the right order at least this, and above both floors (longer answer, overlap of words with the prompt)."""


class RankingLossConfig(Frozen):
    """Terms beside the log-likelihood of the ranking (formula: `reward/loss.py`)."""

    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Lead that a better answer's score should have for every rank between the two, in units of the score (Touvron et al. 2023, eq. 2)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that annotators are thought to have swapped."""
    centring: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Penalty on the squared sum of a pair's scores, which keeps scores around 0; 0.01 is usual (Eisenstein et al. 2023, eq. 2)."""


class RewardOptimizerConfig(OptimizerConfig):
    """As in SFT: one pass over the rankings overfits soon, so the rate is low and there is no decay."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate; Ouyang et al. 2022, appendix C.2: 9e-6 at 64 prompts a step."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Fraction of the run over which the learning rate rises linearly from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of the weight matrices, in units of the learning rate."""


class RewardConfig(StageConfig):
    """Reward model from K-way human rankings (Bradley-Terry on all pairs of a prompt)."""

    stage: Literal["reward"] = "reward"
    """Which stage this file is for."""
    parent: str = "sft"
    """Checkpoint to start from; its language-model head is replaced by a scalar head."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Overrides the parent model's dropout."""
    lora: LoraConfig | None = None
    """Train adapters of low rank and the scalar head instead of the whole model; default: the whole model."""
    optimizer: RewardOptimizerConfig = RewardOptimizerConfig()
    batch: BatchConfig
    """In groups: a micro-batch of one group has as many rows as groups have answers on average, and room for the largest in any case."""
    data: RecordsConfig
    loss: RankingLossConfig = RankingLossConfig()
    """Plain Bradley-Terry unless a term is given."""
    epochs: int = Field(1, gt=0)
    """Passes over the rankings."""
    pooling: Literal["last", "mean"] = "last"
    """Where a score is read: at an answer's last token, or as the mean over its tokens, which sees more of it where the head is most of what is trained.
    Kept with the model, and PPO reads it so."""
    keep_layers: int | None = Field(None, gt=0)
    """Keep only so many of the parent's layers, from the bottom: the last ones choose the next token, which a score does not need; default: all."""
    trainable_layers: int | None = Field(None, ge=0)
    """Train only so many of the layers from the top, with the last norm and the head (0: these alone); default: everything. What the layers below
    make of the rankings is computed once, with the prompt shared by its answers, and kept on disk for all epochs, evaluations and resumes."""
    activations: str | None = None
    """Folder for that (hidden size x bytes of a number for each token), which runs of the same parent can share; default: `activations` in the stage's folder."""
    normalise_on: list[str] | None = Field(None, min_length=1)
    """Demonstration files whose answers are to score mean 0, standard deviation 1: all of them are scored at each save, the statistics are
    kept with the model, and PPO normalises by them; default: the best held-out answers."""
    gates: RewardGates = RewardGates()
    """Checks at the end."""


class DpoGates(Frozen):
    """Checks at the end of DPO."""

    min_implicit_pair_accuracy: float | None = Field(None, ge=0, le=1)
    """Share of held-out pairs that the policy's implicit reward puts in the right order at least this, in the best checkpoint."""


class DpoLossConfig(Frozen):
    """What a pair costs (formulas: `dpo/loss.py`)."""

    kind: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: Rafailov et al. 2023, eq. 7. `ipo`: Azar et al. 2024, eq. 17, a squared distance from a finite lead."""
    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    """Strength of the pull to the reference, as the coefficient of the KL in PPO; Rafailov et al. 2023, appendix B: 0.1 (0.5 for summaries)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """`sigmoid` only: share of pairs that annotators are thought to have swapped (conservative DPO)."""


class DpoOptimizerConfig(OptimizerConfig):
    """As in reward training, at a rate for a policy that must not go far."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate; Rafailov et al. 2023, appendix B: 1e-6 at 64 pairs a step."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Fraction of the run over which the learning rate rises linearly from zero; the paper warms up for 150 steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of the weight matrices, in units of the learning rate."""


class DpoConfig(StageConfig):
    """Direct preference optimization: a policy from the reward stage's rankings, without reward model and without sampling."""

    stage: Literal["dpo"] = "dpo"
    """Which stage this file is for."""
    parent: str = "sft"
    """Checkpoint that the policy starts from, and that the frozen reference is; a language model. Its log-probabilities of all answers are computed
    before the first step, and again at a resume, so that no second model is in memory."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """During training. None unless given, whatever the parent model had: the reference has none either."""
    lora: LoraConfig | None = None
    """Train adapters of low rank instead of the whole model; default: the whole model."""
    optimizer: DpoOptimizerConfig = DpoOptimizerConfig()
    batch: BatchConfig
    """In groups: a micro-batch of one group has as many rows as groups have answers on average, and room for the largest in any case."""
    data: RecordsConfig
    loss: DpoLossConfig = DpoLossConfig()
    """DPO with beta 0.1 unless something else is given."""
    epochs: int = Field(1, gt=0)
    """Passes over the rankings. Every checkpoint is measured on held-out rankings, after each pass too; the one of the lowest loss is the stage's result."""
    gates: DpoGates = DpoGates()
    """Checks at the end."""


class RoleConfig(Frozen):
    """Where one of the four models lives."""

    ranks: list[int] | None = Field(None, min_length=1)
    """Ranks of the job that hold this model; consecutive. Left out for all models: the planner chooses ranks, tp, pp, zero and offload, the fastest
    that fits into the devices' memory; `placement: auto` says so for every model in fp32."""
    tp: int = Field(1, gt=0)
    """Tensor-parallel size."""
    pp: int = Field(1, gt=0)
    """Pipeline-parallel size."""
    zero: Literal[0, 1, 2, 3] = 1
    """ZeRO stage (policy and value; frozen models keep no optimizer)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Type of weights and activations; with bf16 and fp16 the optimizer of policy and value keeps float32 masters."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    """FP16 of policy and value only."""
    offload: Literal["none", "cpu"] = "none"
    """`cpu`: the optimizer of policy or value works in host memory (needs zero 1 to 3); the weights of reference and reward wait there and come
    to the device for each scoring."""


class RolloutLayout(Frozen):
    """Where responses are written."""

    ranks: list[int] = Field(min_length=1)
    """Ranks of the job that write; consecutive. Those of the policy, or others."""
    tp: int = Field(1, gt=0)
    """Tensor-parallel size."""
    pp: int = Field(1, gt=0)
    """Pipeline-parallel size."""


class PlacementConfig(Frozen):
    """Grids of the four models; two grids are the same ranks or have none in common."""

    policy: RoleConfig
    rollout: RolloutLayout | None = None
    """A view of the policy's weights in a layout of its own, refreshed after every round, that writes the responses: training wants memory shared
    out, writing wants few messages a token. It costs the weights once more. Default: the policy's own model and layout."""
    reference: RoleConfig
    reward: RoleConfig | None = None
    """Left out where a reward function stands in for the reward model (`reward: null`)."""
    value: RoleConfig | None = None
    """Left out with a critic-free advantage (`ppo.advantage: grpo` or `rloo`)."""

    @property
    def is_auto(self) -> bool:
        """Nothing has ranks: the planner chooses."""
        return all(role.ranks is None for _, role in self if isinstance(role, RoleConfig))


class KlConfig(Frozen):
    coefficient: float = Field(0.02, ge=0, allow_inf_nan=False)
    """beta in reward - beta * KL (initial value where a target is given); 0.02 as in Ouyang et al. 2022, appendix C.4."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Of the KL of one token, with d = log pi - log pi_ref: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (Schulman, Approximating KL
    Divergence, 2020). k1 and k3 are unbiased; k2 and k3 are never negative."""
    where: Literal["reward", "loss"] = "reward"
    """Taken off each token's reward (Ouyang et al. 2022, eq. 2), or added to the policy's loss (Shao et al. 2024, eq. 3): there
    without a gradient for what a token does to the KL of those after it."""
    target: float | None = Field(None, gt=0)
    """Adaptive controller (Ziegler et al. 2019, section 2.2): KL aimed at, nats a response; default: fixed coefficient."""
    horizon: int = Field(10000, gt=0)
    """Responses over which the adaptive controller corrects its error."""


class PromptsConfig(Frozen):
    files: list[str] = Field(min_length=1)
    """Prompt files (JSONL, JSONL.gz or parquet)."""
    max_prompt_length: int = Field(gt=0)
    """Longest prompt in tokens; longer ones are left out and counted."""
    max_response_length: int = Field(gt=0)
    """Tokens sampled at most for each response."""
    eval_prompts: int = Field(64, gt=0)
    """Prompts kept apart for the evaluation before and after."""


class PpoConfig(Frozen):
    steps: int = Field(gt=0)
    """Rollout-and-update rounds."""
    rollout_batch_size: int = Field(512, gt=0)
    """Responses in one rollout (512: Ouyang et al. 2022, appendix C.4)."""
    samples_per_prompt: int = Field(1, gt=0)
    """Responses to each prompt of a rollout; divides rollout_batch_size. grpo and rloo compare them with each other."""
    minibatch_size: int = Field(64, gt=0)
    """Responses in one optimizer step; divides rollout_batch_size (64: Ouyang et al. 2022, appendix C.4)."""
    micro_batch_size: int = Field(gt=0)
    """Responses in one forward pass of one replica."""
    generation_batch_size: int | None = Field(None, gt=0)
    """Responses that a replica of the policy samples at the same time; one that ends makes room for the next. Default: all of its rows. No response
    depends on it; it bounds the memory for keys and values."""
    rollout_parts: int | None = Field(None, gt=0)
    """A rollout is written in so many equal parts, each of whole microbatches for every model; models on other ranks than the policy's score one part
    while it writes the next. No response depends on it. Default: 1 where all models share their ranks, else 4 or the nearest below that fits."""
    logprobs: Literal["sampler", "trainer"] = "sampler"
    """Whose log-probabilities count as those of the policy before the update. sampler: kept from sampling, so that the policy is not run again
    over what it wrote; the metric sampler_gap then looks at the update's first minibatch. trainer: the policy scores the whole rollout in a
    forward pass like those of the update. In float32 both agree to rounding; where sampler_gap grows, take trainer."""
    epochs: int = Field(1, gt=0)
    """Passes over each rollout (one inner epoch: Ouyang et al. 2022, appendix C.4)."""
    target_kl: float | None = Field(None, gt=0)
    """The policy's remaining minibatches of a round are left out after one whose mean KL(old || new) is above this, nats a token."""
    value_warmup_steps: int = Field(0, ge=0)
    """First rounds in which only the value model learns."""
    ema_decay: float | None = Field(0.992, ge=0, lt=1)
    """Moving average of the policy's weights, decayed by this at every optimizer step and saved in `ema/` beside the policy (0.992: Ouyang et
    al. 2022, appendix C.4); null: none."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Sampling temperature; old, new and reference log-probabilities are all of logits / temperature."""
    top_k: None = None
    """Refused here: a truncated sampler draws from another distribution than the one that is trained."""
    top_p: None = None
    """Refused here, for the same reason."""
    clip_ratio: float = Field(0.2, gt=0)
    """epsilon of the clipped surrogate (0.2: Ouyang et al. 2022, appendix C.4)."""
    clip_ratio_high: float | None = Field(None, gt=0)
    """Another epsilon for ratios above 1 (Yu et al. 2025, section 3.1); default: clip_ratio."""
    dual_clip: float | None = Field(None, gt=1)
    """Where the advantage is negative, the surrogate is never below this multiple of it (c of Ye et al. 2020, dual-clip PPO); default: unbounded."""
    clamp_log_ratio: float | None = Field(None, gt=0)
    """Largest magnitude of log pi - log pi_old before it is exponentiated; default: unbounded."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Factor of the mean entropy of the policy's next-token distribution, in nats, that is added to the objective (Schulman et al. 2017, eq. 9)."""
    clip_value: float = Field(0.2, gt=0)
    """Largest move of the value prediction that lowers its loss."""
    advantage: Literal["gae", "grpo", "rloo"] = "gae"
    """`gae`: from a value model. Without one, a response's return less the mean of its prompt's responses (`grpo`, Shao et al. 2024, section
    4.1.2) or of the others of them (`rloo`, leave one out, Ahmadian et al. 2024). Every token of a minibatch weighs the same under all three, where Shao
    et al. give every response the same weight."""
    grpo_divide_by_std: bool = True
    """grpo: in units of the standard deviation of its prompt's responses; false as in Liu et al. 2025."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount (none: Ouyang et al. 2022, appendix C.4)."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """lambda of generalised advantage estimation (0.95: Stiennon et al. 2020, appendix B.1; Ouyang et al. name none)."""
    whiten_advantages: bool = True
    """gae: advantages of a rollout get mean 0 and variance 1 over all its response tokens, on whatever ranks."""
    normalise_reward: Literal["model", "running", "none"] = "model"
    """Scores are shifted and scaled by the statistics stored with the reward model (`model`), on top of this by the mean and standard deviation
    of all training scores so far (`running`), or neither (`none`)."""
    clip_reward: float = Field(10.0, gt=0)
    """Largest magnitude of the (normalised) score."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken off the score of a response that was cut at max_response_length."""
    length_penalty: float = Field(0.0, ge=0)
    """Taken off the score for every token of the response."""


Remedy = Literal["off", "warn", "pause", "rollback"]


class DoctorConfig(Frozen):
    """What PPO's doctor does about each sign of illness: `warn` says so, `pause` also saves and ends the run, `rollback` goes back to the last
    checkpoint and on with other prompts (and pauses where there is none)."""

    finite: Remedy = "pause"
    """A metric that is not finite."""
    ratio: Remedy = "warn"
    """The ratio of new to old policy differs from 1 before the first update."""
    max_ratio_error: float = Field(1e-3, gt=0)
    """Largest mean difference of that ratio from 1 (16-bit weights need about 0.05)."""
    sampler_gap: Remedy = "warn"
    """Sampler and trainer give a token different log-probabilities."""
    max_sampler_gap: float = Field(0.05, gt=0)
    """Largest difference in nats (16-bit weights need about 0.5)."""
    negative_kl: Remedy = "warn"
    """The estimate of the KL to the reference stays negative."""
    min_negative_kl: float = Field(0.1, ge=0)
    """Nats a response below 0 that count as negative."""
    padding: Remedy = "pause"
    """A reward outside of a response."""
    endless: Remedy = "warn"
    """Answers that do not end."""
    max_endless: float = Field(0.5, gt=0, le=1)
    """Largest share of them."""
    length: Remedy = "warn"
    """Reward and length go together."""
    max_length_correlation: float = Field(0.7, gt=0, le=1)
    """Largest magnitude of Pearson's correlation within a rollout."""
    value: Remedy = "warn"
    """The value model explains nothing."""
    min_explained_variance: float = 0.0
    """Share of the returns' variance that it should explain."""
    clip: Remedy = "warn"
    """Too many tokens are clipped."""
    max_clip_fraction: float = Field(0.3, gt=0, le=1)
    """Largest share of them."""
    entropy: Remedy = "warn"
    """The policy's entropy collapses."""
    min_entropy_share: float = Field(0.3, gt=0, lt=1)
    """Smallest part of the entropy of the first `patience` steps."""
    hacking: Remedy = "warn"
    """The reward rises while that of a held-out reward model falls."""
    min_held_out_drop: float = Field(0.0, ge=0)
    """Standard deviations of the held-out score that count as a fall."""
    patience: int = Field(5, gt=0)
    """Steps for which a sign must last, where one step says little (KL, value, entropy)."""
    repeat: int = Field(10, gt=0)
    """A warning is said again at every so many findings."""
    max_rollbacks: int = Field(3, ge=0)
    """Returns to a checkpoint; after these `rollback` pauses."""


class PretrainMixConfig(Frozen):
    """PPO-ptx: the policy learns pre-training text in the same optimizer steps (Ouyang et al. 2022, eq. 2 and appendix C.4)."""

    data: Annotated[list[BlendSource], BeforeValidator(_as_blend)]
    """Token files, as `data.train` of pre-training."""
    coefficient: float = Field(27.8, gt=0, allow_inf_nan=False)
    """Factor of the text's loss, a mean over tokens as PPO's is."""
    rows_per_response: int = Field(8, gt=0)
    """Rows of text, each as long as prompt and response together, for every response of a minibatch."""


class JudgeConfig(Frozen):
    """A language model that compares the answers after training with those of the start, on the prompts kept apart."""

    url: str = Field(pattern=r"^https?://[^\s/]+\S*$")
    """Base address of a chat-completions server, such as http://127.0.0.1:8000/v1; prompts and answers are sent there."""
    model: str = Field(min_length=1)
    """Name that the server knows it by."""
    key_variable: str | None = Field(None, pattern=r"^[A-Za-z_]\w*$")
    """Environment variable that holds the server's key, on rank 0; default: none is sent."""
    timeout_seconds: float = Field(60.0, gt=0)
    """For one verdict; seconds."""


class RlhfGates(Frozen):
    """Checks at the end of PPO, on prompts kept apart."""

    min_reward_gain_std: float | None = Field(None, gt=0)
    """Mean score up by at least this many standard deviations of the start model's scores (units of the score where those are all equal) …"""
    max_kl: float | None = Field(None, gt=0)
    """… at a mean KL to the reference of at most this, nats a response."""


class PolicyOptimizerConfig(OptimizerConfig):
    """A constant rate, as in Ouyang et al. 2022, appendix C.4 (there after ten rounds of warm-up), and no decay."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    min_lr_ratio: float = Field(1.0, ge=0, le=1)
    """The schedule ends at this fraction of lr; 1: the rate stays."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay of the weight matrices, in units of the learning rate."""


class ValueOptimizerConfig(PolicyOptimizerConfig):
    """As for the policy, at a higher rate."""

    lr: float = Field(5e-6, gt=0)
    """Peak learning rate; Ouyang et al. 2022, appendix C.4: 9e-6 (beside the policy of 175B: 5e-6)."""


def _as_placement(value: Any, config: ValidationInfo) -> Any:
    """`auto` is every model that the job has, without ranks."""
    if value != "auto":
        return value
    ppo = config.data.get("ppo")
    roles = {"reward": config.data.get("reward") is not None, "value": ppo is None or ppo.advantage == "gae"}
    return {role: {} for role in ("policy", "reference", *(role for role, is_there in roles.items() if is_there))}


class RlhfConfig(Frozen):
    """PPO with four models: policy, reference, reward, value."""

    stage: Literal["rlhf"] = "rlhf"
    """Which stage this file is for."""
    run: RunConfig
    every: EveryConfig = EveryConfig()
    kernels: Literal["auto", "fused", "reference", "apex"] = "auto"
    """As in the other stages."""
    policy: str = "sft"
    """Checkpoint of the policy and of the frozen reference."""
    reward: str | None = "reward"
    """Checkpoint of the reward model and of the value model's start; null: reward_function alone, and a value model that starts from the policy."""
    reward_function: str | None = Field(None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`module:function` on Python's path, called with two lists of text, prompts (a blank line between two messages) and answers; the number that it
    returns for each is added to the (normalised) score."""
    lora: LoraConfig | None = None
    """Train adapters of low rank on the policy; default: all of it. A reference that is placed as the policy is (ranks, tp, pp, precision) then takes
    no memory: it is the policy with its adapters switched off."""
    value_lora: LoraConfig | None = None
    """The same for the value model, whose scalar head is trained too; default: all of it is trained."""
    policy_optimizer: PolicyOptimizerConfig = PolicyOptimizerConfig()
    value_optimizer: ValueOptimizerConfig = ValueOptimizerConfig()
    prompts: PromptsConfig
    ppo: PpoConfig
    placement: Annotated[PlacementConfig, BeforeValidator(_as_placement)]
    """Which ranks hold which model; `auto`: the planner chooses."""
    kl: KlConfig = KlConfig()
    pretrain_mix: PretrainMixConfig | None = None
    """Default: PPO alone."""
    held_out_reward: str | None = None
    """Checkpoint of another reward model, trained on other rankings: evaluations report what it says, and the doctor looks for a reward that rises
    while this one falls; the policy never trains on it."""
    judge: JudgeConfig | None = None
    """Default: win rates by the (held-out) reward model alone."""
    doctor: DoctorConfig = DoctorConfig()
    """What is watched at every step, and what is done about it."""
    gates: RlhfGates = RlhfGates()
    """Checks at the end."""
