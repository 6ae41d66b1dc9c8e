"""The model that `mlflow models serve` loads: photos and labels in, masks out. MLflow copies this file into the model.

It holds no weights: the model's config says where they lie, and their SHA-256. Photos come as bytes, never as paths: a server
that opened what a request names would open any file of its machine.
"""

import base64
import io
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image, UnidentifiedImageError


class MaskServer(PythonModel):  # type: ignore[misc]
    """Rows with "image" (a file's bytes; base64 in JSON), "labels" (texts) and, if need be, "background" (true or false)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights. Raises InputError where they are not there, or not those that were registered."""
        from cluster.mlflow_registry import check_weights
        from owseg.predict import load

        config = context.model_config
        weights = Path(config["weights"])
        check_weights(weights, config["digest"], "the registered model")
        self.model = load(weights)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """For each row "mask", an indexed PNG of the photo's size in base64 (0 = nothing, i = label i), and labels' shares."""
        return [self._segment(row) for row in model_input.to_dict("records")]

    def _segment(self, row: Mapping[Hashable, Any]) -> dict[str, Any]:
        from owseg import InputError

        background = row.get("background")
        try:
            with Image.open(io.BytesIO(row["image"])) as photo:
                result = self.model.segment(photo, [*row["labels"]], background=background is None or bool(background))
        except (InputError, UnidentifiedImageError, TypeError) as error:
            raise MlflowException.invalid_parameter_value(f"{error}") from error
        mask = io.BytesIO()
        result.mask().save(mask, format="PNG")
        return {
            "mask": base64.b64encode(mask.getvalue()).decode("ascii"),
            "labels": [*result.names],
            "shares": [*result.shares().values()],
            "nothing": result.nothing,
        }


mlflow.models.set_model(MaskServer())
