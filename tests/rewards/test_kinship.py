"""Which scorers are no judges of a student, because they are made of what guided it."""

from rglcd.rewards.kinship import akin
from rglcd.store.manifest import FileEntry, Manifest

CLIP = {"kind": "clip"}
OWN = {"kind": "entry-point", "name": "mine", "has_weights": False}


def pretrained(files: dict[str, str], models: dict[str, str] | None = None) -> Manifest:
    entries = {f"scorers/{path}": FileEntry(sha256, 1) for path, sha256 in files.items()}
    return Manifest("pretrained", "prepare", 1, "", "", {}, {}, entries, {"models": models or {}})


def test_a_mixture_is_akin_to_its_parts_and_they_to_it() -> None:
    catalogue = {
        "mine": OWN,
        "expert": CLIP,
        "judge": CLIP,
        "both": {"kind": "mixture", "weights": {"mine": 1.0, "expert": 0.5}, "logit_scale": 1},
    }
    made = pretrained({"expert/model.safetensors": "e", "judge/model.safetensors": "j"})
    assert akin(["mine"], catalogue, made) == {"mine", "both"}
    assert akin(["both"], catalogue, made) == {"mine", "expert", "both"}
    assert akin(["judge"], catalogue, made) == {"judge"}


def test_a_part_of_weight_zero_is_no_part() -> None:
    catalogue = {"mine": OWN, "expert": CLIP, "half": {"kind": "mixture", "weights": {"mine": 1.0, "expert": 0.0}, "logit_scale": 1}}
    assert akin(["half"], catalogue, pretrained({"expert/model.safetensors": "e"})) == {"mine", "half"}


def test_equal_weights_under_two_names_are_one_scorer() -> None:
    made = pretrained({"a/model.safetensors": "w", "b/model.safetensors": "w", "c/model.safetensors": "v", "c/config.json": "same"})
    assert akin(["a"], {"a": CLIP, "b": CLIP, "c": CLIP}, made) == {"a", "b"}


def test_one_published_file_by_two_kinds_is_one_scorer() -> None:
    """Each kind converts the file in its own way, so the files that were laid out differ."""
    catalogue = {"expert": {"kind": "hpsv2"}, "package": {"kind": "hpsv2-process", "interpreter": "x"}, "judge": {"kind": "pickscore"}}
    files = {"expert/model.safetensors": "1", "package/open_clip.safetensors": "2", "judge/model.safetensors": "3"}
    models = {"scorers/expert": "file", "scorers/package": "file", "scorers/judge": "other", "scorers/expert/tokenizer": "t"}
    assert akin(["expert"], catalogue, pretrained(files, models)) == {"expert", "package"}


def test_tokenizers_and_settings_are_no_weights() -> None:
    made = pretrained({"a/model.safetensors": "w", "b/model.safetensors": "v", "a/vocab.json": "t", "b/vocab.json": "t"})
    assert akin(["a"], {"a": CLIP, "b": CLIP}, made) == {"a"}


def test_a_reward_that_is_no_longer_there_is_still_itself() -> None:
    assert akin(["gone"], {"a": CLIP}, pretrained({"a/model.safetensors": "w"})) == {"gone"}


def test_two_temperatures_of_one_reader_are_akin() -> None:
    code = {"distribution": "rapidocr", "version": "3.10.0", "sha256": "0" * 64}
    catalogue = {name: {"kind": "ocr", "logit_scale": scale, "code": code} for name, scale in (("one", 10.0), ("other", 5.0))}
    assert akin(["one"], catalogue, pretrained({})) == {"one", "other"}
