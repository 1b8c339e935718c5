"""What other trainers call a key of ours: diffusers' and RG-LCD's scripts, kohya's, and short forms. Only for suggestions."""

from typing import Final

SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "lr": ("distillation.learning_rate", "pretraining.learning_rate", "reward.tuning.learning_rate"),
    "bs": ("distillation.batch_size", "pretraining.batch_size", "caching.batch_size", "evaluation.batch_size"),
    "train_batch_size": ("distillation.batch_size", "pretraining.batch_size"),
    "steps": ("distillation.num_steps", "pretraining.num_steps", "evaluation.num_steps"),
    "max_train_steps": ("distillation.num_steps", "pretraining.num_steps"),
    "num_inference_steps": ("evaluation.num_steps",),
    "cfg": ("evaluation.guidance_scale", "distillation.omega"),
    "cfg_scale": ("evaluation.guidance_scale", "distillation.omega"),
    "w": ("distillation.omega",),
    "w_min": ("distillation.omega",),
    "w_max": ("distillation.omega",),
    "ema": ("distillation.target.decay",),
    "ema_decay": ("distillation.target.decay",),
    "loss": ("distillation.distance",),
    "loss_type": ("distillation.distance",),
    "huber_c": ("distillation.distance",),
    "gradient_accumulation": ("distillation.micro_batch",),
    "gradient_accumulation_steps": ("distillation.micro_batch",),
    "gradient_checkpointing": ("distillation.activations", "reward.activations"),
    "mixed_precision": ("distillation.precision", "reward.precision"),
    "dtype": ("distillation.precision", "reward.precision"),
    "bf16": ("distillation.precision", "reward.precision"),
    "lora": ("distillation.student",),
    "lora_rank": ("distillation.student",),
    "lr_scheduler": ("distillation.schedule",),
    "lr_warmup_steps": ("distillation.warmup_steps", "pretraining.warmup_steps"),
    "warmup": ("distillation.warmup_steps", "pretraining.warmup_steps"),
    "wd": ("distillation.weight_decay", "pretraining.weight_decay"),
    "adam_weight_decay": ("distillation.weight_decay", "pretraining.weight_decay"),
    "checkpointing_steps": ("distillation.checkpoint_every", "pretraining.checkpoint_every"),
    "proportion_empty_prompts": ("distillation.caption_dropout",),
    "num_ddim_timesteps": ("model.num_ddim_steps",),
    "size": ("model.resolution", "sharding.resolution"),
    "image_size": ("model.resolution", "sharding.resolution"),
    "base_model": ("model.teacher",),
    "pretrained_model_name_or_path": ("model.teacher",),
    "pretrained_teacher_model": ("model.teacher",),
    "reward_scale": ("reward.weight",),
    "scale": ("reward.weight",),
    "reward_model": ("reward.expert",),
    "reward_fn_name": ("reward.expert",),
    "judges": ("evaluation.scorers",),
}


def meant_by(path: list[str]) -> str | None:
    """The full key that the unknown key ``path`` is a synonym of: one of the same section, or the first; None if it is none."""
    targets = SYNONYMS.get(path[-1].lower(), ())
    return next((target for target in targets if target.split(".")[0] == path[0]), targets[0] if targets else None)
