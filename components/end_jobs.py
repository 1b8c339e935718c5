"""The last task of every run, however it ended: no job of it stays behind."""

from kfp import dsl

from components import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def end_jobs() -> None:
    """Delete what jobs of this run still go on: those of a task that was killed before it could."""
    from rglcd.launch.kubeflow import end_jobs_of_run

    end_jobs_of_run()
