"""What stage ``distill`` takes: memory by part at each moment of a step, and operations of a sample.

Shapes: r samples of a process at once (a micro-batch), (C, h, w) latents.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rglcd.config import AnyReward, LatentReward, NoReward, PixelReward
from rglcd.core.condition import Condition
from rglcd.errors import InputError
from rglcd.models.latent_reward import LatentRewardModel
from rglcd.models.precision import dtype_name
from rglcd.models.student import Student
from rglcd.models.teacher import Teacher
from rglcd.planning.costs import Line, TrainedPass, frozen_pass, trained_pass
from rglcd.planning.looks import Looks
from rglcd.planning.memory import Moment, Part, StageMemory
from rglcd.planning.networks import META, Networks, num_bytes
from rglcd.planning.scoring import Scoring
from rglcd.recipe import EmaTarget, FrozenProxy, OnlineProxy, OwnPrediction
from rglcd.training.choices import average_decay, dtype_of

CANDIDATES = 3
"""Latents of each caption that a proxy learns from: the student's, the target's and the real image's."""


@dataclass(frozen=True)
class TrainingCost:
    """Memory of a process, and operations of a sample in a guided step and in a plain one."""

    memory: StageMemory
    guided_flops: float
    plain_flops: float


@dataclass(frozen=True)
class Core:
    """Teacher, student and target: the part of a step that every arm has."""

    lasting: tuple[Part, ...]
    gradients: Line
    frozen: Line
    drawing: Line
    """Of the student without gradient and outside autocast, as a look draws, if anything looks."""
    student: TrainedPass
    frozen_flops: float
    captions: str
    """In words: encoded in each step, or read from the cache."""
    guidance: str
    """In words: two passes of the teacher, or one that is given the scale."""


def training_cost(networks: Networks, *, count: int) -> TrainingCost:
    """Of a run guided by the reward section, on ``count`` GPUs. Raises :class:`InputError` for a batch that does not divide among them."""
    distillation = networks.config.distillation
    share, rest = divmod(distillation.batch_size, count)
    if rest:
        raise InputError(f"distillation.batch_size {distillation.batch_size} does not divide among {count} GPUs; choose another --count")
    rows = min(distillation.micro_batch or share, share)
    if share % rows:
        raise InputError(
            f"distillation.micro_batch {rows} does not divide the {share} samples of each of {count} GPUs: choose a divisor of {share}"
        )
    _require_whole_shares(networks.config.reward, share, count=count)
    core = core_cost(networks)
    guidance = Guidance.of(networks, networks.config.reward, core)
    looks = Looks.of(networks, networks.config.reward, student=core.drawing, teacher=core.frozen)
    gradients = Part("gradients, float32", core.gradients)
    # In DDP's buckets they last; otherwise they come as activations go. From one micro-batch to the next they are added up, and
    # DDP keeps that sum beside its buckets until it averages, in the last one's backward pass.
    buckets = (gradients,) if count > 1 else ()
    added_up = Part("gradients added up beside DDP's, float32", core.gradients) if buckets else gradients
    memory = StageMemory(
        "training",
        rows,
        "distillation.micro_batch",
        (*core.lasting, *buckets, *guidance.lasting),
        (*core_moments(core), *guidance.moments, *looks.moments),
        whole=share,
        split=(added_up,),
        unsplit=() if buckets else (Moment("update", (gradients,)),),
        notes=(*dict.fromkeys([*guidance.notes, *looks.notes]), core.captions),
    )
    plain = core.frozen_flops + core.student.flops
    return TrainingCost(memory, plain + guidance.flops, plain)


def _require_whole_shares(reward: AnyReward, share: int, *, count: int) -> None:
    """Raise :class:`InputError` where every n-th sample is rewarded or labelled, and the GPUs would find other samples than one does."""
    asked = {} if isinstance(reward, NoReward) else {"reward.prediction.every": reward.prediction.every}
    if isinstance(reward, LatentReward) and isinstance(reward.tuning, OnlineProxy):
        asked["reward.tuning.label_every"] = reward.tuning.label_every
    for key, every in asked.items():
        if share % every:
            raise InputError(f"{key} {every} does not divide the {share} samples of each of {count} GPUs: choose a divisor of {share}")


