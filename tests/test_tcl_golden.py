"""TCL against numbers recorded from the official modules (same weights in, same numbers out)."""

import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from owseg.data import Batch
from owseg.encoders import Encoder
from owseg.methods import tcl

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden tensors are not beside the repository")

LOSSES = {
    "tcl_v": "tcli_loss",
    "tcl_f": "tclf_loss",
    "area": "area_loss",
    "area_negative": "neg_area_loss",
    "tv_features": "tv_img_loss",
    "tv_masks": "tv_mask_loss",
}
OFFICIAL = (
    (r"^clip_image_encoder\.clip_visual\.", "clip.visual."),
    (r"^clip_image_encoder\.clip_proj\.ln\.", "clip.visual.ln_post."),
    (r"^clip_image_encoder\.clip_proj\.proj", "clip.visual.proj"),
    (r"^clip_text_encoder\.", "clip."),
    (r"^masker\.image_encoder\.backbone\.transformer\.resblocks\.\d+\.", "block."),
    (r"^masker\.image_encoder\.decoder\.decoder\.net\.(\d)\.conv2\.", r"decoder.stages.\1.1."),
    (r"^masker\.image_encoder\.decoder\.decoder\.net\.(\d)\.", r"decoder.stages.\1.0."),
    (r"^masker\.image_encoder\.decoder\.image_proj\.", "projection."),
    (r"^masker\.sim2mask\.w$", "mask_scale"),
    (r"^masker\.sim2mask\.b$", "mask_shift"),
    (r"^tcli_loss\.logit_scale$", "tcl_v_scale"),
    (r"^tclf_loss\.logit_scale$", "tcl_f_scale"),
)


def ours(official: str) -> str:
    for pattern, replacement in OFFICIAL:
        renamed, count = re.subn(pattern, replacement, official)
        if count:
            break
    else:
        raise AssertionError(official)
    return re.sub(r"^(decoder\.stages\.\d\.\d\.)(conv\.conv|conv)\.", r"\1conv.", renamed).replace("gate.gate", "gate")


@pytest.fixture(scope="module")
def method() -> tcl.TclMethod:
    clip = open_clip.CLIP(
        embed_dim=64,
        vision_cfg={"image_size": 224, "layers": 4, "width": 128, "head_width": 64, "patch_size": 16},
        text_cfg={"context_length": 77, "vocab_size": 512, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )
    method = tcl.TclMethod(tcl.Tcl(), Encoder(clip, open_clip.tokenize)).eval()
    state = {}
    for name, value in np.load(GOLDEN / "tcl_weights.npz").items():
        name = re.sub(r"(net\.\d\.)conv\.(norm|conv|gate)", r"\1\2", name)
        state[ours(name)] = torch.from_numpy(value.astype(np.float32))
    missing, unexpected = method.load_state_dict(state, strict=False)
    assert unexpected == []
    assert set(missing) <= {"clip.logit_scale"}, missing
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(not name.startswith("clip."))
    return method


@pytest.mark.parametrize("case", ["tcl_case1.npz", "tcl_case2.npz"])
def test_losses_and_gradients(method: tcl.TclMethod, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = np.load(GOLDEN / case)
    image = torch.from_numpy(golden["image"].astype(np.float32))
    tokens = torch.from_numpy(golden["text_tokens"].astype(np.int64))
    # The recorded noise is the raw stream: rand_like fills in memory order, and the official logits, fresh from einsum,
    # lie in memory as [B, H, W, N] although their shape is [B, N, H, W].
    stream = torch.from_numpy(golden["gumbel_uniform"].astype(np.float32))
    images, texts, height, width = stream.shape
    uniform = stream.reshape(images, height, width, texts).permute(0, 3, 1, 2)
    rows = torch.arange(len(image))
    monkeypatch.setattr(torch, "rand_like", lambda _: uniform[rows, rows])

    losses = method.losses(Batch(image, tokens, [], []))

    for name, official in LOSSES.items():
        assert losses[name].item() == pytest.approx(float(golden[f"loss/{official}"]), rel=1e-5), name
    method.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(method.named_parameters())
    compared = 0
    for key in golden.files:
        if key.startswith("grad/"):
            name = ours(re.sub(r"(net\.\d\.)conv\.(norm|conv|gate)", r"\1\2", key.removeprefix("grad/")))
            expected = torch.from_numpy(golden[key].astype(np.float32))
            gradient = parameters[name].grad
            assert gradient is not None, name
            assert (gradient - expected).norm() <= 1e-4 * expected.norm() + 1e-9, name
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("case", ["tcl_case1.npz", "tcl_case2.npz"])
@pytest.mark.parametrize(("kp", "key"), [(0.0, "infer/mask_plain"), (0.3, "infer/mask_kp")])
def test_inference(method: tcl.TclMethod, case: str, kp: float, key: str) -> None:
    golden = np.load(GOLDEN / case)
    texts = torch.nn.functional.normalize(torch.from_numpy(golden["infer/text_embeddings"].astype(np.float32)), dim=-1)
    method.config = tcl.Tcl(kp_weight=kp)

    masks = method.segment(torch.from_numpy(golden["infer/image"].astype(np.float32)), texts, background=False)

    expected = torch.from_numpy(golden[key].astype(np.float32) / 65535)
    assert masks.shape == expected.shape
    assert (masks - expected).abs().max() <= 1e-4
