"""Training from plain Python, as docs/training.md shows it: one process, torchrun's two, and tars that img2dataset wrote."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from helpers import tiny
from helpers.download_web import HOST, Web
from helpers.downloads import images
from helpers.paths import PYTHONPATH, REPO
from helpers.tensors import assert_same
from owseg import InputError
from owseg.checkpoint import read_model
from owseg.training import CHECKPOINT, LoopConfig, TrainJob, train

SCRIPT = """
import sys
from pathlib import Path
import torch
from helpers import tiny
from owseg.training import LoopConfig, TrainJob, train

torch.set_num_threads(1)
folder, out = map(Path, sys.argv[1:])
shards = tuple(sorted(folder.glob("*.tar")))
train(TrainJob(method=tiny.clip_config(4), encoder=tiny.encoder_config(folder), shards=shards, out=out))
"""


def job(folder: Path, out: Path, steps: int = 4, **loop: int) -> TrainJob:
    return TrainJob(
        method=tiny.clip_config(steps),
        encoder=tiny.encoder_config(folder),
        shards=tuple(sorted(folder.glob("*.tar"))),
        out=out,
        train=LoopConfig(log_every=1, **loop),  # type: ignore[arg-type]
    )


def ranks(folder: Path, out: Path, number: int) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number), str(script)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, str(folder), str(out)], env=environment, text=True, capture_output=True, check=False)


def test_two_ranks_of_torchrun_learn_what_one_process_does(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "shards", samples=32)
    one = load_file(train(job(tmp_path / "shards", tmp_path / "one")))
    done = ranks(tmp_path / "shards", tmp_path / "two", 2)
    assert done.returncode == 0, done.stderr
    two = load_file(tmp_path / "two" / "method.safetensors")
    assert one.keys() == two.keys()
    assert_same(two, one, rtol=1e-3, atol=2e-5)
    assert read_model(tmp_path / "two").method == tiny.clip_config(4)


def test_it_goes_on_from_its_checkpoint_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_shards(tmp_path / "shards", samples=32)
    whole = load_file(train(job(tmp_path / "shards", tmp_path / "whole", checkpoint_every=2)))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("owseg.training.shutil.copyfile", stop)
        with pytest.raises(KeyboardInterrupt):
            train(job(tmp_path / "shards", tmp_path / "cut", checkpoint_every=2))
    assert json.loads((tmp_path / "cut" / CHECKPOINT / "position.json").read_text())["step"] == 4
    again = load_file(train(job(tmp_path / "shards", tmp_path / "cut", checkpoint_every=2)))
    assert_same(again, whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_tars_of_img2dataset(tmp_path: Path) -> None:
    with Web() as web:
        urls = [url.replace(HOST, f"127.0.0.1:{web.port}") for url in images(16)]
        rows = "".join(f"{url}\ta cat number {number}\n" for number, url in enumerate(urls))
        (tmp_path / "links.tsv").write_text(f"url\tcaption\n{rows}")
        options = {
            "url_list": tmp_path / "links.tsv",
            "output_folder": tmp_path / "tars",
            "input_format": "tsv",
            "url_col": "url",
        }
        options |= {"caption_col": "caption", "output_format": "webdataset", "image_size": 64}
        options |= {"processes_count": 1, "thread_count": 4}
        command = [sys.executable, "-m", "img2dataset.main", *(f"--{name}={value}" for name, value in options.items())]
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}  # or a library of its asks the network
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    tars = sorted((tmp_path / "tars").glob("*.tar"))
    assert tars, done.stderr
    train(job(tmp_path / "tars", tmp_path / "out", steps=2))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["pairs"] for line in lines] == [8, 16]
    assert all(0 < line["data_wait_share"] < 1 for line in lines)


def test_the_pages_code_runs_but_for_its_sizes(tmp_path: Path) -> None:
    page = (REPO / "docs" / "training.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    tiny.write_shards(tmp_path / "cc4m", samples=16)
    small = code.replace("TclConfig()", "tiny.tcl_config(1, 1)").replace(
        'EncoderConfig(pretrained="openai")', 'tiny.encoder_config(Path("cc4m"))'
    )
    assert small.count("tiny.") == 2
    command = [sys.executable, "-c", f"from helpers import tiny\n{small}"]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "tcl" / "model.json").is_file()


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "shards", samples=4)
    with pytest.raises(InputError, match="batch_size"):
        train(job(tmp_path / "shards", tmp_path / "out"))
    with pytest.raises(InputError, match="log_every must be at least 1"):
        LoopConfig(log_every=0)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"seed": 7}, "seed"), ({"method": tiny.clip_config(5)}, "method.phases"), ({"shards": ()}, "shards")],
)
def test_a_training_of_other_settings_is_not_resumed(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    tiny.write_shards(tmp_path / "shards", samples=16)
    first = job(tmp_path / "shards", tmp_path / "out", steps=2)
    before = train(first).read_bytes()
    with pytest.raises(InputError, match=rf"holds a training of other settings: {key} was"):
        train(replace(first, **changes))
    assert train(first).read_bytes() == before


def test_bad_samples_are_named(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "shards", samples=8)
    (shard, *_) = sorted((tmp_path / "shards").glob("*.tar"))
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"\xff\xd8\xff", b"\0\0\0").replace(b"\x89PNG", b"\0\0\0\0"))
    with pytest.raises(
        InputError, match=rf"4 of 8 training samples cannot be used: .*{shard.name}: sample \w+ has an image of"
    ):
        train(job(tmp_path / "shards", tmp_path / "out", steps=1))


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "shards", samples=16)
    with pytest.raises(InputError, match="device: 'nowhere' cannot be used here"):
        train(job(tmp_path / "shards", tmp_path / "out"), device="nowhere")