def _captions(networks: Networks, teacher: Teacher) -> str:
    """Where a step's captions come from, and what they take in the cache, or would."""
    caption = networks.condition(teacher, 1, torch.float16)
    taken = caption.embeddings.nbytes + (0 if caption.pooled is None else caption.pooled.nbytes)
    size = f"{taken / 2**20:.2g} MiB a sample"
    if caption.mask is not None:
        size = f"at most {size}, for padding is left out"
    stored = networks.config.caching.text_embeddings
    return f"captions are {'read from the cache' if stored else 'encoded in each step'}; {'there' if stored else 'stored'} they take {size}"


def core_cost(networks: Networks) -> Core:
    """Of teacher, student and target."""
    dtype = networks.precision
    teacher = networks.teacher(dtype)
    student = networks.student(teacher)
    learnt = list(student.trainable_parameters.values())
    weights = Line(sum(parameter.nbytes for parameter in learnt))
    target = networks.config.distillation.target
    average = [Part("its moving average, float32", weights)] if average_decay(target) is not None else []
    text = networks.text_encoders(dtype)
    lasting = (
        Part("student, float32" if student.adapter is None else "adapter, float32", weights),
        *average,
        Part("AdamW's two moments, float32", Line(2 * weights.fixed)),
        Part(f"teacher, {dtype_name(dtype)}", Line(num_bytes(teacher.unet))),
        Part(f"text encoder{'s' if len(text) > 1 else ''}, {dtype_name(dtype)}", Line(num_bytes(*text))),
    )
    solver = frozen_pass(partial(_teach, networks, teacher))
    aimed = student.copy() if isinstance(target, EmaTarget) else student
    aim = frozen_pass(partial(_predict, networks, aimed), autocast=dtype)
    passes = solver if networks.config.distillation.neighbour == "teacher" else aim
    frozen = max(passes.peak, aim.peak, key=lambda line: line.each)
    learning = trained_pass(lambda samples: (_predict(networks, student, samples), None), autocast=dtype, parameters=learnt)
    drawing = frozen_pass(partial(_predict, networks, aimed)).peak if networks.config.monitoring.kind == "panel" else Line()
    used = {passes, aim}
    flops = sum(one.flops for one in used)
    return Core(lasting, weights, frozen, drawing, learning, flops, _captions(networks, teacher), guidance_in_words(teacher))


def guidance_in_words(teacher: Teacher) -> str:
    """How often the teacher is called to be guided."""
    return "given its guidance scale" if teacher.guides_itself else "guided and not"


def core_moments(core: Core) -> list[Moment]:
    """Of a plain step: the passes without gradient, the student's forward pass, its backward pass."""
    forward, back = core.student.forward_peak - core.student.kept, core.student.backward_peak - core.student.kept
    return [
        Moment("teacher's pass", (Part(f"teacher's pass, {core.guidance}", core.frozen),)),
        Moment("student's forward pass", (*kept_parts(core), Part("student's forward pass, on top", forward))),
        Moment("student's backward pass", (*kept_parts(core), Part("student's backward pass, on top", back))),
    ]


def kept_parts(core: Core) -> tuple[Part, ...]:
    """What the student's forward pass leaves for its backward pass."""
    kept = core.student.kept
    return (Part("low-precision copies of its weights", Line(kept.fixed)), Part("student's activations", Line(0.0, kept.each)))


@dataclass(frozen=True)
class Guidance:
    """What a reward adds to a step: networks, moments, operations of a sample."""

    lasting: tuple[Part, ...] = ()
    moments: tuple[Moment, ...] = ()
    flops: float = 0.0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, networks: Networks, reward: AnyReward, core: Core) -> "Guidance":
        """Of ``reward``, beside a student that costs ``core``."""
        match reward:
            case NoReward():
                # The stage loads the VAE all the same, in float32.
                return cls((Part("VAE, float32", Line(num_bytes(networks.codec(torch.float32).vae))),))
            case PixelReward():
                return _pixel(networks, reward, core)
            case LatentReward():
                return _latent(networks, reward, core)


def _pixel(networks: Networks, reward: PixelReward, core: Core) -> Guidance:
    dtype = dtype_of(reward.precision)
    scoring = Scoring.of(networks, [reward.expert], dtype=dtype, captions="cached", recomputes=reward.activations == "recomputed")
    cost = scoring.gradient()
    share, own = 1 / reward.prediction.every, isinstance(reward.prediction, OwnPrediction)
    kept = _own_kept(core, share) if own else ()
    peak = max(cost.peak, key=lambda line: line.at(reward.chunk_size))
    chunk = Part(f"decoder and expert, a chunk of {reward.chunk_size}", Line(peak.at(reward.chunk_size)))
    moment = Moment("reward's gradient", (*kept_parts(core), *kept, chunk))
    flops = share * (cost.flops + (core.student.flops if own else 0.0))
    return Guidance(scoring.lasting, (moment, *_own_backward(core, kept)), flops, scoring.notes)


