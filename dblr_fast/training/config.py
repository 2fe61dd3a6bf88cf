"""What a training is made of: the dataclasses behind the YAML files, the command line and their help.

`optimiser.lr` is `--optimiser.lr` on the command line and `lr` under `optimiser` in a file. Defaults are the paper's
(Section IV-B) where it names a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from ..data.config import DataConfig
from ..errors import Refusal

WINDOWS = (3, 5, 7, 9, 11)


def _refuse_unless(holds: bool, name: str, wanted: str, given) -> None:
    if not holds:
        raise Refusal(f"{name} must be {wanted}; got {given!r}")


def _least(section, prefix: str, **least) -> None:
    """Refuses numbers of a section that are below their least value or not finite."""
    for name, low in least.items():
        value = getattr(section, name)
        _refuse_unless(math.isfinite(value) and value >= low, prefix + name, f"a number from {low:g} on", value)


@dataclass
class ModelConfig:
    """The network (Table I) and what it starts from."""

    variant: Literal["3d", "multi", "single"] = "3d"
    """3d is DBLRNet; multi has 2-D convolutions over frames stacked as channels, single over one frame."""
    frames: int = 5
    """Frames of a window: 3, 5, 7, 9 or 11 (variant single: 1)."""
    tail_skip: bool = True
    """L32 adds L30's and L2's outputs, as Table I lists them; off: L2's alone, as its caption can be read."""
    width: int = 64
    """Channels of the body."""
    blocks: int = 14
    """Residual blocks."""
    init: Literal["paper", "identity"] = "paper"
    """paper: Gaussian weights of standard deviation 0.01; identity: the network starts by returning the centre
    frame, and so trains sooner."""
    weights: str = ""
    """Weights to start from instead: a shipped model ("default" is one), a .safetensors file, or a run's folder."""

    def check(self) -> None:
        single = self.variant == "single"
        _refuse_unless(self.frames in ((1,) if single else WINDOWS), "model.frames",
                       "1 for variant single" if single else "one of 3, 5, 7, 9, 11", self.frames)
        _least(self, "model.", width=1, blocks=1)


@dataclass
class LossConfig:
    """Content loss (eq. 3) plus alpha times the adversarial loss (eq. 4), as eq. 5 adds them."""

    alpha: float = 0.0
    """Weight of the adversarial loss, 0 to 0.1: 0 trains DBLRNet and builds no discriminator, 0.0002 is the
    paper's for DBLRGAN."""
    generator: Literal["saturating", "non_saturating"] = "saturating"
    """log(1 - D(G(I))) as eq. 4 has it, or -log D(G(I)), whose gradient does not vanish where D is sure."""

    def check(self) -> None:
        _refuse_unless(0 <= self.alpha <= 0.1, "loss.alpha", "from 0 to 0.1 (Section III-C)", self.alpha)


@dataclass
class DiscriminatorConfig:
    """The discriminator (Table II) and how it learns; of no effect where loss.alpha is 0."""

    width: int = 64
    """Channels of its first group; the others have two, four and eight times as many."""
    hidden: int = 4096
    """Outputs of its first fully connected layer."""
    pool: int = 4
    """Side to which its last map is pooled before that layer."""
    lr: float = 0.0
    """Its learning rate; 0 takes optimiser.lr."""

    def check(self) -> None:
        _least(self, "discriminator.", width=1, hidden=1, pool=1, lr=0)


@dataclass
class OptimiserConfig:
    """What moves the weights. The paper names no optimiser; Adam is what its authors' field uses."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """adam, adamw (decay apart from the gradient), or sgd (momentum is the first of betas)."""
    lr: float = 1e-4
    """Learning rate at the start."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moving averages."""
    eps: float = 1e-8
    """What Adam adds to its denominator; a larger one keeps mere rounding from moving weights without a gradient."""
    weight_decay: float = 0.0
    """Decay of the weights."""
    clip: float = 0.0
    """Largest norm of the gradient, beyond which it is scaled down; 0 clips nothing."""

    def check(self) -> None:
        _refuse_unless(math.isfinite(self.lr) and self.lr > 0, "optimiser.lr", "a number above 0", self.lr)
        _least(self, "optimiser.", eps=0, weight_decay=0, clip=0)
        _refuse_unless(all(0 <= b < 1 for b in self.betas), "optimiser.betas", "from 0 to below 1", self.betas)


