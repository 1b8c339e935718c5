"""Pages of the Python API, by mkdocstrings: what it shows is in the docstrings."""

_PAGES = {
    "core": (
        "The algorithm",
        "Pure functions of tensors: torch and the standard library, no files and no randomness of their own.",
        (
            *(
                "rglcd.core",
                "rglcd.core.schedule",
                "rglcd.core.prediction",
                "rglcd.core.solver",
                "rglcd.core.guidance",
                "rglcd.core.condition",
            ),
            *("rglcd.core.consistency", "rglcd.core.distances", "rglcd.core.distillation", "rglcd.core.preference"),
            *("rglcd.core.timesteps", "rglcd.core.ema", "rglcd.core.sampling", "rglcd.core.dropout"),
        ),
    ),
    "recipe": ("The recipe", "The choices of a training step, as the configuration reads them.", ("rglcd.recipe",)),
    "rewards": ("Rewards", "What a reward model of your own implements.", ("rglcd.rewards.protocol",)),
    "evaluation": (
        "Evaluation",
        "Statistics and distances, usable by themselves.",
        (
            *("rglcd.evaluation.statistics", "rglcd.evaluation.paired_statistics", "rglcd.evaluation.frechet"),
            *("rglcd.evaluation.kernel_distance", "rglcd.evaluation.prompt_sets", "rglcd.evaluation.run_comparison"),
        ),
    ),
    "study": (
        "Studies with people",
        "What `rglcd ab` does, by functions.",
        ("rglcd.study.build", "rglcd.study.records", "rglcd.study.score", "rglcd.study.statistics"),
    ),
}


def api_pages() -> dict[str, str]:
    """The pages by their place in the site."""
    return {f"reference/api/{name}.md": _page(title, about, modules) for name, (title, about, modules) in _PAGES.items()}


def _page(title: str, about: str, modules: tuple[str, ...]) -> str:
    blocks = "\n".join(f"::: {module}\n" for module in modules)
    return f"# {title}\n\n{about}\n\n{blocks}"
