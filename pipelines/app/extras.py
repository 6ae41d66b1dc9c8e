"""Which extra of the package brings a library that a command misses."""

EXTRAS = {
    "filter": ("datasketch", "nltk", "spacy"),
    "download": ("aiodns", "aiohttp", "cv2", "pycares"),
    "train": ("open_clip", "safetensors", "scipy", "timm", "torch", "torchvision", "transformers"),
    "cluster": ("deepspeed", "mlflow", "ray"),
    "app": ("gradio",),
    "img2dataset": ("albumentations", "img2dataset"),
}
"""The modules that each extra in pyproject.toml is for."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """The message for a user who lacks an extra; None where the missing module belongs to none."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None:
        return None
    return f"{module} is not installed, which this command needs; in the clone: pip install '.[{extra}]'"
