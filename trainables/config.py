"""The small typed configs that this package consumes. Frozen, validated, free of torch and Ray."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SerializeAsAny, field_validator, model_validator

from trainables.config_base import Config, Fraction, MethodConfig, searched
from trainables.loss_config import LossConfig
from trainables.registry import Registry

Triple = tuple[float, float, float]


class DataConfig(Config):
    """Data set, image size, splits, augmentation and storage.

    Example:
        config = DataConfig(name="digits", train_limit=200, val_fraction=0.2)
        print(len(load_data(config).train))
    """

    name: str = Field(
        default="digits",
        description="data set; `imagefolder` reads train/<class>/* and test/ (or val/) under `root`; or your "
        "own (docs/extending.md)",
        json_schema_extra={
            "form": "digits, cifar10, cifar100, svhn, fashion_mnist, mnist, imagefolder or your own"
        },
    )
    root: str | None = Field(default=None, description="folder that holds the data (not needed for digits)")
    size: PositiveInt | None = Field(
        default=None, description="side in pixels to resize images to; null: native"
    )
    train_limit: PositiveInt | None = Field(
        default=None, description="use only this many training images (a seeded, stratified sample)"
    )
    val_fraction: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="share of the training images held out"
    )
    split_seed: int = Field(default=0, ge=0, description="seed of the train/validation/test split")
    download: bool = Field(default=False, description="let torchvision download a missing data set")
    skip_unreadable: bool = Field(default=False, description="count and skip images that cannot be decoded")
    augment: Literal["auto", "none", "flip", "crop", "crop-flip"] = Field(
        default="auto", description="training augmentation; auto: the data set's default (none for digits)"
    )
    mean: Triple | None = Field(
        default=None, description="per-channel mean of inputs in 0..1; null: the data set's"
    )
    std: Triple | None = Field(
        default=None, description="per-channel standard deviation of inputs in 0..1; null: the data set's"
    )
    cache: str | None = Field(
        default=None, description="folder for decoded images; null: ~/.cache/ama-search"
    )
    storage: Literal["auto", "memory", "stream"] = Field(
        default="auto",
        description="memory: keep all images in memory, on the device of the trials; stream: read them from "
        "`data.cache` when needed; auto: stream if they exceed `data.memory_limit`",
    )
    memory_limit: PositiveFloat | None = Field(
        default=None,
        description="GiB of decoded images, or of a method's memory banks, that may stay in memory; null: "
        "half of this machine's memory, and a quarter of its GPU's",
    )
    workers: int = Field(
        default=2, ge=0, description="processes of a trial that prepare streamed images; 0: none"
    )


class TeacherConfig(Config):
    """The teacher's architecture, and its weights file or the recipe to train it.

    Example:
        trained = TeacherConfig(arch="cifar_resnet20", epochs=30, lr=0.1)
        given = TeacherConfig(arch="torchvision:resnet50", checkpoint="resnet50.safetensors")
        print(trained.digest(), given.content())
    """

    arch: str = Field(
        default="cifar_resnet20",
        description="cifar_resnet<8..110>, wrn<depth>_<k>, torchvision:<name> or import:<module>:<factory>",
    )
    checkpoint: str | None = Field(
        default=None, description="safetensors or state-dict file; null: train one"
    )
    small_stem: bool | None = Field(
        default=None,
        description="3x3 stride-1 stem without pooling for small images; null: for images up to 64 px",
    )
    epochs: PositiveInt = Field(default=30, description="epochs of teacher training")
    lr: PositiveFloat = Field(
        default=0.1, description="peak learning rate of teacher training (SGD, Nesterov)"
    )
    momentum: Fraction = Field(default=0.9, description="momentum of teacher training")
    weight_decay: float = Field(default=5e-4, ge=0.0, description="weight decay of teacher training")
    batch_size: PositiveInt = Field(default=128, description="images a step of teacher training")
    warmup_epochs: float = Field(
        default=1.0, ge=0.0, description="epochs of linear warm-up before the cosine"
    )


REPLACED = "teacher"  # in `space.student`: the teacher with replaced blocks


class StudentSpec(Config):
    """The student's architecture: the teacher with replaced blocks, or a separate network.

    Example:
        narrow = StudentSpec(widths={block.name: 0.25 for block in blocks}, fuse=False)
        print(costs.price(narrow).flops < costs.teacher.flops)
        other = StudentSpec(arch="wrn10_1")
        print(build_student(teacher.model, blocks, other, image_shape=data.image_shape))
    """

    arch: str | None = Field(
        default=None,
        description="a separate student: any architecture of `teacher.arch`, with random weights; null: the "
        "teacher with replaced blocks. With the method `separate`, `widths` are then those of the modules "
        "that it puts into the teacher",
    )
    widths: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="block name to AMA module width; a block not named is kept"
    )
    fuse: bool = Field(
        default=True, description="replace adjacent blocks of equal width by one module (a span)"
    )

    @property
    def name(self) -> str:
        """The student as in `space.student`: its architecture, or `teacher`."""
        return self.arch or REPLACED

    @property
    def kind(self) -> str:
        """`replaced` for the teacher with replaced blocks, `separate` for another architecture."""
        return "replaced" if self.arch is None else "separate"


DEFAULT_METHOD = "ama"
METHODS: Registry[Any] = Registry(
    "method",
    "ama_search.method",
    {
        DEFAULT_METHOD: "trainables.methods.ama:Ama",
        "adain": "trainables.methods.adain:Adain",
        "crd": "trainables.methods.crd:Crd",
        "fitnet": "trainables.methods.fitnet:Fitnet",
        "lwkd": "trainables.methods.lwkd:Lwkd",
        "mcl": "trainables.methods.mcl:Mcl",
        "separate": "trainables.methods.separate:Separate",
    },
)


def method_config(name: str) -> type[MethodConfig]:
    """Return the config class of a distillation method. A method other than the default imports torch.

    Raises:
        InputError: no such method.
    """
    found: type[MethodConfig] = LossConfig if name == DEFAULT_METHOD else METHODS.get(name).Config
    return found


class OptimConfig(Config):
    """Optimiser of one distillation: SGD with Nesterov momentum, warm-up and cosine decay to zero.

    Example:
        optim = OptimConfig(lr=0.02, batch_size=64, label_smoothing=0.1)
        print(DistillConfig(optim=optim).content())
    """

    lr: PositiveFloat = searched(0.05, 0.01, 0.2, log=True, description="peak learning rate")
    momentum: Fraction = Field(default=0.9, description="momentum")
    weight_decay: float = searched(
        5e-4, log=True, ge=0.0, description="weight decay (not on norms and biases)"
    )
    batch_size: PositiveInt = Field(default=128, description="images a step")
    warmup_epochs: float = Field(default=0.5, ge=0.0, description="epochs of linear warm-up")
    label_smoothing: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="label smoothing of cross-entropy"
    )


class DistillConfig(Config):
    """One trial: student, distillation method and its settings, optimiser settings, epochs, seed.

    Example:
        spec = StudentSpec(widths={"layer1.0": 0.25, "layer3.0": 0.5})
        config = DistillConfig(student=spec, loss=LossConfig(alpha=0.3), epochs=2, seed=1)
        print(config.digest(), DistillConfig.model_validate(config.content()) == config)
    """

    student: StudentSpec = StudentSpec()
    method: str = DEFAULT_METHOD
    loss: SerializeAsAny[MethodConfig] = LossConfig()  # the settings of `method`
    optim: OptimConfig = OptimConfig()
    epochs: PositiveInt = 10
    seed: int = Field(default=0, ge=0)
    train: Literal["all", "modules"] = "all"
    warm_start: Literal["library", "teacher", "none"] = "teacher"
    scores: tuple[str, ...] = Field(
        default=(), description="users' own metrics: entry points or `import:` texts"
    )

    @model_validator(mode="before")
    @classmethod
    def _settings_of_the_method(cls, value: Any) -> Any:
        """Use the method's default settings if none are given."""
        return {"loss": {}, **value} if isinstance(value, dict) and "method" in value else value

    @field_validator("loss", mode="before")
    @classmethod
    def _of_the_method(cls, value: Any, info: Any) -> Any:
        kind = method_config(info.data.get("method", DEFAULT_METHOD))
        return value if isinstance(value, kind) else kind.model_validate(value)


