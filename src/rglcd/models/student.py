"""The student: a copy of the teacher's network trained as a consistency model, whole or as a LoRA adapter on the teacher.

A whole UNet has one more input than its teacher, the guidance weight omega. It enters through
``time_embedding.cond_proj``, a bias-free layer that the teacher does not have. It starts at zero, so at step 0 the student
*is* the teacher's conditional half (the released RG-LCD code leaves it at random, so its student starts elsewhere). A SANA may have
such an input too.

An adapter has no such input, as in LCM-LoRA (arXiv 2311.05556): it must fit onto the teacher's own network, so the student
learns the average over the range of omega in training. Its second factor starts at zero: it starts as the teacher too. Nor has
a whole student of a family whose network cannot be given omega. One whose teacher is given it has its teacher's input.

Shapes: B batch, (C, h, w) latents.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import ModelMixin
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rglcd.core.condition import Condition
from rglcd.core.prediction import Prediction, PredictionType, convert
from rglcd.core.schedule import NoiseSchedule
from rglcd.errors import InputError
from rglcd.models.dropout import drop_nothing
from rglcd.models.families import STABLE_DIFFUSION, family_of
from rglcd.models.families.protocol import Call, Family
from rglcd.models.loading import load_weights
from rglcd.models.schedules import read_schedule
from rglcd.models.teacher import Teacher

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers' ``load_lora_weights`` looks for in a folder."""

_ADAPTER_MARK = ".lora_"


@dataclass(frozen=True)
class AdapterShape:
    """A LoRA: W + (alpha / rank) B A for each layer whose name ends in one of ``targets`` (arXiv 2106.09685)."""

    rank: int
    alpha: int
    targets: tuple[str, ...]


