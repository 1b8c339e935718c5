"""Loading model folders: safetensors only, local only, with a one-line error when a folder is not what it should be."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Final, TypeVar

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from rglcd.errors import InputError
from rglcd.extras import install_command

# A stage opens a dozen folders; each would draw a progress bar of its own over the stage's.
transformers.logging.disable_progress_bar()
diffusers.logging.disable_progress_bar()
# Nothing here needs torchvision. diffusers' pipelines import classes that would like it, by name, and each would be a warning.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "requires torchvision" not in record.getMessage())

_HARMLESS = 1 << 24
"""Values of a network that may be opened whatever its files are: what is wrong with these says more."""

_FORMER_NAMES: Final = {"PixArtTransformer2DModel": "Transformer2DModel"}
"""What published folders call a class that diffusers has since split off (huggingface/diffusers pull request 11947)."""

Network = TypeVar("Network", bound=torch.nn.Module)


def load_weights(kind: type[Network], folder: Path, *, dtype: torch.dtype) -> Network:
    """``kind.from_pretrained(folder)`` with every tensor present, of its declared shape, and from safetensors.

    The class is named by the caller, never by the folder's own configuration. Raises :class:`InputError`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: expected a {kind.__name__} in diffusers' folder layout")
    found = read_json(folder / "config.json")
    named = found.get("_class_name") or next(iter(found.get("architectures") or []), None)
    if named is not None and named not in (kind.__name__, _FORMER_NAMES.get(kind.__name__)):
        raise InputError(f"{folder}/config.json describes a {named}, not a {kind.__name__}")
    _refuse_larger_than_its_files(kind, found, folder)
    try:
        network, report = kind.from_pretrained(  # type: ignore[attr-defined]  # diffusers and transformers share no base that has it
            str(folder), torch_dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise InputError(f"{folder} cannot be opened as {kind.__name__}: {' '.join(str(error).split())[:300]}") from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"{folder} lacks {len(missing)} tensors of {kind.__name__}, {missing[0]} the first; copy or fetch it again")
    loaded: Network = network
    return loaded


def _refuse_larger_than_its_files(kind: Any, config: dict[str, Any], folder: Path) -> None:
    """Raise :class:`InputError` for a configuration of more values than the weights have bytes, before it takes memory for them."""
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    try:
        with torch.device("meta"):
            if issubclass(kind, diffusers.ModelMixin):
                network = kind.from_config(config)
            else:
                network = kind(kind.config_class.from_pretrained(str(folder), local_files_only=True))
        num_values = sum(parameter.numel() for parameter in network.parameters())
    except Exception as error:  # whatever a network's class makes of other people's numbers
        raise InputError(f"{folder} cannot be opened as {kind.__name__}: {' '.join(str(error).split())[:300]}") from None
    if num_values > max(num_bytes, _HARMLESS) and num_bytes:
        raise InputError(
            f"{folder}/config.json describes {num_values:,} values, and its weights are {num_bytes:,} bytes; they are not of one model"
        )


def weights_digest(folder: Path) -> str:
    """SHA-256 of a folder's safetensors: of one file what ``sha256sum`` prints, of several a digest over these, by name."""
    digests = []
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in ``folder``. Raises :class:`InputError`."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: expected a tokenizer")
    _require_reader(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be opened as a tokenizer: {' '.join(str(error).split())[:300]}") from None
    return tokenizer


def _require_reader(folder: Path) -> None:
    """Raise :class:`InputError` for a vocabulary of SentencePiece alone, as PixArt-Sigma's, where what reads it is not installed.

    Without it transformers asks for another package, which cannot read the file either.
    """
    alone = None if (folder / "tokenizer.json").is_file() else next(folder.glob("*.model"), None)
    if alone is not None and not (is_sentencepiece_available() and is_protobuf_available()):
        raise InputError(f"{alone} is read by the packages sentencepiece and protobuf, of which one is missing: {install_command('train')}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; :class:`InputError` when the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object")
    return value