@dataclass
class ScheduleConfig:
    """How the learning rates fall: plateau as in the paper, to `least` when the loss stops falling."""

    kind: Literal["plateau", "cosine", "constant"] = "plateau"
    """plateau: times `factor` whenever the training loss stops falling; cosine: half a cosine down to `least`
    over all steps; constant."""
    factor: float = 0.1
    """What a plateau multiplies the learning rate by."""
    least: float = 1e-5
    """Lowest learning rate."""
    window: int = 1000
    """Steps over which the loss is averaged before it is compared."""
    patience: int = 10
    """Windows in a row that may bring no better average before the learning rate falls."""
    threshold: float = 1e-3
    """Share by which an average must be below the best so far to count as better."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0 at the start."""

    def check(self) -> None:
        _least(self, "schedule.", least=0, window=1, patience=0, threshold=0, warmup=0)
        _refuse_unless(0 < self.factor <= 1, "schedule.factor", "above 0 and at most 1", self.factor)


@dataclass
class PrecisionConfig:
    """Arithmetic of the training step; losses and batch statistics are float32 at least in any case."""

    autocast: Literal["off", "fp16", "bf16"] = "off"
    """16-bit arithmetic in the networks; fp16 (GPU only) with scaled gradients."""
    level: Literal["exact", "fast"] = "exact"
    """exact: float32; fast: TF32 on a GPU."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of weights and batches; float64 is for checking, and slow."""
    channels_last: bool = True
    """Weights in channels_last layout."""


@dataclass
class ValidationConfig:
    """Scores on windows that are not trained on."""

    every: int = 5000
    """Steps from one validation to the next; 0 validates never."""
    patience: int = 0
    """End after so many validations in a row without a better PSNR of Y; 0 never does."""
    pictures: int = 4
    """Windows shown before and after, in the run's folder and in TensorBoard."""

    def check(self) -> None:
        _least(self, "validation.", every=0, patience=0, pictures=0)
        _refuse_unless(not self.patience or self.every, "validation.every", "above 0 where validation.patience is",
                       self.every)


@dataclass
class LogConfig:
    """What is written while training."""

    every: int = 50
    """Steps from one line to the next, each with the means over the steps since the last."""
    tensorboard: bool = True
    """Also write curves and pictures for TensorBoard (in the extra `train`)."""

    def check(self) -> None:
        _least(self, "log.", every=1)


@dataclass
class CheckpointConfig:
    """The state of the run on disk, from which --resume goes on."""

    every: int = 1000
    """Steps from one checkpoint to the next: what a power cut loses at most."""

    def check(self) -> None:
        _least(self, "checkpoint.", every=1)


@dataclass
class DistributedConfig:
    """Several processes: started by torchrun or by SLURM's srun, one a GPU."""

    sync_bn: bool = False
    """Batch norm over the batches of all processes together."""
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """How they talk: auto is nccl on GPUs, gloo on CPUs."""
    timeout: float = 1800.0
    """Seconds after which a process that waits for another gives up."""

    def check(self) -> None:
        _least(self, "distributed.", timeout=1)


@dataclass
class TrainConfig:
    """Train DBLRNet, or DBLRGAN where loss.alpha is above 0."""

    folder: str = "runs/dblrnet"
    """The run's folder: configuration, versions, checkpoint, curves, pictures."""
    resume: bool = False
    """Go on from the checkpoint in that folder, if there is one."""
    steps: int = 200_000
    """Steps in all."""
    batch: int = 4
    """Windows a step and process."""
    seed: int = 0
    """Seed of the initial weights and of all samples."""
    device: str = "auto"
    """cpu, cuda or cuda:1; auto takes a GPU when there is one."""
    cuda_graphs: Literal["auto", "always", "never"] = "auto"
    """Replay forward and backward as CUDA graphs, which saves the time of their launches and holds their memory
    between steps; auto does so where it can, with one process on a GPU (4x128x128 four times as fast on an H200)."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated and exported; 0 averages nothing."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def check(self) -> None:
        """Raises Refusal, one sentence that names the setting, for the first value out of its range."""
        _refuse_unless(bool(self.folder.strip()), "folder", "the name of a folder", self.folder)
        _least(self, "", steps=1, batch=1, seed=0)
        _refuse_unless(0 <= self.ema < 1, "ema", "from 0 to below 1", self.ema)
        for part in (getattr(self, section.name) for section in fields(self)):
            if hasattr(part, "check"):
                part.check()
        least = 16 if self.loss.alpha else 1
        _refuse_unless(self.data.crop >= least, "data.crop", "at least 16 where loss.alpha is above 0, as the "
                       "discriminator halves it four times", self.data.crop)


# What may differ between a checkpoint and the configuration that resumes it: no step computes anything else for it.
# data.validation_paths is not among it: where it is empty, clips are held out of training.
MAY_CHANGE = frozenset((
    "folder", "resume", "steps", "device", "cuda_graphs", "log.every", "log.tensorboard", "checkpoint.every",
    "validation.every", "validation.patience", "validation.pictures", "data.validation_layouts",
    "data.validation_windows", "data.validation_size", "data.cache", "data.cache_limit", "data.workers",
    "data.prefetch", "distributed.backend", "distributed.timeout"))
