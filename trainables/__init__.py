"""Everything one trial needs: data, teachers, blocks, AMA modules, students, costs, the distillation loop.

    from trainables import StudentSpec, distill, find_blocks, load_data, load_teacher

docs/python.md shows these names by job. A name is imported when it is first used: importing the package
loads neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainables.blocks.blocks import Block as Block
    from trainables.blocks.blocks import find_blocks as find_blocks
    from trainables.config import METHODS as METHODS
    from trainables.config import DataConfig as DataConfig
    from trainables.config import DistillConfig as DistillConfig
    from trainables.config import LibraryConfig as LibraryConfig
    from trainables.config import OptimConfig as OptimConfig
    from trainables.config import RuntimeConfig as RuntimeConfig
    from trainables.config import StudentSpec as StudentSpec
    from trainables.config import TeacherConfig as TeacherConfig
    from trainables.config_base import MethodConfig as MethodConfig
    from trainables.config_base import searched as searched
    from trainables.costs.measure import measure_costs as measure_costs
    from trainables.costs.table import Costs as Costs
    from trainables.costs.table import CostTable as CostTable
    from trainables.data.dataset import ImageData as ImageData
    from trainables.data.load import load_data as load_data
    from trainables.data.sets.data_set import DATA_SETS as DATA_SETS
    from trainables.data.sets.data_set import DataSet as DataSet
    from trainables.data.sources import Source as Source
    from trainables.errors import InputError as InputError
    from trainables.finished.export import ExportResult as ExportResult
    from trainables.finished.export import export_model as export_model
    from trainables.finished.model_files import load_model as load_model
    from trainables.finished.retrain import RetrainResult as RetrainResult
    from trainables.finished.retrain import baselines as baselines
    from trainables.finished.retrain import retrain_one as retrain_one
    from trainables.library.build import build_library as build_library
    from trainables.library.library import Library as Library
    from trainables.loss_config import LossConfig as LossConfig
    from trainables.methods.base import Batch as Batch
    from trainables.methods.base import Group as Group
    from trainables.methods.base import Method as Method
    from trainables.methods.base import Phase as Phase
    from trainables.methods.base import Progress as Progress
    from trainables.methods.base import Setup as Setup
    from trainables.network.evaluate import Evaluation as Evaluation
    from trainables.network.evaluate import evaluate as evaluate
    from trainables.registry import Registry as Registry
    from trainables.runtime.runtime import Runtime as Runtime
    from trainables.runtime.runtime import resolve as resolve
    from trainables.student.build import build_student as build_student
    from trainables.teacher.teacher import Teacher as Teacher
    from trainables.teacher.teacher import load_teacher as load_teacher
    from trainables.teacher.training import train_teacher as train_teacher
    from trainables.training.loop import DistillResult as DistillResult
    from trainables.training.loop import TrainingDiverged as TrainingDiverged
    from trainables.training.loop import distill as distill
    from trainables.training.metrics import EpochMetrics as EpochMetrics

# The public names, each with the module below this package that it comes from.
_MODULES = {
    "Batch": "methods.base",
    "Block": "blocks.blocks",
    "CostTable": "costs.table",
    "Costs": "costs.table",
    "DATA_SETS": "data.sets.data_set",
    "DataConfig": "config",
    "DataSet": "data.sets.data_set",
    "DistillConfig": "config",
    "DistillResult": "training.loop",
    "EpochMetrics": "training.metrics",
    "Evaluation": "network.evaluate",
    "ExportResult": "finished.export",
    "Group": "methods.base",
    "ImageData": "data.dataset",
    "InputError": "errors",
    "Library": "library.library",
    "LibraryConfig": "config",
    "LossConfig": "loss_config",
    "METHODS": "config",
    "Method": "methods.base",
    "MethodConfig": "config_base",
    "OptimConfig": "config",
    "Phase": "methods.base",
    "Progress": "methods.base",
    "Registry": "registry",
    "RetrainResult": "finished.retrain",
    "Runtime": "runtime.runtime",
    "RuntimeConfig": "config",
    "Setup": "methods.base",
    "Source": "data.sources",
    "StudentSpec": "config",
    "Teacher": "teacher.teacher",
    "TeacherConfig": "config",
    "TrainingDiverged": "training.loop",
    "baselines": "finished.retrain",
    "build_library": "library.build",
    "build_student": "student.build",
    "distill": "training.loop",
    "evaluate": "network.evaluate",
    "export_model": "finished.export",
    "find_blocks": "blocks.blocks",
    "load_data": "data.load",
    "load_model": "finished.model_files",
    "load_teacher": "teacher.teacher",
    "measure_costs": "costs.measure",
    "resolve": "runtime.runtime",
    "retrain_one": "finished.retrain",
    "searched": "config_base",
    "train_teacher": "teacher.training",
}
__all__ = list(_MODULES)


if not TYPE_CHECKING:  # a checker that saw `__getattr__` would let every misspelt name pass

    def __getattr__(name: str) -> object:
        """Import a public name at its first use (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        return value


def __dir__() -> list[str]:
    """List the module's attributes and the public names not imported yet."""
    return sorted({*globals(), *_MODULES})
