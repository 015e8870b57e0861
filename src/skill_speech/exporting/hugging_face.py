"""A folder that Transformers loads, with or without skill_speech beside it."""

from __future__ import annotations

from pathlib import Path

from ..encoder import Encoder


def register() -> None:
    """Tell AutoConfig, AutoModel, AutoModelForCTC and AutoModelForAudioClassification what skill-speech models are.

    Transformers then loads them with the code that is installed and asks for no `trust_remote_code`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForAudioClassification, AutoModelForCTC

    from .travel import modeling_skill_speech as models
    from .travel.configuration_skill_speech import SkillSpeechConfig

    AutoConfig.register(SkillSpeechConfig.model_type, SkillSpeechConfig, exist_ok=True)
    AutoModel.register(SkillSpeechConfig, models.SkillSpeechModel, exist_ok=True)
    AutoModelForCTC.register(SkillSpeechConfig, models.SkillSpeechForCTC, exist_ok=True)
    AutoModelForAudioClassification.register(
        SkillSpeechConfig, models.SkillSpeechForSequenceClassification, exist_ok=True
    )


def save_transformers(encoder: Encoder, folder: Path) -> None:
    """Write config.json, model.safetensors, preprocessor_config.json and the code that they need.

    Args:
        encoder: in evaluation mode.
        folder: that exists.
    """
    from transformers import Wav2Vec2FeatureExtractor
    from transformers.utils import logging

    from .travel.configuration_skill_speech import SkillSpeechConfig
    from .travel.modeling_skill_speech import SkillSpeechModel

    model = SkillSpeechModel(SkillSpeechConfig(**encoder.config.to_dict()))
    model.encoder.load_state_dict(encoder.state_dict())
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # there is no progress in writing one file
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    Wav2Vec2FeatureExtractor(
        sampling_rate=encoder.config.sampling_rate,
        do_normalize=model.config.extractor_normalizes,
        return_attention_mask=True,
    ).save_pretrained(folder)
