"""Image shards in, features out: what the frozen towers of methods such as talk2dino make of images and texts, made once.

Training then reads these in the place of pixels (train.features), which takes minutes. It makes them itself where they are not
there; this verb is for making them apart, on other machines or before.
"""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys

from owseg import InputError
from pipelines.app.checks import check_encoder, check_methods
from pipelines.app.cli import RESTART, VERIFY, main
from pipelines.app.context import open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.own_shards import own_shards
from pipelines.app.resolve import methods_to_train, reads_features
from pipelines.app.settings import Config
from pipelines.download import run_download
from pipelines.filter import run_filter
from pipelines.train import ensure_features, train_towers


def run(config: Config, verify: bool = False) -> None:
    """The verb; stages before it that are not complete, and the towers that the run trains itself, come first."""
    methods = [method for method in methods_to_train(config) if reads_features(config, method)]
    if not methods:
        raise InputError(
            f"features: none of methods=[{', '.join(config.methods)}] reads any; talk2dino does, with "
            "method_settings.talk2dino.augment.crop=centre and train.features=float16 or float32"
        )
    check_encoder(config)
    check_methods(config)
    with open_context(config, verify=verify) as context:
        shards = own_shards(config) if config.train.shards else run_download(context, run_filter(context))
        train_towers(context, shards, methods_to_train(config))
        ensure_features(context, shards, methods)


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags={**RESTART, **VERIFY, **dry_run("features")}))
