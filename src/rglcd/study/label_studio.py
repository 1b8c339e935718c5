"""A study as a Label Studio project: tasks in its JSON format, and its pairwise template with a choice for ties.

https://labelstud.io/templates/pairwise_comparison, https://labelstud.io/guide/tasks, https://labelstud.io/tags/pairwise
"""

import json
from pathlib import Path
from typing import Any, Final

from rglcd.study.assignment import every_task
from rglcd.study.exports import exported_to
from rglcd.study.records import WORDING, Study

LOCAL_FILES: Final = "/data/local-files/?d=pictures/"
"""How Label Studio serves ``pictures/`` of its document root (LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED, ..._DOCUMENT_ROOT)."""

TIE: Final = "no difference"
"""What a rater chooses who prefers neither."""

CONFIG: Final = f"""\
<View>
  <Header value="$question"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="choice" toName="left,right"/>
  <View style="display: grid; column-gap: 8px; grid-template: auto/1fr 1fr">
    <Image name="left" value="$left"/>
    <Image name="right" value="$right"/>
  </View>
  <Choices name="tie" toName="prompt" choice="single" showInline="true">
    <Choice value="{TIE}"/>
  </Choices>
</View>
"""


def label_studio_tasks(study: Study, *, url: str) -> list[dict[str, Any]]:
    """The tasks to import; pictures are addressed by ``url`` and their names."""
    return [
        {
            "data": {
                "task": task.id,
                "question": WORDING[task.question],
                "prompt": task.pair.prompt,
                "left": f"{url}{task.left}",
                "right": f"{url}{task.right}",
            }
        }
        for task in every_task(study)
    ]


def export_label_studio(study_folder: Path, study: Study, folder: Path, *, url: str) -> None:
    """Write ``tasks.json``, ``config.xml`` and ``pictures/`` to ``folder``. Raises :class:`InputError` as :func:`exported_to` does."""
    with exported_to(folder, study_folder, study) as staging:
        (staging / "tasks.json").write_text(json.dumps(label_studio_tasks(study, url=url), indent=1), encoding="utf-8")
        (staging / "config.xml").write_text(CONFIG, encoding="utf-8")
