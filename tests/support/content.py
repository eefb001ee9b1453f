"""Items that can be told apart by their pictures, texts and sounds, and small models with random weights."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}
PITCHES = {"red": 200.0, "green": 700.0, "blue": 2400.0}
WORDS = {"red": "a warm red scarf of wool", "green": "garden seeds for spring", "blue": "steel knife with long blade"}
RATE = 8000


def needs_features():
    """Skip the test where the extra is not installed."""
    for package in ("transformers", "sentence_transformers", "soundfile", "PIL"):
        pytest.importorskip(package, reason="the extra `features` is not installed")


def looks(num_items):
    """What each item looks, reads and sounds like, by its id."""
    return {item: list(COLOURS)[item % 3] for item in range(num_items)}


def write_images(folder, num_items=30):
    """An image per item, of a colour and some noise."""
    from PIL import Image

    folder.mkdir()
    for item, look in looks(num_items).items():
        noise = np.random.default_rng(item).integers(-20, 20, (24, 32, 3))
        Image.fromarray((np.array(COLOURS[look]) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{item}.png")
    return folder


def write_texts(path, num_items=30):
    """A table with a title and a description per item."""
    chosen = looks(num_items)
    titles = [f"{WORDS[look]} {item}" for item, look in chosen.items()]
    table = {"item_id": list(chosen), "title": titles, "description": [[WORDS[look]] for look in chosen.values()]}
    parquet.write_table(pa.table(table), path)
    return path


def write_sounds(folder, num_items=30, seconds=0.5):
    """A tone per item, of a pitch and some noise."""
    import soundfile

    folder.mkdir()
    times = np.arange(int(seconds * RATE)) / RATE
    for item, look in looks(num_items).items():
        noise = np.random.default_rng(item).normal(0, 0.01, len(times))
        soundfile.write(folder / f"{item}.wav", 0.5 * np.sin(2 * np.pi * PITCHES[look] * times) + noise, RATE)
    return folder


def image_model(folder):
    """A ViT without a pooler."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    _seed()
    ViTModel(ViTConfig(**size, image_size=16, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def text_model(folder):
    """A BERT whose tokens are words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in WORDS.values() for word in text.split()} | {f"##{digit}" for digit in range(10)})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *map(str, range(10))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    _seed()
    config = BertConfig(**size, vocab_size=len(vocabulary), max_position_embeddings=32)
    BertModel(config).save_pretrained(folder)
    return folder


def sound_model(folder):
    """A wav2vec 2.0 that hears 8,000 samples per second."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    layers = {"conv_dim": (16, 16), "conv_kernel": (40, 8), "conv_stride": (20, 4), "num_feat_extract_layers": 2}
    _seed()
    Wav2Vec2Model(
        Wav2Vec2Config(**size, **layers, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4)
    ).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=False).save_pretrained(folder)
    return folder


def _seed():
    import torch

    torch.manual_seed(3)
