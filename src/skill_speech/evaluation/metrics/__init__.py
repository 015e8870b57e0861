"""What the tasks are scored by, in percent unless said otherwise."""

from .diarization import diarization_error, diarization_parts, frame_accuracy, turns_of
from .edits import character_edits, character_error_rate, phoneme_error_rate, word_edits, word_error_rate
from .slots import slot_parts, slot_type_f1, slot_value_cer
from .term_weighted_value import max_term_weighted_value
from .verification import equal_error_rate, equal_error_rates

__all__ = [
    "character_edits",
    "character_error_rate",
    "diarization_error",
    "diarization_parts",
    "equal_error_rate",
    "equal_error_rates",
    "frame_accuracy",
    "max_term_weighted_value",
    "phoneme_error_rate",
    "slot_parts",
    "slot_type_f1",
    "slot_value_cer",
    "turns_of",
    "word_edits",
    "word_error_rate",
]
