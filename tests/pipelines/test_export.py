"""The verb `export`: folders that others load without this project, and cards that say what they hold."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from helpers import tiny
from helpers.bert import save_bert
from owseg.checkpoint import Checkpoint, write_model
from owseg.fit import WEIGHTS, learned_state
from owseg.method_config import TrainableConfig
from owseg.predict import load
from pipelines import export

TEXTS = ["a photo of a cat", "Two wooden boats, don't sink!", "x " * 40]

ELSEWHERE = """
import json, sys
for name in ("owseg", "pipelines", "filtering", "cluster", "storage", "miniature"):
    sys.modules[name] = None  # an import of it fails
import numpy as np, open_clip, timm, torch, transformers
folder, texts, found = sys.argv[1], json.loads(sys.argv[2]), {}
images = torch.from_numpy(np.load(folder + "/images.npy"))
torch.set_grad_enabled(False)
clip = transformers.CLIPModel.from_pretrained(folder + "/tcl")
tokens = transformers.AutoTokenizer.from_pretrained(folder + "/tcl")(texts, padding=True, truncation=True, return_tensors="pt")
found["hf image"] = clip.get_image_features(pixel_values=images).pooler_output
found["hf text"] = clip.get_text_features(**tokens).pooler_output
processor = transformers.AutoImageProcessor.from_pretrained(folder + "/tcl")
found["hf pixels"] = torch.tensor([processor.size["shortest_edge"], *processor.image_mean])
model, _, _ = open_clip.create_model_and_transforms("local-dir:" + folder + "/oc")
model.eval()
found["oc image"] = model.encode_image(images)
found["oc text"] = model.encode_text(open_clip.get_tokenizer("local-dir:" + folder + "/oc")(texts))
vit = timm.create_model("local-dir:" + folder + "/vilseg/image_tower", pretrained=True).eval()
found["vilseg image"] = vit.forward_features(images)
for name in ("vilseg", "ovsegmentor"):
    where = folder + "/" + name + "/text_tower"
    tokens = transformers.AutoTokenizer.from_pretrained(where)(texts, padding=True, truncation=True, return_tensors="pt")
    tower = (transformers.CLIPTextModel if name == "vilseg" else transformers.AutoModel).from_pretrained(where)
    read = tower(**tokens)
    found[name + " text"] = read.pooler_output if name == "vilseg" else read.last_hidden_state[:, 0]
np.savez(folder + "/found.npz", **{name: value.numpy() for name, value in found.items()})
"""


def trained(folder: Path, config: TrainableConfig) -> Path:
    """A checkpoint of a method that needs no CLIP, with random weights."""
    torch.manual_seed(0)
    method = config.build(None)
    folder.mkdir()
    state = learned_state(method, config.phases)
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / WEIGHTS)
    write_model(Checkpoint(method=config, view=tiny.VIEW, weights=folder / WEIGHTS))
    return folder


def exported(source: Path, form: str, out: Path, *options: str) -> Path:
    assert export.main([str(source), str(out), "--to", form, *options]) == 0
    return out


@pytest.fixture(scope="module")
def folders(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three methods in `from`, and their exports beside it."""
    here = tmp_path_factory.mktemp("exports")
    (here / "from").mkdir()
    save_bert(here / "from" / "bert")
    ovsegmentor = tiny.ovsegmentor_config(image_tower="vit_tiny_patch16_224", heads=3, text_tower=str(here / "from" / "bert"))
    exported(trained(here / "from" / "ovsegmentor", ovsegmentor), "hf-folder", here / "ovsegmentor")
    exported(trained(here / "from" / "vilseg", tiny.vilseg_config()), "hf-folder", here / "vilseg")
    exported(tiny_run, "hf-folder", here / "tcl")
    exported(tiny_run, "open_clip", here / "oc")
    return here


