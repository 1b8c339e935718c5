"""What a scheduler folder declares is read or refused in one line that says where. A diffusion's folders are in test_teacher.py."""

import json
import math
from pathlib import Path

import pytest

from rglcd.errors import InputError
from rglcd.models.schedules import read_schedule

DYNAMIC = {"use_dynamic_shifting": True}


def flow(folder: Path, **values: object) -> Path:
    declared = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0} | values
    (folder / "scheduler_config.json").write_text(json.dumps(declared))
    return folder


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shift": "large"}, "describes no flow: could not convert"),
        ({"shift": None}, "describes no flow"),
        ({"shift": 0.0}, "describes no flow: a flow's shift is positive"),
        ({"shift": math.inf}, "describes no flow: a flow's shift is positive"),
        ({"num_train_timesteps": math.inf}, "describes no flow"),
        ({"num_train_timesteps": 0}, "describes no flow: a flow has two timesteps at least, not 0"),
        ({"num_train_timesteps": -5}, "describes no flow: a flow has two timesteps at least, not -5"),
        (DYNAMIC | {"base_image_seq_len": 256, "max_image_seq_len": 256}, "describes no flow"),
        (DYNAMIC | {"max_shift": 1e9}, "describes no flow"),
        ({"shift_terminal": 0.1}, r"says shift_terminal: 0\.1; of the settings of flows only the shift is supported"),
        ({"_class_name": "DDIMScheduler"}, "is a DDIMScheduler, and the teacher is a flow"),
    ],
)
def test_a_flow_whose_noise_levels_are_not_said_is_refused(tmp_path: Path, values: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_schedule(flow(tmp_path, **values), is_flow=True, num_tokens=1024)
