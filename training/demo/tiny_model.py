"""A VACE model small enough for a laptop, in diffusers' layout: an autoencoder fitted on a mixture's clips, a random
text encoder over the words of its captions, and a random transformer to teach.

Only for trying out the trainer: it can reconstruct only the clips that it was fitted on.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.config import Size
from training.data.stream import Stream
from training.encoding import vcu
from training.encoding.examples import resize_batch

_LOG = logging.getLogger("vdot_data")
# Steps between two progress lines.
_LOG_EVERY = 50
_WORDS = re.compile(r"\w+|[^\w\s]")
# These give distinguishable pictures after two minutes on two cores: the batch size of pictures, which come before
# single clips, and their learning rate.
_PICTURES, _RATE = 6, 3e-3
_CARD = "---\nlicense: apache-2.0\n---\n# A tiny VACE model, fitted on a few clips for a demonstration\n"


def make(mixture: str, size: Size, folder: Path, *, pictures: int = 300, steps: int = 250) -> float:
    """Write the model into a folder; returns the PSNR in dB of its autoencoder on the clips it was fitted on."""
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    torch.manual_seed(0)
    clips, captions = _collect_clips(mixture, size)
    # Three halvings, two of them also in time: diffusers' pipeline derives its factors 8 and 4 from these.
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    psnr = _fit_autoencoder(vae, clips, pictures, steps)
    vae.save_pretrained(folder / "vae")
    _write_text_encoder(folder, captions)
    WanVACETransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        text_dim=64,
        freq_dim=128,
        ffn_dim=768,
        num_layers=4,
        vace_layers=[0, 2],
        rope_max_seq_len=64,
    ).save_pretrained(folder / "transformer")
    (folder / "README.md").write_text(_CARD)
    return psnr


def _collect_clips(mixture: str, size: Size) -> tuple[Tensor, list[str]]:
    """Each clip of a mixture once, float [N, 3, T, H, W], and the captions."""
    stream = Stream(mixture, frames=size.frames, rank=0, world=1)
    clips: dict[str, Tensor] = {}
    captions: list[str] = []
    for step in islice(stream, 64):
        for batch in step:
            for key, clip in zip(batch.keys, resize_batch(batch, size).arrays["clip"], strict=True):
                clips[key] = vcu.pixels(torch.from_numpy(clip))
            captions += batch.captions
    return torch.stack([*clips.values()]), captions


def _fit_autoencoder(vae: torch.nn.Module, clips: Tensor, pictures: int, steps: int) -> float:
    """Fit an autoencoder, first on single pictures, then on clips, and store the mean and deviation of its latents in
    its configuration; returns the PSNR in dB."""
    rng = torch.Generator().manual_seed(0)
    for count, length, batch_size, rate in ((pictures, 1, _PICTURES, _RATE), (steps, clips.shape[2], 1, _RATE / 3)):
        adam = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0)
        for step in range(count):
            for group in adam.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 10, 2 * (1 - step / count))
            chosen = torch.randint(len(clips), (batch_size,), generator=rng)
            begin = int(torch.randint(clips.shape[2] - length + 1, (), generator=rng))
            batch = clips[chosen, :, begin : begin + length]
            loss = (vae.decode(vae.encode(batch).latent_dist.mode()).sample - batch).square().mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            adam.step()
            if (step + 1) % _LOG_EVERY == 0:
                unit = "pictures" if length == 1 else "clips"
                _LOG.info("autoencoder, on %s: step %d of %d  loss %.4f", unit, step + 1, count, float(loss))
    vae.eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(clip[None]).latent_dist.mode() for clip in clips])
        decoded = torch.cat([vae.decode(latent[None]).sample for latent in latents]).clamp(-1, 1)
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(), latents_std=latents.std(dim=(0, 2, 3, 4)).tolist()
    )
    return float(10 * torch.log10(4 / (decoded - clips).square().mean()))


def _write_text_encoder(folder: Path, captions: list[str]) -> None:
    """Write a random text encoder with the words of the captions: each gets its own random embedding."""
    from transformers import UMT5Config, UMT5EncoderModel

    words = sorted(set(_split_words(captions)))
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    UMT5EncoderModel(UMT5Config(vocab_size=len(words) + 3, **sizes)).save_pretrained(folder / "text_encoder")
    tokenizer(words).save_pretrained(folder / "tokenizer")


def tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer of these words, in lower case, after three special ones: padding, end, unknown."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _split_words(captions: list[str]) -> Iterator[str]:
    for caption in captions:
        yield from _WORDS.findall(caption.lower())