@pytest.mark.slow
def test_other_libraries_load_them_without_this_project(folders: Path, tiny_run: Path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    np.save(folders / "images.npy", images.numpy())
    command = [sys.executable, "-c", ELSEWHERE, str(folders), json.dumps(TEXTS)]
    done = subprocess.run(command, cwd=folders, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tcl: Any = load(tiny_run).segmenter
    ours = {name: load(folders / "from" / name).segmenter for name in ("vilseg", "ovsegmentor")}
    vilseg, ovsegmentor = ours["vilseg"], ours["ovsegmentor"]
    with torch.no_grad():
        image, text = tcl.clip.encode_image(images), tcl.clip.encode_text(tcl.tokenize(TEXTS))
        expected = {"hf image": image, "oc image": image, "hf text": text, "oc text": text}
        expected["vilseg image"] = vilseg.image.vit.forward_features(images)
        expected["vilseg text"] = vilseg.text(vilseg.tokenize(TEXTS))
        expected["ovsegmentor text"] = ovsegmentor.text(ovsegmentor.tokenize(TEXTS)).features[:, 0]
    with np.load(folders / "found.npz") as found:
        assert found["hf pixels"] == pytest.approx([32, 0.485, 0.456, 0.406])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["tcl", "oc", "vilseg", "ovsegmentor"])
def test_the_whole_method_is_in_it_and_moves_with_it(
    folders: Path, tiny_run: Path, tmp_path: Path, photo: Path, name: str
) -> None:
    source = tiny_run if name in ("tcl", "oc") else folders / "from" / name
    moved = tmp_path / "moved"
    shutil.copytree(folders / name, moved)
    model = load(moved / "owseg")
    assert (model.segment(photo, tiny.LABELS).scores == load(source).segment(photo, tiny.LABELS).scores).all()
    assert "from" not in (moved / "owseg" / "model.json").read_text()
    assert not (
        model.checkpoint.describe()["sha256"].keys() - {WEIGHTS, "encoder.safetensors", "../open_clip_model.safetensors"}
    )


def head_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


@pytest.fixture
def recorded(tiny_run: Path, tmp_path: Path) -> Callable[[dict[str, Any], dict[str, Any]], Path]:
    """A copy of the tiny run with these settings and results of stages."""

    def write(config: dict[str, Any], stages: dict[str, Any]) -> Path:
        folder = tmp_path / "run"
        shutil.copytree(tiny_run, folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "summary.json").write_text(json.dumps({"stages": stages}))
        return folder

    return write


STAGES = {
    "filter": {"links": 100, "kept": 60, "dropped": {"too_short": 40}, "digest": "abc", "leakage": {"voc21": 0.25}},
    "download": {"links": 60, "success": 55, "digest": "def"},
    "train": {"costs": {"tcl": {"steps": 6, "pairs": 48, "cpu_seconds": 7200.0, "peak_memory_mb": 900.0}}},
    "evaluate": {
        "mIoU": {"tcl": {"voc21": 41.234, "average": 41.234}, "maskclip": {"voc21": 1.0, "average": 1.0}},
        "intervals": {"tcl": {"voc21": [40.0, 42.5]}},
        "images": {"voc21": 1449},
        "protocol": "preset tcl | <b>",
    },
}


def test_the_card_tells_what_the_run_recorded(recorded: Callable[..., Path], tmp_path: Path) -> None:
    source = "https://user:hunter2@data.test/cc12m.tsv?token=abcdefghij"
    run = recorded({"filter": {"source": {"path": source}}, "evaluate": {"root": "/data"}, "seed": 7}, STAGES)
    head, text = head_of(exported(run, "open_clip", tmp_path / "out"))
    assert head["datasets"] == ["cc12m"]
    assert (head["license"], head["library_name"], head["model-index"][0]["name"]) == ("other", "open_clip", "tcl")
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "voc21", "type": "voc21"}
    assert result["metrics"] == [{"type": "mean_iou", "name": "mIoU (%)", "value": 41.23}]
    for line in (
        "- corpus: 60 of 100 links kept; dropped: 40 too_short",
        "- SHA-256 of the corpus: abc",
        "- images: 55 of 60 obtained",
        "| voc21 | 25.0 |",
        "| voc21 | 41.2 | 40.0..42.5 | 1449 |",
        "zero-shot; preset tcl \\| &lt;b&gt;. Intervals",
        "- compute: 48 pairs in 6 steps, 2.00 hours of processor time, 900 MiB at the most in a process",
        "- seed: 7",
    ):
        assert line in text, text
    assert "hunter2" not in text + str(head)


