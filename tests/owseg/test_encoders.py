"""CLIP's weights: every format in which they travel loads equal and runs nothing; what does not fit is refused in one line."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers import tiny
from owseg import InputError
from owseg.encoders import EncoderConfig, architecture, build_encoder, encoder_dict, load_encoder
from owseg.weights import read_weights

State = dict[str, Tensor]
OPENAI = {"input_resolution": 32, "context_length": 16, "vocab_size": 1024}


def scripted(state: State, path: Path) -> None:
    """A TorchScript archive in the way of OpenAI's: half precision, three numbers and the causal mask beside the weights."""
    root = nn.Module()
    root.register_buffer("attn_mask", torch.zeros(16, 16), persistent=False)
    entries = {name: torch.tensor(value) for name, value in OPENAI.items()}
    for name, value in (state | entries).items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        if name in entries:
            module.register_buffer(leaf, value)
        else:
            module.register_parameter(leaf, nn.Parameter(value.half(), requires_grad=False))
    torch.jit.script(root).save(str(path))


def in_the_old_format(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


FORMATS: dict[str, tuple[str, Callable[[State, Path], None]]] = {
    "safetensors": ("clip.safetensors", save_file),
    "state dict": ("clip.pt", torch.save),
    "state dict in torch's first format": ("clip.pth", in_the_old_format),
    "training checkpoint": (
        "epoch_3.pt",
        lambda state, path: torch.save(
            {"epoch": 3, "name": "run", "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"step": 7}},
            path,
        ),
    ),
    "OpenAI's state dict": ("openai.pt", lambda state, path: torch.save(state | OPENAI, path)),
    "OpenAI's TorchScript": ("ViT.pt", scripted),
}


@pytest.fixture
def state(tmp_path: Path) -> State:
    """A random CLIP's weights that half precision holds exactly."""
    encoder = tiny.encoder(tmp_path)
    return {name: value.half().float() for name, value in encoder.clip.state_dict().items()}


def config(
    tmp_path: Path, pretrained: Path, quick_gelu: bool | None = None, model: dict[str, object] | None = None
) -> EncoderConfig:
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(tiny.MODEL | (model or {})))
    return EncoderConfig(model=str(path), pretrained=str(pretrained), quick_gelu=quick_gelu)


@pytest.mark.parametrize(("name", "save"), FORMATS.values(), ids=FORMATS.keys())
def test_every_format_loads_equal(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, name: str, save: Callable[[State, Path], None]
) -> None:
    save(state, tmp_path / name)
    monkeypatch.delattr(torch.jit, "load")  # no code of an archive is ever run
    clip = load_encoder(config(tmp_path, tmp_path / name, quick_gelu=True)).clip
    found = clip.state_dict()
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], value), key
    assert not clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_activation_is_the_one_asked_for(tmp_path: Path, state: State, quick_gelu: bool) -> None:
    save_file(state, tmp_path / "clip.safetensors")
    theirs = open_clip.CLIP(**tiny.MODEL, quick_gelu=quick_gelu)
    theirs.load_state_dict(state)
    clip = load_encoder(config(tmp_path, tmp_path / "clip.safetensors", quick_gelu)).clip
    image, tokens = torch.randn(2, 3, 32, 32), torch.randint(1, 1000, (2, 16))
    torch.testing.assert_close(clip.encode_image(image), theirs.eval().encode_image(image))
    torch.testing.assert_close(clip.encode_text(tokens), theirs.encode_text(tokens))
    kinds = {type(block.mlp.gelu) for tower in (clip.visual, clip) for block in tower.transformer.resblocks}
    assert kinds == {QuickGELU if quick_gelu else nn.GELU}


