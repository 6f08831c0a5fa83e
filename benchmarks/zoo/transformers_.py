"""Transformers and kin: transformers' own classes from small configurations.

Needs `pip install 'transformers==5.23.*'`; without it the zoo leaves these subjects out, and says so. Nothing is loaded
from elsewhere: weights are random, then trained for some steps. DETR's backbone is a ResNet of transformers', so that
neither timm nor torchvision is needed.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo.data import (
    CLASSES,
    SIZE,
    TOKENS,
    next_tokens,
    scenes,
    sentences,
    stripes,
    sweeps,
    tones,
    topics,
)
from benchmarks.zoo.subject import Subject, trained


class ByName(nn.Module):
    """Calls a network with its inputs by name, for training alone."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Any:
        """What the network returns."""
        return self.network(**dict(zip(self.names, inputs, strict=True)))


def _trained(
    network: Callable[[], nn.Module],
    names: tuple[str, ...],
    draw: Callable[[int, torch.Generator], tuple[Any, ...]],
    loss: Callable[[Any, Any], Tensor],
    task: str,
    *,
    steps: int = 120,
    rate: float = 2e-3,
    labelled: bool = True,
) -> Subject:
    """As `trained`, with batches that are dicts; labels under `labels`."""
    subject = trained(lambda: ByName(network(), names), draw, loss, task, steps=steps, rate=rate, labelled=labelled)
    keys = (*names, "labels") if labelled else names
    calibration, test = (
        [dict(zip(keys, batch, strict=True)) for batch in part] for part in (subject.calibration, subject.test)
    )
    return Subject(subject.model.network, calibration, test, task)