class LibraryConfig(Config):
    """How to distil the module library.

    Example:
        config = LibraryConfig(epochs=0.1, student_epochs=0)
        print(build_library(setup, [0.25], config=config).seconds)
    """

    epochs: PositiveFloat = Field(
        default=0.5, description="epochs in which each module learns its block alone"
    )
    student_epochs: float = Field(
        default=4.0,
        ge=0.0,
        description="epochs in which modules are trained further in randomly sampled students",
    )
    lr: PositiveFloat = Field(default=5e-3, description="peak learning rate (Adam)")
    batch_size: PositiveInt = Field(default=64, description="images a step")
    dir: str | None = Field(
        default=None, description="folder for libraries; null: ~/.cache/ama-search/library"
    )


class RuntimeConfig(Config):
    """Device, precision and speed settings. They change results by rounding alone.

    Example:
        print(resolve(RuntimeConfig(device="cpu", precision="fp32", threads=1)))
    """

    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:<n>")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="autocast type of training; auto: bf16 if it is fast on the device, else fp32",
    )
    layout: Literal["auto", "contiguous", "channels_last"] = Field(
        default="auto", description="memory layout of activation maps"
    )
    threads: PositiveInt | None = Field(default=None, description="CPU threads; null: the trial's CPU cores")
    optimizer: Literal["auto", "single", "foreach", "fused"] = Field(
        default="auto",
        description="the optimiser's update: one parameter at a time, all at once, or in one kernel",
    )
    compile: Literal["auto", "off", "on"] = Field(
        default="auto",
        description="torch.compile of a trial's student; auto: if a trial is long enough to make up for the "
        "measured start-up",
    )
    eval_batch: PositiveInt | None = Field(
        default=None, description="images a batch in evaluation; null: measured (512 until then)"
    )
