"""The files that a method is made of, on a machine that works on a copy of the run's folder."""

from pathlib import Path

from owseg.encoders import EncoderConfig
from owseg.fields import path_settings
from owseg.method_config import MethodConfig
from storage.copies import at


def bring_here(method: MethodConfig, encoder: EncoderConfig, *weights: Path | None) -> None:
    """Get from the store what a method's settings, its encoder and its weights name there; nothing for plain paths."""
    given = [getattr(method, key) for key in sorted(path_settings(method))]
    for path in (*weights, encoder.pretrained, encoder.model, *given):
        if path and Path(path).is_absolute() and (copy := at(Path(path))):
            copy.pull_at(Path(path))
