#!/usr/bin/env python3
"""Writes a hand-built Llama that greedily says ' 1 2 3 ... N' and then ends (and counts again with ignore_eos).

No training and no randomness in the answer: token embeddings are one-hot, attention and feed-forward write nothing into
the residual stream, and the output matrix maps each token to its successor. The engine's real code paths run; the text
is known to the byte, so that a lost, doubled or reordered piece of a stream shows at once. --pad-mib adds feed-forward
weights without effect, for a realistic load time and memory use.

usage: make_count_gguf.py OUT.gguf [--n 512] [--pad-mib 0] [--ctx 32768] [--layers 1] [--name count-512]
needs: gguf, numpy
"""
import argparse

import gguf
import numpy as np

CONTROL, NORMAL, UNUSED = 3, 1, 5  # token types of the format
BOS, EOS = 0, 1
HEAD_DIM = 32
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + (m.content or '') }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_chars() -> list[str]:
    """GPT-2's printable stand-in for each byte value."""
    values = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    chars = values[:]
    for byte in range(256):
        if byte not in values:
            chars.append(256 + len(values) - 188)
            values.append(byte)
    return [chr(char) for _, char in sorted(zip(values, chars))]


def vocabulary(n: int) -> tuple[list[str], list[int], list[str], list[int]]:
    """Tokens, their types, the merges that build ' 1' ... ' N', and the ids of those numbers."""
    chars = byte_chars()
    tokens = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    types = [CONTROL] * len(tokens)
    tokens += chars
    types += [NORMAL] * len(chars)
    ids = {token: i for i, token in enumerate(tokens)}
    merges: list[str] = []
    numbers = []
    for number in range(1, n + 1):  # ' 42' is (' ' + '4') and then (' 4' + '2')
        token = chars[32]
        for digit in str(number):
            longer = token + digit
            if longer not in ids:
                ids[longer] = len(tokens)
                tokens.append(longer)
                types.append(NORMAL)
                merges.append(f"{token} {digit}")
            token = longer
        numbers.append(ids[token])
    pad = -len(tokens) % 32
    tokens += [f"<|pad{i}|>" for i in range(pad)]
    types += [UNUSED] * pad
    return tokens, types, merges, numbers


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    ask.add_argument("out")
    ask.add_argument("--n", type=int, default=512)
    ask.add_argument("--pad-mib", type=int, default=0)
    ask.add_argument("--ctx", type=int, default=32768)
    ask.add_argument("--layers", type=int, default=1)
    ask.add_argument("--name", default="count-512")
    args = ask.parse_args()

    tokens, types, merges, numbers = vocabulary(args.n)
    size = len(tokens)  # of the vocabulary, and so of the one-hot residual stream
    successor = np.full(size, numbers[0])  # anything leads to ' 1'
    for token, following in zip(numbers, numbers[1:]):
        successor[token] = following
    successor[numbers[-1]] = EOS
    output = np.zeros((size, size), np.float16)
    output[successor, np.arange(size)] = 1.0
    feed = 32
    if args.pad_mib:
        feed = max(32, (args.pad_mib * 2**20 // args.layers // (3 * size * 2)) // 32 * 32)

    out = gguf.GGUFWriter(args.out, "llama")
    out.add_name(args.name)
    out.add_license("CC0-1.0")
    out.add_context_length(args.ctx)
    out.add_embedding_length(size)
    out.add_block_count(args.layers)
    out.add_feed_forward_length(feed)
    out.add_head_count(1)
    out.add_head_count_kv(1)
    out.add_key_length(HEAD_DIM)
    out.add_value_length(HEAD_DIM)
    out.add_rope_dimension_count(HEAD_DIM)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(size)
    out.add_file_type(1)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types(types)
    out.add_token_merges(merges)
    out.add_bos_token_id(BOS)
    out.add_eos_token_id(EOS)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, np.float16)

    out.add_tensor("token_embd.weight", np.eye(size, dtype=np.float16))
    out.add_tensor("output.weight", output)
    out.add_tensor("output_norm.weight", np.ones(size, np.float32))
    for layer in range(args.layers):
        block = f"blk.{layer}."
        out.add_tensor(block + "attn_norm.weight", np.ones(size, np.float32))
        out.add_tensor(block + "ffn_norm.weight", np.ones(size, np.float32))
        for name in ("attn_q", "attn_k", "attn_v"):
            out.add_tensor(f"{block}{name}.weight", zeros(HEAD_DIM, size))
        out.add_tensor(block + "attn_output.weight", zeros(size, HEAD_DIM))
        out.add_tensor(block + "ffn_gate.weight", zeros(feed, size))
        out.add_tensor(block + "ffn_up.weight", zeros(feed, size))
        out.add_tensor(block + "ffn_down.weight", zeros(size, feed))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
