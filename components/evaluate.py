"""The ``evaluate`` stage as a Kubeflow component."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Markdown, Metrics, Model, Output

from components import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def evaluate(
    model: dict,
    evaluation: dict,
    source: str,
    store: str,
    pretrained: Input[Model],
    student: Input[Model],
    report: Output[Artifact],
    metrics: Output[Metrics],
    page: Output[HTML],
    summary: Output[Markdown],
    reward_model: Input[Model] = None,
) -> None:
    """Draw with teacher and students, score, and write the report."""
    from rglcd.launch.kubeflow import execute_component

    execute_component(
        "evaluate",
        sections={"model": model, "evaluation": evaluation},
        source=source,
        store=store,
        inputs={"pretrained": pretrained, "student": student, "reward_model": reward_model},
        outputs={"report": report},
        cards={"metrics.json": metrics, "index.html": page, "report.md": summary},
    )
