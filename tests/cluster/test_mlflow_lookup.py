"""Runs in MLflow from outside: their folders are found, and a page is put beside their records."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster import InputError
from cluster.mlflow_lookup import CONFIG, folder_of, put_page


def test_a_run_leads_to_its_folder_and_takes_a_page(run_dir: Path) -> None:
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("compared", artifact_location=(run_dir / "mlartifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    with pytest.raises(InputError, match=rf"^mlflow:{run_id}: its settings are not to be had .*give"):
        folder_of(uri, run_id)
    client.log_dict(run_id, {"run_dir": "s3://bucket/run"}, CONFIG)
    assert folder_of(uri, run_id) == "s3://bucket/run"
    page = run_dir / "page.html"
    page.write_text("compared")
    assert put_page(uri, run_id, page, "comparisons") == ""
    assert [file.path for file in client.list_artifacts(run_id, "comparisons")] == ["comparisons/page.html"]
    assert "cannot be used" in put_page(uri, "0" * 32, page, "comparisons")
    assert "is not there" in put_page(f"sqlite:///{run_dir / 'none.db'}", run_id, page, "comparisons")
    assert not (run_dir / "none.db").exists()
    assert "password" in put_page("http://user:***@server", run_id, page, "comparisons")