def test_a_generated_world_and_a_training_free_mode_are_told(recorded: Callable[..., Path], tmp_path: Path) -> None:
    run = recorded({"filter": {"source": {"path": ""}}, "encoder": {"pretrained": "pretrain"}}, STAGES)
    head, text = head_of(exported(run, "hf-folder", tmp_path / "out", "--method", "maskclip"))
    assert (head["license"], head["datasets"]) == ("apache-2.0", ["the-generated-miniature-world"])
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "voc21 (generated miniature)"
    assert "| voc21 (generated miniature) | 1.0 |" in text
    assert "It has seen generated scenes alone" in text
    assert "None: the method reads a CLIP as it is." in text
    assert not (tmp_path / "out" / "owseg").exists()


def test_what_is_not_known_is_said_to_be_so(folders: Path) -> None:
    head, text = head_of(folders / "vilseg")
    assert "model-index" not in head
    assert text.count("Not recorded: the checkpoint does not lie in the folder of the run") == 3
    assert "| image_tower | timm.create_model(" in text


def test_an_official_file_has_its_card_beside_it(tiny_run: Path, tmp_path: Path) -> None:
    exported(tiny_run, "official", tmp_path / "tcl.pth")
    assert {path.name for path in tmp_path.iterdir()} == {"tcl.pth", "tcl.pth.md"}
    assert "model" in torch.load(tmp_path / "tcl.pth", weights_only=True)


def test_a_model_of_the_registry_is_a_source(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"models:/owseg@champion": str(tiny_run / "train" / "tcl")}
    monkeypatch.setattr(export, "checkpoint_here", places.__getitem__)
    assert export.main(["models:/owseg@champion", str(tmp_path / "tcl.pth"), "--to", "official"]) == 0
    assert "# tcl\n" in (tmp_path / "tcl.pth.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "{out}"], "the following arguments are required: --to"),
        (["{run}", "{run}", "--to", "hf-folder"], "{run}: is there already; give a new name, or move it away"),
        (["{vilseg}", "{out}", "--to", "open_clip"], "--to: vilseg has no CLIP that open_clip could load"),
        (["{run}", "{out}", "--to", "official", "--method", "maskclip"], "--to: maskclip is not trained, so there is no"),
        (["{vilseg}", "{out}", "--to", "official"], "no published checkpoints of vilseg are known"),
        (["{out}", "{out}", "--to", "hf-folder"], "{out}: no such checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    folders: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    names = {"run": tiny_run, "out": tmp_path / "out", "vilseg": folders / "from" / "vilseg"}
    assert export.main([argument.format(**names) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: " + message.format(**names))
    assert list(tmp_path.iterdir()) == []


def test_a_clip_that_transformers_has_no_place_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer scale: open_clip's towers may have it, CLIPModel has not."""
    scaled = {**tiny.MODEL, "vision_cfg": {**tiny.MODEL["vision_cfg"], "ls_init_value": 0.1}}  # type: ignore[dict-item]
    monkeypatch.setattr(tiny, "MODEL", scaled)
    run = tiny.write_run(tmp_path / "run")
    assert export.main([str(run), str(tmp_path / "out"), "--to", "hf-folder"]) == 2
    assert "--to: transformers' CLIPModel cannot hold this model as it is (" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
