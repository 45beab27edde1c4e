"""Train codegen-nano, the small CodeGen that ships with cgverify.

    python tools/train_nano.py cgverify/checkpoint/codegen-nano

It is a byte-level model (vocabulary 256), trained on the Python source of the standard library that runs this script.
Tests and offline runs thus have weights with outliers and peaked attention, which random weights lack. The result is a
Hugging Face folder, stored in float16.
"""

from __future__ import annotations

import math
import sysconfig
import time
from pathlib import Path

import torch
import typer
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CodeGenConfig, CodeGenForCausalLM, PreTrainedTokenizerFast

CONFIG = CodeGenConfig(
    vocab_size=256,
    n_positions=512,
    n_ctx=512,
    n_embd=192,
    n_layer=5,
    n_head=8,
    rotary_dim=16,
    bos_token_id=0,
    eos_token_id=0,
)


def corpus() -> torch.Tensor:
    """Return the bytes of the standard library's Python files, with a NUL between files: uint8 `[bytes]`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts)
    )
    return torch.frombuffer(bytearray(b"\0".join(path.read_bytes() for path in files)), dtype=torch.uint8)


def learning_rate(progress: float, peak: float) -> float:
    """Return a linear warm-up over the first 5 %, then a cosine down to a tenth of the peak."""
    if progress < 0.05:
        return peak * progress / 0.05
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)))


def train(steps: int, batch: int, context: int, seed: int) -> CodeGenForCausalLM:
    torch.manual_seed(seed)
    data = corpus()
    model = CodeGenForCausalLM(CONFIG).train()
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / steps, peak=3e-3)
        starts = torch.randint(0, len(data) - context, (batch,))
        tokens = torch.stack([data[s : s + context] for s in starts.tolist()]).long()
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            spent = time.monotonic() - started
            print(f"step {step:5d}  loss {loss.item():.3f} nats/byte  {spent:.0f} s", flush=True)
    return model.eval()


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer of bytes: the token of byte b is b. NUL, which separates files, starts and ends a text."""
    letter = {ord(letter): letter for letter in ByteLevel.alphabet() if ord(letter) < 256}
    others = (chr(256 + index) for index in range(256))  # bytes that are not printable, as ByteLevel numbers them
    letters = [letter.get(byte) or next(others) for byte in range(256)]
    letters[0] = "\0"
    tokenizer = Tokenizer(BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "\0")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONFIG.n_positions, clean_up_tokenization_spaces=False, **special
    ).save_pretrained(folder)


def main(output: Path, steps: int = 1500, batch: int = 16, context: int = 192, seed: int = 0) -> None:
    train(steps, batch, context, seed).half().save_pretrained(output)
    save_tokenizer(output)


if __name__ == "__main__":
    typer.run(main)