@pytest.mark.parametrize(
    ("model", "pretrained", "asked", "expected"),
    [
        ("ViT-B-16", "openai", None, True),
        ("ViT-B-16", "OpenAI", None, True),
        ("ViT-B-16-quickgelu", "openai", None, True),
        ("ViT-B-16", "metaclip_400m", None, True),
        ("ViT-B-16", "laion2b_s34b_b88k", None, False),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", None, False),
        ("ViT-B-16", "openai", False, False),
        ("ViT-B-16", "laion2b_s34b_b88k", True, True),
        ("ViT-B-16", "pretrain", None, False),
        ("ViT-B-16-quickgelu", "pretrain", None, True),
        ("ViT-B-16", "clip.pt", None, False),
        ("ViT-B-16-quickgelu", "clip.pt", None, True),
        ("ViT-B-16-quickgelu", "clip.pt", False, False),
    ],
)
def test_the_tag_or_the_model_settles_the_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, pretrained: str, asked: bool | None, expected: bool
) -> None:
    (tmp_path / "clip.pt").touch()
    monkeypatch.chdir(tmp_path)
    settings = EncoderConfig(model=model, pretrained=pretrained, quick_gelu=asked)
    with torch.device("meta"):
        block = build_encoder(settings).clip.visual.transformer.resblocks[0]
    assert isinstance(block.mlp.gelu, QuickGELU) is expected
    assert encoder_dict(settings)["architecture"]["quick_gelu"] is expected


def test_the_default_is_the_papers_clip() -> None:
    settings = EncoderConfig()
    assert (settings.model, settings.pretrained, settings.quick_gelu) == ("ViT-B-16", "openai", None)
    assert architecture(settings)["vision_cfg"] == {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16}


