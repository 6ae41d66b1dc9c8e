"""Time and peak memory of one stage-2 training step of OVSegmentor: the package against the official order of work.

    python benchmarks/ovsegmentor_step.py [--device cuda] [--batch 8] [--rounds 3] [--parts step text image ...]

The reference (references/ovsegmentor_training.py) and the package in both its forms, "official" and "exact", run in a process
each, with the same random weights (ViT-B/16, BERT-base), images and real captions, and take their steps in turn; the first
step of each is left out. A step is losses, backward, clipping, AdamW and the momentum encoder's update. The other parts show
where time goes: each is measured alone, forward and backward where it learns. Memory is a step's peak above what the process
held before it: on a CPU, of its resident set (Linux); on a GPU, of what torch allocated. The texts' lengths decide a lot, so
they are printed.
"""

import argparse
import ctypes
import multiprocessing as mp
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tcl_step import PeakMemory
from torch import Tensor

from owseg.data import Batch
from owseg.methods.ovsegmentor import OvSegmentor, OvSegmentorConfig
from owseg.methods.ovsegmentor.consistency import mask_consistency
from owseg.methods.ovsegmentor.grouping import Binding
from owseg.text import prompt_templates
from references import ovsegmentor_training as reference

VARIANTS = ("reference", "official", "exact")
PARTS = ("step", "text", "image", "momentum", "completion", "masks", "update")
CAPTIONS = Path(__file__).parents[1] / "tests" / "data" / "labelled_captions.tsv"
"""Real captions and their entities."""


class Run(NamedTuple):
    """What one run of a part took."""

    seconds: float
    peak: int


class Facts(NamedTuple):
    """What a variant works on, and what it comes to."""

    lengths: dict[str, list[int]]
    """Tokens of each text, by kind."""
    losses: dict[str, float]
    """The losses without noise of any kind."""


def read_captions(count: int) -> tuple[list[str], list[list[str]]]:
    """`count` captions, drawn from those that name an entity, and the entities of each."""
    lines = [
        line.split("\t") for line in CAPTIONS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]
    drawn = random.Random(0).choices([line for line in lines if line[3]], k=count)
    return [line[1] for line in drawn], [line[3].split(",") for line in drawn]


def write_bert(folder: Path, texts: Sequence[str], **sizes: Any) -> None:
    """A BERT's config (BERT-base's but for `sizes`) and a tokenizer that knows the texts' words, as transformers saves them."""
    from transformers import BertConfig, BertTokenizerFast

    words = set(" ".join(texts).lower().split())
    characters = {character for word in words for character in word}
    pieces = [*sorted(words | characters), *(f"##{character}" for character in sorted(characters))]
    vocabulary = {piece: index for index, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder)
    BertConfig(**sizes).save_pretrained(folder)


def build(variant: str, folder: Path) -> OvSegmentor:
    """The method with random weights, ready for its second phase."""
    torch.manual_seed(0)
    config = OvSegmentorConfig(text_tower=str(folder), fidelity="exact" if variant == "exact" else "official")
    method = config.build(None).train()
    phase = config.phases[1]
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name.startswith(phase.train))
    method.begin_phase(phase)
    return method


