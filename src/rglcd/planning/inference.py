"""What the stages ``cache`` and ``evaluate`` take: memory at their batch sizes, operations of a sample and of an image.

Caching works in float32, but for the encoding of pictures where ``caching.precision`` says otherwise. Evaluation's networks that draw
have the weights that ``evaluation.precision`` says; what rates is in float32.
"""

from dataclasses import dataclass

import torch

from rglcd.models.precision import drawing_dtype, dtype_name
from rglcd.planning.costs import Line, frozen_pass
from rglcd.planning.memory import Moment, Part, StageMemory
from rglcd.planning.networks import META, Networks, num_bytes
from rglcd.planning.scoring import FEATURES_BYTES, Scoring
from rglcd.planning.training import guidance_in_words
from rglcd.training.choices import dtype_of


@dataclass(frozen=True)
class StageCost:
    """Memory, and operations, in float32 or TF32 and in bfloat16: of a sample that is cached, of all images that are drawn."""

    memory: StageMemory
    flops: float
    bf16_flops: float = 0.0


def caching_cost(networks: Networks) -> StageCost:
    """Encoding pictures and captions, and scoring what the decoder makes of them where scores are kept."""
    caching = networks.config.caching
    scoring = Scoring.of(networks, sorted(caching.scorers), dtype=torch.float32)
    scoring.codec.encode_in(dtype_of(caching.precision))
    encoding, captions = scoring.encoding(), scoring.captions()
    moments = [Moment("encoding", (Part("VAE's encoder", encoding.peak),)), Moment("captions", (Part("captions", captions.peak),))]
    flops = encoding.flops + captions.flops
    if caching.scores:
        labels = Scoring.of(networks, sorted(caching.scores), dtype=torch.float32).scores()
        moments.append(Moment("scores", (Part("decoder and scorers", labels.peak),)))
        flops += labels.flops
    text = Part("text encoders, float32", Line(num_bytes(*networks.text_encoders(torch.float32))))
    memory = StageMemory(
        "caching",
        caching.batch_size,
        "caching.batch_size",
        (*scoring.lasting, text),
        tuple(moments),
        whole=caching.batch_size,
        notes=scoring.notes,
    )
    return StageCost(memory, flops)


def evaluation_cost(networks: Networks) -> StageCost:
    """Drawing with the teacher and with each student, decoding in chunks, scoring."""
    config = networks.config
    evaluation, arms = config.evaluation, config.distillation.arms
    dtype = drawing_dtype(evaluation.precision)
    teacher = networks.teacher(dtype)
    scoring = Scoring.of(networks, sorted(evaluation.scorers), dtype=torch.float32, vae_dtype=dtype)

    def draw(samples: int) -> object:
        t = torch.zeros(samples, dtype=torch.int64, device=META)
        return teacher(networks.latents(samples), t, networks.condition(teacher, samples, dtype))

    drawing, decoding, ratings = frozen_pass(draw), scoring.decoding(), scoring.ratings()
    lasting = (
        Part(f"network that draws, {dtype_name(dtype)}", Line(num_bytes(teacher.unet))),
        Part(f"text encoders, {dtype_name(dtype)}", Line(num_bytes(*networks.text_encoders(dtype)))),
        *scoring.lasting,
        Part("features, float32", Line(FEATURES_BYTES)),
    )
    # Guidance draws each image with its caption and without, but for a network that is given its scale.
    passes = 1 if teacher.guides_itself else 2
    guided = Line(drawing.peak.fixed, passes * drawing.peak.each)
    values = 3 * config.model.resolution**2
    moments = (
        Moment("teacher's pass", (Part(f"teacher's pass, {guidance_in_words(teacher)}", guided),)),
        Moment("decoding", _decoding_parts(decoding.peak, evaluation.decode_chunk, Line(0.0, 2 * values * dtype.itemsize))),
        Moment("scores", (Part("scorers", ratings.peak), Part("the batch's images", Line(0.0, values)))),
    )
    calls = passes * sum(evaluation.all_teacher_steps) + len(arms) * sum(evaluation.num_steps)
    pictures = len(evaluation.all_teacher_steps) + len(arms) * len(evaluation.num_steps)
    memory = StageMemory(
        "evaluation",
        evaluation.batch_size,
        "evaluation.batch_size",
        lasting,
        moments,
        whole=evaluation.batch_size,
        notes=scoring.notes,
    )
    drawn = evaluation.num_images * (calls * drawing.flops + pictures * decoding.flops)
    rated = evaluation.num_images * (1 + pictures) * ratings.flops
    return StageCost(memory, rated, drawn) if dtype == torch.bfloat16 else StageCost(memory, rated + drawn)


def _decoding_parts(peak: Line, chunk: int | None, pixels: Line) -> tuple[Part, ...]:
    """Of a whole batch; or of a chunk at a time, beside the pixels of all, which lie there twice when they are put together."""
    if chunk is None:
        return (Part("decoder", peak),)
    return (Part(f"decoder, a chunk of {chunk}", Line(peak.at(chunk))), Part("the batch's pixels", pixels))
