"""SUPERB's tasks: what each draws, learns and counts."""

from ..corpora import TaskData
from ..protocol import TrainingConfig
from .base import Batch, Task
from .classification import Classification
from .diarization import Diarization
from .query_by_example import search
from .recognition import PhonemeRecognition, SlotFilling, SpeechRecognition
from .verification import Verification

__all__ = ["TRAINED_TASKS", "Batch", "Task", "make_task", "search"]

TRAINED_TASKS: dict[str, type[Task]] = {
    "pr": PhonemeRecognition,
    "asr": SpeechRecognition,
    "ks": Classification,
    "sid": Classification,
    "asv": Verification,
    "sd": Diarization,
    "er": Classification,
    "ic": Classification,
    "sf": SlotFilling,
}


def make_task(data: TaskData, config: TrainingConfig, hop: int) -> Task:
    """The trained task of some data (all but qbe), for an upstream with so many samples per frame."""
    return TRAINED_TASKS[data.task](data, config, hop)
