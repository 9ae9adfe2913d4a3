"""Trains the embedded teacher on the embedded rows: `python data/teacher/train.py`, some minutes on one core.

A Llama of 1.7 million parameters, for demonstrations and tests only: it has seen 250 rows, many times. It reads what
`mta-prep parse` gives with the embedded tokenizer `sentencepiece-bpe`.
"""

import math
import random
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.dataset import prepare
from pipeline.read.tokenizers import Encoding
from schemas.config import ParseConfig, SideConfig

HERE = Path(__file__).parent
TOKENIZER = HERE.parent / "tokenizers" / "sentencepiece-bpe"
STEPS = 400
BATCH_TOKENS = 2_048
PEAK = 3e-3
LONGEST = 512


def token_ids() -> list[list[int]]:
    """The teacher's tokens of every embedded row, as a prepared dataset has them."""
    side = SideConfig(tokenizer="embedded:sentencepiece-bpe", max_length=LONGEST)
    config = ParseConfig(inputs=("embedded:sample",), teacher=side, student=side)
    with prepare.planned(config, HERE) as plan:
        stage = prepare.PrepareStage(plan.config)
        rows, _ = stage.render(list(plan.read(0, plan.rows)))
    encodings = stage.tokenizers["teacher"].encode([row for _, row in rows])
    return [item.input_ids.tolist() for item in encodings if isinstance(item, Encoding)]


def main() -> None:
    """Train and store."""
    torch.manual_seed(42)
    shuffle = random.Random(42)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.1, betas=(0.9, 0.95))
    rows = token_ids()
    for step in range(STEPS):
        scale = min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = PEAK * scale
        width = len(shuffle.choice(rows))
        batch = [row[:width] for row in shuffle.sample(rows, len(rows)) if len(row) >= width]
        ids = torch.tensor(batch[: max(1, BATCH_TOKENS // width)])
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step}/{STEPS} loss {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(HERE)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, HERE / file.name)


if __name__ == "__main__":
    main()
