"""Who saw an image, on a small run without Ray: its shard, its steps, and that nothing later has it once it is forgotten."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.tracking import TrackingConfig
from filtering.captions.corpus import FilterConfig
from filtering.captions.reader import SourceConfig
from filtering.link_set import FORGOTTEN, LinkSet, read_links
from filtering.shards import run_local
from helpers import tiny
from helpers.download_web import HOST, Web
from helpers.downloads import config_for, images
from owseg import InputError
from owseg.encoders import PRETRAIN
from owseg.exposure import keys_of_step
from owseg.fit import WEIGHTS
from owseg.methods import Methods
from owseg.training import TrainJob, train
from pipelines import download, filter, lineage
from pipelines.app.context import open_context
from pipelines.app.run_dir import open_run_dir, prepare_run_dir
from pipelines.app.settings import Config
from pipelines.lineages.look_up import RECORD
from pipelines.lineages.places import downloaded
from pipelines.train import job_of, set_other_aside

LINKS = 26
STEPS = 6


@dataclass
class Small:
    """A run in a folder, made stage by stage."""

    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    def make_data(self) -> tuple[dict[str, Any], str]:
        """Filter and download; what the filter came to, and the digest of the shards."""
        with open_run_dir(self.config, None) as config, open_context(config) as context:
            corpus = filter.run_filter(context)
            shards = download.run_download(context, corpus)
        return corpus, str(shards["digest"])

    def job(self) -> TrainJob:
        method = self.config.method_settings.ovsegmentor
        return job_of(self.config, method, replace(self.config.encoder, pretrained=PRETRAIN), self.folder)

    def train(self, shards: str) -> None:
        """Plain training, in the folder and with the marks of the stage."""
        set_other_aside(self.job().out, shards)
        train(self.job())

    def keys(self) -> set[str]:
        """Of all samples in the tars."""
        found = set()
        for path in self.folder.glob("shards/*.tar"):
            with tarfile.open(path) as tar:
                found |= {name.partition(".")[0] for name in tar.getnames()}
        return found


@pytest.fixture
def small(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    for verb in (filter, download):
        monkeypatch.setattr(verb, "run_on_ray", lambda *_: run_local)
    urls = [*images(LINKS), f"http://{HOST}/image?seed=0"]  # the last link is the first one with another caption
    lines = [f"{url}\ta {('dog', 'cat')[at % 2]} in picture {at}" for at, url in enumerate(urls)]
    (tmp_path / "links.tsv").write_text("\n".join([*lines, f"http://{HOST}/other\tno"]))
    config = Config(
        run_dir=str(tmp_path / "run"),
        filter=FilterConfig(source=SourceConfig(path=str(tmp_path / "links.tsv")), min_count=1, shards=1),
        download=config_for(web, shard_size=20),
        encoder=tiny.encoder_config(tmp_path),
        methods=("ovsegmentor",),
        method_settings=Methods(ovsegmentor=tiny.ovsegmentor_config(4, 2)),
        tracking=TrackingConfig(enabled=False),
    )
    return Small(config)


@pytest.fixture
def ask(small: Small, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The verb's JSON, or with `code` the line that it ends with."""

    def run(*words: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert lineage.main([*words, f"run_dir={small.folder}", "--json"]) == code
        out, err = capsys.readouterr()
        return err if code else json.loads(out)

    return run


def steps_with(job: TrainJob, key: str) -> list[list[int]]:
    """Steps and places of a key, by the batches themselves."""
    return [[step, at] for step in range(STEPS) for at, one in enumerate(keys_of_step(job, step)) if one == key]


def look_in_other_ways(answer: dict[str, Any], image: bytes, ask: Callable[..., Any], folder: Path) -> None:
    """However it is asked for, it is the same image; what the run has not met, or has dropped, is told."""
    url, key = answer["download"][0]["url"], answer["places"][0]["key"]
    (folder / "some.txt").write_text(f"# asked for\n{url.upper().replace('/IMAGE?SEED', '/image?seed')}\n\nnone\n")
    spelt, unknown = ask(str(folder / "some.txt"))
    assert (spelt["places"], spelt["trainings"]) == (answer["places"], answer["trainings"])
    assert (unknown["corpus"], unknown["download"], unknown["trainings"]) == ([], [], [])
    Image.open(io.BytesIO(image)).save(folder / "other.png")
    [alike] = [one for one in ask(str(folder / "other.png")) if one["name"] == key]
    assert "looks like it" in alike["download"][0]["likeness"]
    assert ask(f"http://{HOST}/other")[0]["corpus"][0]["status"] == "too_short"


def test_an_image_is_followed_to_its_steps_and_is_in_nothing_later_once_it_is_forgotten(
    small: Small, web: Web, ask: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, digest = small.make_data()
    assert "forgotten" not in corpus["dropped"]
    small.train(digest)
    job, old = small.job(), small.folder / "train" / "ovsegmentor"
    key = next(key for key in keys_of_step(job, 0) if len(steps_with(job, key)) > 1)

    [answer] = ask(key)
    [place], [training] = answer["places"], answer["trainings"]
    assert [row["status"] for row in answer["download"]] == ["success"]
    with tarfile.open(place["tar"]) as tar:
        member = tar.getmember(f"{key}.jpg")
        assert (place["offset"], place["bytes"]) == (member.offset_data, member.size)
        image = tar.extractfile(member).read()  # type: ignore[union-attr]
    assert (training["training"], training["steps"], training["unknown"]) == ("train/ovsegmentor", STEPS, "")
    assert training["shown"] == steps_with(job, key)
    assert {one["path"].rpartition("/")[2]: one["times"] for one in training["checkpoints"]} == {
        name: len(training["shown"]) + len(training["partner"]) for name in ("checkpoint", WEIGHTS)
    }

    look_in_other_ways(answer, image, ask, tmp_path)
    assert lineage.main([key, f"run_dir={small.folder}"]) == 0
    assert f"step {training['shown'][0][0]} place {training['shown'][0][1]}" in capsys.readouterr().out

    # Forgotten by its key: the list names the link, once, however often it is asked.
    url = answer["download"][0]["url"]
    (tmp_path / "out.txt").write_text(key)
    ask("--forget", str(tmp_path / "out.txt"))
    listed = (small.folder / FORGOTTEN).read_bytes(), (small.folder / RECORD).read_bytes()
    assert set(read_links(small.folder / FORGOTTEN).names) == {key, url}
    ask("--forget", str(tmp_path / "out.txt"))
    assert ((small.folder / FORGOTTEN).read_bytes(), (small.folder / RECORD).read_bytes()) == listed

    before, asked = small.keys(), dict(web.requests)
    others = {path: path.read_bytes() for path in small.folder.glob("shards/*.tar") if str(path) != place["tar"]}
    corpus, digest = small.make_data()
    assert corpus["dropped"]["forgotten"] == len(answer["corpus"])
    assert small.keys() == before - {key}
    assert web.requests == asked
    assert {path: path.read_bytes() for path in others} == others
    rows = [row for path in small.folder.glob("shards/*.parquet") for row in pq.read_table(path)["url"].to_pylist()]
    assert url not in rows

    # A training that has begun with it is not gone on from; the next one has it in no batch, also where it resumes.
    with pytest.raises(InputError, match="holds a training of other settings"):
        train(small.job())
    weights = (old / WEIGHTS).read_bytes()
    small.train(digest)
    assert all(key not in keys_of_step(small.job(), step) for step in range(STEPS))
    [answer] = ask(key)
    [known] = answer["before"]
    assert (answer["forgotten"], answer["places"], answer["trainings"]) == (True, [], [])
    assert known["answer"]["trainings"][0]["shown"] == training["shown"]
    kept = small.folder / known["answer"]["trainings"][0]["checkpoints"][-1]["path"]
    assert kept.read_bytes() == weights
    assert ask(next(iter(small.keys())))[0]["trainings"][-1]["unknown"]  # by the one that lies aside, on other shards


def test_tables_of_older_versions_and_damaged_ones(tmp_path: Path) -> None:
    """What a table does not have is not known; one that cannot be read is named."""
    table = pa.table({"key": ["k"], "url": ["http://a.test/b"], "status": ["success"], "error_message": [None]})
    pq.write_table(table.cast(pa.schema([(name, pa.string()) for name in table.column_names])), tmp_path / "00000.parquet")
    [found] = downloaded(tmp_path, LinkSet(("http://a.test/b",)))
    assert (found.key, found.keys, found.status) == ("k", ["k"], "success")
    (tmp_path / "00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"00001\.parquet: is damaged .* start the run again"):
        downloaded(tmp_path, LinkSet(("k",)))


def test_mistakes_are_told(small: Small, ask: Callable[..., Any], tmp_path: Path) -> None:
    assert "no such folder" in ask("key", code=2)
    small.folder.mkdir()
    assert "holds no run" in ask("key", code=2)
    prepare_run_dir(small.config)
    assert "give what to look for" in ask(code=2)
    assert "no such file" in ask("some/file.txt", code=2)
    (tmp_path / "empty.txt").write_text("# nothing\n")
    assert "names no link and no key" in ask("--forget", str(tmp_path / "empty.txt"), code=2)
    (tmp_path / "wrong.txt").write_text("key\nno key at all\n")
    assert "line 2 is neither" in ask("--forget", str(tmp_path / "wrong.txt"), code=2)
    (small.folder / "corpus").symlink_to(tmp_path)
    (tmp_path / "right.txt").write_text("key\n")
    assert "share" in ask("--forget", str(tmp_path / "right.txt"), code=2)
    assert not (small.folder / FORGOTTEN).exists()