def _latent(networks: Networks, reward: LatentReward, core: Core) -> Guidance:
    scoring = Scoring.of(networks, [reward.expert], dtype=dtype_of(reward.precision), captions="cached")
    proxy = networks.proxy()
    learnt = [parameter for parameter in proxy.parameters() if parameter.requires_grad]
    weights, tuned = num_bytes(proxy), not isinstance(reward.tuning, FrozenProxy)
    lasting = (*scoring.lasting, Part("proxy, gradients and moments, float32", Line(weights * (4 if tuned else 1))))
    share, own = 1 / reward.prediction.every, isinstance(reward.prediction, OwnPrediction)
    kept = _own_kept(core, share) if own else ()
    pull = trained_pass(partial(_proxy_score, networks, proxy), autocast=torch.float32, parameters=learnt)
    pulled = max(pull.peak, key=lambda line: line.each)
    moments = [Moment("proxy's gradient", (*kept_parts(core), *kept, Part("proxy", Line(pulled.fixed, share * pulled.each))))]
    flops = share * (pull.flops + (core.student.flops if own else 0.0))
    if not isinstance(reward.tuning, FrozenProxy):
        labels = scoring.scores()
        learning = trained_pass(partial(_proxy_logits, networks, proxy), autocast=torch.float32, parameters=learnt)
        rows = CANDIDATES / reward.tuning.label_every
        tuning = max(learning.peak, key=lambda line: line.each)
        moments += [
            Moment("labels", (Part(f"decoder and expert, a chunk of {reward.chunk_size}", Line(labels.peak.at(reward.chunk_size))),)),
            Moment("proxy's update", (Part("proxy's activations", Line(tuning.fixed, rows * tuning.each)),)),
        ]
        decoded = CANDIDATES - (reward.expert in networks.config.caching.scores)
        flops += (decoded * labels.flops) / reward.tuning.label_every + rows * reward.tuning.num_updates * learning.flops
    return Guidance(lasting, (*moments, *_own_backward(core, kept)), flops, scoring.notes)


def _own_kept(core: Core, share: float) -> tuple[Part, ...]:
    """Of the student's second pass, at the reward's own noise."""
    kept = core.student.kept
    return (Part("student's second pass, for the reward", Line(kept.fixed, share * kept.each)),)


def _own_backward(core: Core, kept: tuple[Part, ...]) -> tuple[Moment, ...]:
    """The backward pass through both of the student's passes, where there are two."""
    on_top = Part("student's backward pass, on top", core.student.backward_peak - core.student.kept)
    return (Moment("student's backward pass", (*kept_parts(core), *kept, on_top)),) if kept else ()


# --- passes --------------------------------------------------------------------------------------


def _teach(networks: Networks, teacher: Teacher, samples: int) -> object:
    """Each sample twice: with its caption and without; or once, of a network that is given the guidance scale."""
    t, omega = torch.zeros(samples, dtype=torch.int64, device=META), torch.ones(samples, device=META)
    cond = networks.condition(teacher, samples, teacher.unet.dtype)
    return teacher.guided(networks.latents(samples), t, omega=omega, cond=cond, uncond=cond[:1])


def _predict(networks: Networks, student: Student, samples: int) -> Tensor:
    t, omega = torch.zeros(samples, dtype=torch.int64, device=META), torch.ones(samples, device=META)
    cond: Condition = networks.condition(student, samples, networks.precision)
    return student(networks.latents(samples), t, omega, cond).x0


def _proxy_score(networks: Networks, proxy: LatentRewardModel, samples: int) -> tuple[Tensor, Tensor]:
    latents = networks.latents(samples).requires_grad_()
    return proxy(latents, _text(proxy, samples)).logits, latents


def _proxy_logits(networks: Networks, proxy: LatentRewardModel, samples: int) -> tuple[Tensor, None]:
    return proxy(networks.latents(samples), _text(proxy, samples)).logits, None


def _text(proxy: LatentRewardModel, samples: int) -> Tensor:
    return torch.empty(samples, proxy.shape.text_dim, device=META)
