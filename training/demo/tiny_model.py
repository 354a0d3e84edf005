"""A VACE model small enough for a laptop, in diffusers' layout: an autoencoder fitted on a mixture's clips, a random
text encoder over its captions' words, and a random transformer to be taught.

For trying the trainer out, and nothing else: it knows only the clips that it was fitted on.
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
from training.encoding.examples import resized

_LOG = logging.getLogger("vdot_data")
# Steps between two lines that say how far it is.
_SAID = 50
_WORDS = re.compile(r"\w+|[^\w\s]")
# What tells pictures apart after two minutes on two cores: how many come at once, before clips come one by one, and the
# rate for them.
_PICTURES, _RATE = 6, 3e-3
_CARD = "---\nlicense: apache-2.0\n---\n# A tiny VACE model, fitted on a few clips for a demonstration\n"


def make(mixture: str, size: Size, folder: Path, *, pictures: int = 300, steps: int = 250) -> float:
    """Write the model into a folder; how well its autoencoder gives back clips that it was fitted on, in dB of PSNR."""
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    torch.manual_seed(0)
    clips, captions = _seen(mixture, size)
    # Three halvings, of which two in time: diffusers' pipeline counts these, and knows no other way to 8 and 4.
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    psnr = _fit(vae, clips, pictures, steps)
    vae.save_pretrained(folder / "vae")
    _text(folder, captions)
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


def _seen(mixture: str, size: Size) -> tuple[Tensor, list[str]]:
    """Each clip of a mixture once, float [N, 3, T, H, W], and the captions."""
    stream = Stream(mixture, frames=size.frames, rank=0, world=1)
    found: dict[str, Tensor] = {}
    captions: list[str] = []
    for step in islice(stream, 64):
        for batch in step:
            for key, clip in zip(batch.keys, resized(batch, size).arrays["clip"], strict=True):
                found[key] = vcu.pixels(torch.from_numpy(clip))
            captions += batch.captions
    return torch.stack([*found.values()]), captions


def _fit(vae: torch.nn.Module, clips: Tensor, pictures: int, steps: int) -> float:
    """Fit an autoencoder, first on single pictures, then on clips, and note mean and spread of its latents in its
    configuration; PSNR in dB at last."""
    drawn = torch.Generator().manual_seed(0)
    for count, length, number, rate in ((pictures, 1, _PICTURES, _RATE), (steps, clips.shape[2], 1, _RATE / 3)):
        adam = torch.optim.AdamW(vae.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0)
        for step in range(count):
            for group in adam.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 10, 2 * (1 - step / count))
            which = torch.randint(len(clips), (number,), generator=drawn)
            begin = int(torch.randint(clips.shape[2] - length + 1, (), generator=drawn))
            batch = clips[which, :, begin : begin + length]
            loss = (vae.decode(vae.encode(batch).latent_dist.mode()).sample - batch).square().mean()
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            adam.step()
            if (step + 1) % _SAID == 0:
                what = "pictures" if length == 1 else "clips"
                _LOG.info("autoencoder, on %s: step %d of %d  loss %.4f", what, step + 1, count, float(loss))
    vae.eval()
    with torch.no_grad():
        latents = torch.cat([vae.encode(clip[None]).latent_dist.mode() for clip in clips])
        shown = torch.cat([vae.decode(one[None]).sample for one in latents]).clamp(-1, 1)
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3, 4)).tolist(), latents_std=latents.std(dim=(0, 2, 3, 4)).tolist()
    )
    return float(10 * torch.log10(4 / (shown - clips).square().mean()))


def _text(folder: Path, captions: list[str]) -> None:
    """A random text encoder whose words are those of the captions: each gets a direction of its own."""
    from transformers import UMT5Config, UMT5EncoderModel

    words = sorted(set(_words(captions)))
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    UMT5EncoderModel(UMT5Config(vocab_size=len(words) + 3, **sizes)).save_pretrained(folder / "text_encoder")
    tokenizer(words).save_pretrained(folder / "tokenizer")


def tokenizer(words: Sequence[str]) -> Any:
    """A tokenizer that knows these words, in lower case, after three of its own: padding, end, anything else."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))  # noqa: S106
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def _words(captions: list[str]) -> Iterator[str]:
    for caption in captions:
        yield from _WORDS.findall(caption.lower())
