"""Small BERTs of random weights, in folders as transformers saves them."""

from pathlib import Path

import torch
import transformers

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] a the two dog cat on road ##s . , ' [ ]"


WORDS = VOCABULARY.split()


SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
}


MORE = {"roberta": {"pad_token_id": 0, "max_position_embeddings": 96}}


def save_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "words.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab=str(folder / "words.txt")).save_pretrained(folder)


def save_bert(folder: Path, kind: str = "bert", **changes: int) -> transformers.PreTrainedModel:
    """A random model of `kind` with its tokenizer in `folder`, in eval mode."""
    settings = {"vocab_size": 40, "max_position_embeddings": 80, **SIZES[kind], **MORE.get(kind, {}), **changes}
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings)).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.3)  # as drawn, biases are zero and norms one
    save_tokenizer(folder)
    model.save_pretrained(folder)
    return model