def _classes(found: Any, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(found.logits, wanted)


def _tokens(found: Any, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(found.logits.flatten(0, 1), wanted.flatten())


def _padded(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [N, T] with zeros at the end of some, the mask of the others, and topics [N]."""
    tokens, topic = topics(count, generator)
    length = torch.randint(tokens.shape[1] // 2, tokens.shape[1] + 1, (count, 1), generator=generator)
    mask = (torch.arange(tokens.shape[1]) < length).long()
    return tokens * mask, mask, topic


def bert() -> Subject:
    """BERT that classifies sentences, some of them padded."""
    config = hf.BertConfig(
        vocab_size=TOKENS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=32, num_labels=CLASSES,
    )  # fmt: skip
    names = ("input_ids", "attention_mask")
    return _trained(
        lambda: hf.BertForSequenceClassification(config), names, _padded, _classes, "classification", steps=200
    )


def distilbert() -> Subject:
    """DistilBERT that labels tokens."""
    config = hf.DistilBertConfig(
        vocab_size=TOKENS, dim=64, n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=32, num_labels=4
    )

    def tagged(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        tokens = sentences(count, generator)
        return tokens, (tokens + tokens.roll(1, dims=1)) % 4

    return _trained(
        lambda: hf.DistilBertForTokenClassification(config), ("input_ids",), tagged, _tokens, "language", steps=250
    )


def gpt2() -> Subject:
    """GPT-2: its linear layers are convolutions of one position, that is `addmm`."""
    config = hf.GPT2Config(
        vocab_size=TOKENS,
        n_positions=32,
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    return _trained(lambda: hf.GPT2LMHeadModel(config), ("input_ids",), next_tokens, _tokens, "language")


def llama() -> Subject:
    """Llama: rotary positions, RMS norms, gated layers, fewer keys than queries."""
    config = hf.LlamaConfig(
        vocab_size=TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    return _trained(lambda: hf.LlamaForCausalLM(config), ("input_ids",), next_tokens, _tokens, "language")


def qwen3() -> Subject:
    """Qwen3: as Llama, with norms of queries and keys and one matrix for tokens in and out."""
    config = hf.Qwen3Config(
        vocab_size=TOKENS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, use_cache=False, tie_word_embeddings=True,
    )  # fmt: skip
    return _trained(lambda: hf.Qwen3ForCausalLM(config), ("input_ids",), next_tokens, _tokens, "language")


def t5() -> Subject:
    """T5: an encoder and a decoder with learned biases of distances, which repeats sentences backwards."""
    config = hf.T5Config(
        vocab_size=TOKENS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip

    def backwards(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        tokens = sentences(count, generator, 16)
        wanted = tokens.flip(1)
        return tokens, functional.pad(wanted[:, :-1], (1, 0)), wanted

    names = ("input_ids", "decoder_input_ids")
    return _trained(lambda: hf.T5ForConditionalGeneration(config), names, backwards, _tokens, "language", steps=200)


def whisper() -> Subject:
    """Whisper: an encoder of spectrograms and a decoder of tokens, which spells the two quarters of a sweep."""
    config = hf.WhisperConfig(
        vocab_size=TOKENS, num_mel_bins=32, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_source_positions=32,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        use_cache=False, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip

    def spelled(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        spectrograms, pair = sweeps(count, generator, frames=64)
        wanted = torch.stack([3 + pair // 4, 7 + pair % 4, torch.full_like(pair, 2)], dim=1)
        return spectrograms, functional.pad(wanted[:, :-1], (1, 0), value=1), wanted

    names = ("input_features", "decoder_input_ids")
    return _trained(lambda: hf.WhisperForConditionalGeneration(config), names, spelled, _tokens, "language")


def wav2vec2() -> Subject:
    """Wav2Vec2: convolutions over sound, a grouped convolution for positions under weight norm, attention."""
    config = hf.Wav2Vec2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=(32, 32, 32),
        conv_stride=(4, 2, 2), conv_kernel=(8, 4, 4), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        num_feat_extract_layers=3, num_labels=CLASSES, classifier_proj_size=32, apply_spec_augment=False,
    )  # fmt: skip

    def sounds(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sound, pitch = tones(count, generator)
        return sound.squeeze(1), pitch

    return _trained(
        lambda: hf.Wav2Vec2ForSequenceClassification(config), ("input_values",), sounds, _classes, "classification"
    )


def vit() -> Subject:
    """The vision transformer."""
    config = hf.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=SIZE,
        patch_size=4, num_labels=CLASSES,
    )  # fmt: skip
    return _trained(
        lambda: hf.ViTForImageClassification(config), ("pixel_values",), stripes, _classes, "classification"
    )


def swin() -> Subject:
    """Swin: attention in windows that shift, with learned biases."""
    config = hf.SwinConfig(
        image_size=SIZE, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=CLASSES
    )
    return _trained(
        lambda: hf.SwinForImageClassification(config), ("pixel_values",), stripes, _classes, "classification"
    )


def convnextv2() -> Subject:
    """ConvNeXtV2: depthwise kernels of 7, layer norms, a norm of responses over the picture."""
    config = hf.ConvNextV2Config(
        image_size=SIZE, patch_size=2, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 2, 1], num_labels=CLASSES
    )
    return _trained(
        lambda: hf.ConvNextV2ForImageClassification(config), ("pixel_values",), stripes, _classes, "classification"
    )


def segformer() -> Subject:
    """SegFormer: attention to a coarser picture, a head that joins four sizes; logits of every fourth pixel."""
    config = hf.SegformerConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4], mlp_ratios=[2, 2, 2, 2],
        sr_ratios=[4, 2, 1, 1], decoder_hidden_size=32, num_labels=3,
    )  # fmt: skip

    def masks(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, mask, _ = scenes(count, generator)
        return images, mask[:, 2::4, 2::4].contiguous()

    return _trained(
        lambda: hf.SegformerForSemanticSegmentation(config), ("pixel_values",), masks, _classes, "segmentation"
    )


def detr() -> Subject:
    """DETR: a ResNet, an encoder, a decoder of queries; logits and boxes. Here query k is for object k."""
    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32], depths=[1, 1, 1], layer_type="basic", out_features=["stage3"]
    )
    config = hf.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=48,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96,
        decoder_ffn_dim=96, num_queries=4, num_labels=2, init_std=0.15,
    )  # fmt: skip

    def images(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn, _, boxes = scenes(count, generator)
        return drawn, boxes / SIZE

    def loss(found: Any, boxes: Tensor) -> Tensor:
        kinds = torch.tensor([0, 1, 2, 2]).expand(len(boxes), 4)
        labels = functional.cross_entropy(found.logits.flatten(0, 1), kinds.flatten())
        return labels + 5 * (found.pred_boxes[:, :2] - boxes).abs().mean()

    return _trained(
        lambda: hf.DetrForObjectDetection(config),
        ("pixel_values",),
        images,
        loss,
        "detection",
        labelled=False,
        rate=1e-3,
        steps=250,
    )


def clip() -> Subject:
    """CLIP: pictures and sentences in one space; the embeddings of both, and their likeness."""
    text = {
        "vocab_size": TOKENS, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": TOKENS - 1,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": SIZE, "patch_size": 4,
    }  # fmt: skip
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)

    def pairs(count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        pictures, direction = stripes(count, generator)
        tokens = 1 + 7 * direction.unsqueeze(1) + torch.randint(7, (count, 12), generator=generator)
        return functional.pad(tokens, (0, 1), value=TOKENS - 1), pictures, direction

    def loss(found: Any, direction: Tensor) -> Tensor:
        same = (direction.unsqueeze(0) == direction.unsqueeze(1)).float()
        return functional.cross_entropy(
            found.text_embeds @ found.image_embeds.t() * 10, same / same.sum(1, keepdim=True)
        )

    names = ("input_ids", "pixel_values")
    return _trained(lambda: Embedded(hf.CLIPModel(config)), names, pairs, loss, "regression", labelled=False)


class Embedded(nn.Module):
    """CLIP's embeddings of both, as it is deployed; the likeness of all pairs of a batch would depend on the batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Any:
        """Embeddings of sentences and of pictures."""
        found = self.network(input_ids=input_ids, pixel_values=pixel_values)
        return hf.utils.ModelOutput(text_embeds=found.text_embeds, image_embeds=found.image_embeds)


def mamba() -> Subject:
    """Mamba: a state space scanned step by step."""
    config = hf.MambaConfig(
        vocab_size=TOKENS, hidden_size=48, state_size=8, num_hidden_layers=2, use_cache=False, use_mambapy=False
    )
    return _trained(lambda: hf.MambaForCausalLM(config), ("input_ids",), next_tokens, _tokens, "language", steps=40)