class Work:
    """The parts of a step of one variant, each a call that returns what is to be differentiated, if anything is."""

    def __init__(self, variant: str, folder: Path, options: argparse.Namespace) -> None:
        self.method = build(variant, folder).to(options.device)
        self.plain, self.device = variant == "reference", options.device
        captions, entities = read_captions(options.batch)
        randoms = [random.Random(place) for place in range(len(captions))]
        texts = self.method.prepare(captions, entities, [names[0] for names in entities], randoms)
        image, partner = torch.randn(2, options.batch, 3, 224, 224)
        batch = Batch(image, self.method.tokenize(captions), captions, [], texts, partner)
        self.batch = batch.to(torch.device(options.device))
        self.tokens = {"caption": self.batch.tokens, **self.batch.texts}
        with torch.no_grad():
            self.question = (
                self.method.text(self.tokens["question"]) if self.plain else self.method.read(self.tokens)["question"]
            )
        learned = [parameter for parameter in self.method.parameters() if parameter.requires_grad]
        self.learned, self.optimizer = learned, torch.optim.AdamW(learned, lr=1e-6)
        self.autocast = torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.bf16)

    def losses(self) -> dict[str, Tensor]:
        batch = self.batch
        assert batch.partner is not None
        if self.plain:
            return reference.losses(self.method, batch.image, self.tokens, batch.partner)
        return self.method.losses(batch)

    @torch.no_grad()
    def facts(self) -> Facts:
        lengths = {name: self.method.text.real(tokens).sum(dim=1).tolist() for name, tokens in self.tokens.items()}
        self.method.eval()
        losses = {name: loss.item() for name, loss in self.losses().items()}
        self.method.train()
        return Facts(lengths, losses)

    def step(self) -> None:
        with self.autocast:
            total = torch.stack([loss.float() for loss in self.losses().values()]).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 5.0)
        self.optimizer.step()
        self.update()

    def update(self) -> None:
        if self.plain:
            reference.update_momentum(self.method)
        else:
            self.method.after_step()

    @torch.no_grad()
    def text(self) -> None:
        if self.plain:
            for name in reference.TEXTS:
                self.method.text(self.tokens[name])
        else:
            self.method.read(self.tokens)

    def image(self) -> None:
        encoder, image = self.method.encoder, self.batch.image
        seen = reference.see(encoder, image) if self.plain else encoder(image)
        (seen.groups if self.plain else seen.features).square().mean().backward()

    @torch.no_grad()
    def momentum(self) -> None:
        momentum, partner = self.method.momentum, self.batch.partner
        assert momentum is not None
        assert partner is not None
        if self.plain:
            reference.see(momentum, partner)
        elif self.method.official:
            momentum(partner)
        else:
            momentum.bind(partner)

    def completion(self) -> None:
        method, question = self.method, self.question
        groups = torch.randn(len(question.position), method.config.groups, method.encoder.width, device=self.device)
        groups.requires_grad_()
        if self.plain:
            filled = reference.complete(method.completion, question.features, groups)[:, 0]
        else:
            filled = method.completion(question, groups, ignore_padding=method.official)
        filled.square().mean().backward()

    def masks(self) -> None:
        method, size = self.method, len(self.batch.image)
        width, grid, count = method.encoder.width, method.encoder.grid, method.config.groups
        q, others = torch.randn(2, size, count, width, device=self.device)
        keys = torch.randn(size, grid[0] * grid[1], width, device=self.device)
        relevance = torch.randn(size, count, device=self.device)
        q = q.clone().requires_grad_()
        if self.plain:
            loss = reference.mask_consistency(q, reference.Seen(others, others, keys), relevance, grid, (224, 224))
        else:
            other = Binding(others, keys)
            loss = mask_consistency(q, other, relevance, grid=grid, size=(224, 224), official=method.official)
        loss.backward()


def worker(connection: Connection, variant: str, folder: Path, options: argparse.Namespace) -> None:
    """Run a part whenever told to, and answer with what it took."""
    torch.set_num_threads(options.threads)
    work = Work(variant, folder, options)
    memory = PeakMemory(options.device)
    connection.send(work.facts())
    while part := connection.recv():
        work.optimizer.zero_grad(set_to_none=True)
        ctypes.CDLL(None).malloc_trim(0)  # gives back what is free, so that a peak above what is held means what it says
        memory.start()
        began = time.perf_counter()
        getattr(work, part)()
        peak = memory.stop()  # waits for a GPU
        connection.send(Run(time.perf_counter() - began, peak))


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Run all parts of all variants in turn, and print what comes of it."""
    context = mp.get_context("spawn")
    ends: dict[str, Connection[Any, Any]] = {}
    processes = []
    for variant in VARIANTS:
        ends[variant], other = context.Pipe()
        processes.append(context.Process(target=worker, args=(other, variant, folder, options), daemon=True))
        processes[-1].start()
        other.close()  # so that a worker that fails ends its pipe
    report_facts({variant: end.recv() for variant, end in ends.items()})
    for part in options.parts:
        runs: dict[str, list[Run]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.rounds + 1):
            for variant, end in ends.items():
                end.send(part)
                runs[variant].append(end.recv())
        report(part, {variant: taken[1:] for variant, taken in runs.items()})
    for end, process in zip(ends.values(), processes, strict=True):
        end.send("")
        process.join()


def report_facts(facts: dict[str, Facts]) -> None:
    """Print how long texts are, and the losses."""
    for name, lengths in facts["exact"].lengths.items():
        print(f"tokens, {name}: {statistics.mean(lengths):.1f} on average, {min(lengths)} to {max(lengths)}")
    for variant, found in facts.items():
        print(f"losses of {variant}: " + "   ".join(f"{name} {value:.6f}" for name, value in found.losses.items()))


def report(part: str, variants: dict[str, list[Run]]) -> None:
    """Print medians with their spread, and how much faster than the reference each form is."""
    for variant, runs in variants.items():
        seconds = [run.seconds for run in runs]
        ratios = [theirs.seconds / ours.seconds for theirs, ours in zip(variants["reference"], runs, strict=True)]
        print(
            f"{part:10} {variant:10} {statistics.median(seconds):8.3f} s ({min(seconds):.3f} to {max(seconds):.3f})   "
            f"{statistics.median(ratios):5.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{max(run.peak for run in runs) / 2**20:6.0f} MiB",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each part and variant")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bf16", action="store_true", help="losses under autocast, as DeepSpeed runs them")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    with tempfile.TemporaryDirectory(prefix="owseg-bert-") as name:
        captions, entities = read_captions(options.batch)
        write_bert(Path(name), [*captions, *chain(*entities), *prompt_templates("imagenet80")])
        measure(Path(name), options)
