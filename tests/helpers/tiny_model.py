"""Writes a minimal model with random weights in diffusers' layout, without network access."""

from __future__ import annotations

from pathlib import Path

WORDS = ["a", "red", "square", "moves", "over", "squares", "the", "dog", "runs", "fast"]
CARD = "---\nlicense: apache-2.0\ntags: [test]\n---\n# Tiny\n"


def write(folder: Path, seed: int = 0) -> Path:
    """Write transformer, autoencoder, text encoder, tokenizer and card into a folder, and return it. Weights depend on
    the seed."""
    import torch
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    from training.demo.tiny_model import tokenizer

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
        # Otherwise its latents would hardly depend on the picture.
        with torch.no_grad():
            vae.quant_conv.weight.mul_(30)
        vae.save_pretrained(folder / "vae")
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4}
        UMT5EncoderModel(UMT5Config(vocab_size=32, **sizes)).save_pretrained(folder / "text_encoder")
        # As in diffusers' own tests: tests/pipelines/wan/test_wan_vace.py
        WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=sizes["d_model"],
            freq_dim=256,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
            vace_layers=[0, 2],
            vace_in_channels=96,
        ).save_pretrained(folder / "transformer")
    tokenizer(WORDS).save_pretrained(folder / "tokenizer")
    (folder / "README.md").write_text(CARD)
    return folder