class Student:
    """``student(z_t, t, omega, cond)`` predicts the clean latents and the noise; one that has no input for ``omega`` ignores it.

    ``unet`` is the denoising network, a transformer in most families. ``network`` is called in its place and may be a wrapper of it
    (DistributedDataParallel). ``adapter`` is None for a whole student.
    """

    def __init__(
        self,
        unet: ModelMixin,
        schedule: NoiseSchedule,
        kind: PredictionType,
        *,
        adapter: AdapterShape | None = None,
        network: nn.Module | None = None,
        family: Family = STABLE_DIFFUSION,
    ) -> None:
        self.unet = unet
        self.network = unet if network is None else network
        self.schedule = schedule
        self.kind = kind
        self.adapter = adapter
        self.family = family

    @classmethod
    def of_teacher(cls, teacher: Teacher, *, omega_embedding_dim: int | None) -> "Student":
        """A trainable copy, in float32 whatever the teacher's precision; a UNet's has a guidance embedding that starts at zero.

        Raises :class:`InputError` where the network cannot be given omega as asked.
        """
        # Private keys hold the folder that the teacher was loaded from, which must not enter the student's config.json.
        shape = {name: value for name, value in teacher.unet.config.items() if not name.startswith("_")}
        family = teacher.family
        config = family.student_config(shape, omega_embedding_dim=omega_embedding_dim)
        with teacher.unet.device:
            unet = family.network.from_config(config)
        missing, unexpected = unet.load_state_dict(family.renamed(teacher.unet.state_dict(), unet.config), strict=False)
        assert set(missing) == set(() if omega_embedding_dim is None else family.omega_layers), missing
        assert not unexpected, unexpected
        if missing:
            family.start_omega(unet)
        return cls(unet, teacher.schedule, teacher.kind, family=family)

    @classmethod
    def adapting(cls, teacher: Teacher, adapter: AdapterShape, *, seed: int) -> "Student":
        """A trainable adapter, in float32, on the teacher's own frozen weights: they are shared, not copied.

        ``seed`` draws the first factor; :class:`InputError` when one of ``targets`` names no layer.
        """
        if not teacher.family.loads_adapters:
            raise InputError(f"distillation.student: diffusers' {teacher.family.pipelines[0]} loads no LoRA; train a whole student")
        unet = _twin(teacher.unet, shared=dict(teacher.unet.named_parameters()))
        _require_layers(unet, adapter.targets, family=teacher.family)
        config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=list(adapter.targets))
        # peft draws from the global generator, on the CPU.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                unet.add_adapter(config)
            except ValueError as error:
                raise InputError(f"student.targets: {' '.join(str(error).split())[:300]}") from None
        student = cls(unet, teacher.schedule, teacher.kind, adapter=adapter, family=teacher.family)
        for parameter in student.trainable_parameters.values():
            parameter.data = parameter.data.float()
        return student

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device) -> "Student":
        """The whole student of an exported pipeline folder, frozen."""
        # A UNet and its scheduler are enough: a folder without an index was read before there were other families.
        family = STABLE_DIFFUSION if (folder / STABLE_DIFFUSION.folder).is_dir() else family_of(folder)
        unet = load_weights(family.network, folder / family.folder, dtype=dtype).to(device).eval().requires_grad_(False)
        if family is STABLE_DIFFUSION and not family.takes_omega(unet.config):
            raise InputError(f"{folder}/unet takes no guidance embedding: it is a teacher, not a distilled student")
        # An exported scheduler's shift is that of the student's own resolution.
        schedule, kind = read_schedule(folder / "scheduler", is_flow=family.is_flow)
        return cls(unet, schedule.to(device=device), kind, family=family)

    @classmethod
    def load_adapter(cls, folder: Path, teacher: Teacher, shape: AdapterShape) -> "Student":
        """The adapter of an exported folder on ``teacher``, frozen; :class:`InputError` when it is not of ``shape`` or of this teacher."""
        try:
            tensors = load_file(str(folder / ADAPTER_FILE), device=str(teacher.unet.device))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / ADAPTER_FILE} cannot be opened: {' '.join(str(error).split())[:300]}") from None
        # A file's adapter is scaled by one: see adapter_tensors.
        unscaled = AdapterShape(shape.rank, shape.rank, shape.targets)
        student = cls.adapting(teacher, unscaled, seed=0)
        theirs = {_parameter_name(name, prefix=student._prefix): tensor for name, tensor in tensors.items()}
        mine = student.trainable_parameters
        odd = sorted(name for name in mine.keys() | theirs.keys() if name not in mine or name not in theirs)
        odd = odd or sorted(name for name in mine if mine[name].shape != theirs[name].shape)
        if odd:
            raise InputError(
                f"{folder / ADAPTER_FILE} is no adapter of rank {shape.rank} for this teacher: {len(odd)} tensors differ, first {odd[0]}"
            )
        student.restore(theirs)
        return student._frozen()

    def through(self, network: nn.Module) -> "Student":
        """The same student, called through ``network``, a wrapper of its own."""
        return Student(self.unet, self.schedule, self.kind, adapter=self.adapter, network=network, family=self.family)

    @property
    def takes_omega(self) -> bool:
        """Whether it is given the guidance scale that it draws with."""
        return self.family.takes_omega(self.unet.config)

    @property
    def _prefix(self) -> str:
        """Of the names in an adapter's file."""
        return f"{self.family.folder}."

    @cached_property
    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: every parameter, or an adapter's. Optimised, averaged and checkpointed; nothing else is."""
        named = self.unet.named_parameters()
        return {name: parameter for name, parameter in named if self.adapter is None or _ADAPTER_MARK in name}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the values of :attr:`trainable_parameters`, all of them."""
        mine = self.trainable_parameters
        assert mine.keys() == tensors.keys(), "a checkpoint of another student"
        for name, parameter in mine.items():
            parameter.copy_(tensors[name])

    def copy(self) -> "Student":
        """A frozen twin whose :attr:`trainable_parameters` weights are its own: the target network. The rest is shared."""
        own = self.trainable_parameters
        shared = {name: parameter for name, parameter in self.unet.named_parameters() if name not in own}
        return Student(_twin(self.unet, shared=shared), self.schedule, self.kind, adapter=self.adapter, family=self.family)._frozen()

    def at_rest(self) -> "Student":
        """A twin that shares every weight, to draw with while this one trains: not compiled, dropping nothing, without any wrapper.

        Nothing is copied but the modules' structure, and no weight's ``requires_grad`` is changed: call it without gradient.
        """
        twin = _twin(self.unet, shared=dict(self.unet.named_parameters()))
        drop_nothing(twin.eval())
        return Student(twin, self.schedule, self.kind, adapter=self.adapter, family=self.family)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter as :data:`ADAPTER_FILE` holds it, by the names that diffusers and peft know.

        Its scale alpha / rank is multiplied into the second factor: loaders that are given no alpha take a scale of one.
        """
        assert self.adapter is not None, "a whole student has no adapter"
        scale = self.adapter.alpha / self.adapter.rank
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(self.unet).items()}
        return {f"{self._prefix}{name}": tensor * scale if ".lora_B." in name else tensor for name, tensor in tensors.items()}

    def __call__(self, z_t: Tensor, t: Tensor, omega: Tensor, cond: Condition) -> Prediction:
        """Prediction at (B, C, h, w) ``z_t``, (B,) integer ``t``, (B,) ``omega``, B rows of ``cond``."""
        dtype, config = self.unet.dtype, self.unet.config
        call = Call(z_t.to(dtype), t, cond.to(dtype=dtype), omega if self.takes_omega else None, self.schedule)
        output = self.family.output(self.network, config, call)
        return convert(output.to(z_t.dtype), z_t, t, schedule=self.schedule, kind=self.kind)

    def _frozen(self) -> "Student":
        self.unet.eval().requires_grad_(False)
        return self


def _require_layers(unet: nn.Module, targets: Sequence[str], *, family: Family) -> None:
    """peft itself minds only when none of ``targets`` names a layer: half a typo would train without the layers that it meant."""
    names = [name for name, _ in unet.named_modules()]
    unknown = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)]
    if unknown:
        raise InputError(
            f"student.targets names {', '.join(unknown)}, and the teacher's {family.network.__name__} has no such layer; "
            f"usual ones are {', '.join(family.lora_targets)}"
        )


def _twin(unet: ModelMixin, *, shared: Mapping[str, nn.Parameter]) -> ModelMixin:
    """A copy of ``unet`` that shares the parameters ``shared`` and owns the others."""
    twin: ModelMixin = copy.deepcopy(unet, memo={id(parameter): parameter for parameter in shared.values()})
    return twin


def _parameter_name(name: str, *, prefix: str) -> str:
    """``unet.<layer>.lora_A.weight`` of the file, its prefix ``unet.``, as the network's own ``<layer>.lora_A.default.weight``."""
    layer, _, slot = name.removeprefix(prefix).rpartition(".")
    return f"{layer}.default.{slot}"