def test_a_tag_brings_its_weights_and_its_activation(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(state, tmp_path / "ViT.pt")
    tag = {"url": "somewhere", "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, name: tag if name == "openai" else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda found: str(tmp_path / "ViT.pt") if found is tag else "")
    clip = load_encoder(config(tmp_path, Path("openai"))).clip
    assert isinstance(clip.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)
    assert torch.equal(clip.visual.proj, state["visual.proj"])


def refusal(settings: EncoderConfig) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_openais_weights_without_their_activation_are_refused(tmp_path: Path, state: State) -> None:
    """open_clip would load them and be silently wrong."""
    for name, save in (FORMATS["OpenAI's state dict"], FORMATS["OpenAI's TorchScript"]):
        save(state, tmp_path / name)
        told = refusal(config(tmp_path, tmp_path / name))
        assert told.endswith(f"{tmp_path / name} is OpenAI's, trained with QuickGELU; set encoder.quick_gelu=true")
        load_encoder(config(tmp_path, tmp_path / name, quick_gelu=False))  # whoever insists
        load_encoder(config(tmp_path, tmp_path / name, model={"quick_gelu": True}))


class Touch:
    """Pickled, it creates a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["alone", "beside weights", "bare pickle", "TorchScript"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, state: State, place: str) -> None:
    path, trace = tmp_path / "clip.pt", tmp_path / "trace"
    evil = Touch(trace)
    if place == "alone":
        torch.save(evil, path)
    elif place == "beside weights":
        torch.save({"state_dict": state, "extra": evil}, path)
    elif place == "bare pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("clip/data.pkl", pickle.dumps(evil, protocol=2))
            archive.writestr("clip/constants.pkl", pickle.dumps((), protocol=2))
    told = refusal(config(tmp_path, path))
    assert told.startswith(f"{path}: damaged, or more than tensors (nothing in it was run)")
    assert not trace.exists()
    if place == "bare pickle":
        pickle.loads(path.read_bytes())
        assert trace.exists(), "the bait does not work"


@pytest.mark.parametrize("name", ["clip.pt", "clip.safetensors", "ViT.pt"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_file_is_named(tmp_path: Path, state: State, name: str, damage: str) -> None:
    path = tmp_path / name
    save = {"clip.pt": torch.save, "clip.safetensors": save_file, "ViT.pt": scripted}[name]
    save(state, path)
    content = {"truncated": path.read_bytes()[: path.stat().st_size // 2], "empty": b"", "foreign": b"a photo of a cat" * 99}
    path.write_bytes(content[damage])
    assert refusal(config(tmp_path, path, quick_gelu=True)).startswith(f"{path}: damaged, ")


def test_what_is_no_state_dict_is_refused(tmp_path: Path, state: State) -> None:
    path = tmp_path / "clip.pt"
    for content in ([1, 2], {"state_dict": 3}, {1: torch.zeros(1)}, torch.zeros(3)):
        torch.save(content, path)
        assert refusal(config(tmp_path, path)).startswith(f"{path}: holds no state dict; give ")


def without(state: State, name: str) -> State:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: without(s, "visual.proj"), "visual.proj is missing"),
        (lambda s: s | {"visual.extra": torch.zeros(1)}, "visual.extra is left over"),
        (lambda s: s | {"visual.proj": torch.zeros(32, 48)}, "visual.proj is [32, 48] and not [32, 32]"),
        (lambda s: s | {"visual.proj": "none"}, "visual.proj is no tensor"),
        (lambda s: without(without(s, "logit_scale"), "visual.proj"), "logit_scale is missing (2 differences)"),
        (lambda s: {"block.0.weight": torch.zeros(2)}, "ln_final.bias is missing ("),
        (lambda s: {}, "ln_final.bias is missing ("),
    ],
)
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, state: State, change: Callable[[State], State], told: str
) -> None:
    path = tmp_path / "clip.pt"
    torch.save(change(state), path)
    settings = config(tmp_path, path)
    refused = refusal(settings)
    assert refused.startswith(f"encoder.pretrained: {path} does not fit encoder.model {settings.model}: {told}")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for name in ("none.pt", "none.pth", "none.safetensors"):
        assert (
            refusal(EncoderConfig(pretrained=str(tmp_path / name))) == f"encoder.pretrained: {tmp_path / name} does not exist"
        )
    told = refusal(EncoderConfig(pretrained=str(tmp_path)))
    assert told.startswith(f"encoder.pretrained: '{tmp_path}' is neither a file nor a tag of ViT-B-16 (tags: openai, ")
    told = refusal(EncoderConfig(model="ViT-Q-99"))
    assert told == "encoder.model: open_clip knows no 'ViT-Q-99'; see open_clip.list_models()"
    told = refusal(EncoderConfig(pretrained="opnai"))
    assert told.startswith("encoder.pretrained: 'opnai' is neither a file nor a tag of ViT-B-16 (tags: openai, ")


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(tag: object) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    told = refusal(EncoderConfig(model="ViT-B-32"))
    assert told.startswith("encoder.pretrained: 'openai' of ViT-B-32 cannot be downloaded (OSError); give the path of a file")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("RN50", "encoder.model: RN50 has no plain ViT image tower"),
        ("coca_ViT-B-32", "encoder.model: coca_ViT-B-32 has no plain ViT image tower"),
        ("ViT-B-16-SigLIP", "encoder.model: ViT-B-16-SigLIP reads text with another tokenizer"),
        ("ViT-Q-99", "encoder.model: open_clip knows no 'ViT-Q-99'"),
    ],
)
def test_models_that_no_method_can_read_are_refused(model: str, told: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=told):
        build_encoder(EncoderConfig(model=model, pretrained="pretrain"))


def test_a_bad_architecture_file_is_told(tmp_path: Path) -> None:
    bad = tiny.MODEL["vision_cfg"] | {"patchsize": 8}
    with pytest.raises(InputError, match=r"encoder\.model: open_clip cannot build .*patchsize"):
        build_encoder(config(tmp_path, Path("pretrain"), model={"vision_cfg": bad}))


def test_shared_and_strided_tensors_of_an_archive_are_read(tmp_path: Path) -> None:
    """Views of one storage, as TorchScript stores transposed and tied weights."""
    whole = torch.arange(12.0).reshape(3, 4)
    root = nn.Module()
    for name, value in {"turned": whole.T, "row": whole[1], "whole": whole}.items():
        root.register_buffer(name, value)
    torch.jit.script(root).save(str(tmp_path / "views.pt"))
    found = read_weights(tmp_path / "views.pt")
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["row"], whole[1])
    assert torch.equal(found["whole"], whole)
