"""Makes a model folder that vLLM will load: a two-layer Llama of random weights with a tokenizer of some 500 tokens.

Strategy: nothing is downloaded. The configuration names a real architecture at toy sizes, the weights come from
`--load-format dummy`, and the tokenizer is trained here on a few sentences. Its chat template is ChatML with the Hermes
convention for tools, so that vLLM's own tool parser and `tool_choice` have something to hold on to.

Head size 32 is the smallest that vLLM's CPU attention takes. Runs in the environment that `setup.py` built,
for it needs the `tokenizers` library; imports nothing of vLLM.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MAX_VOCABULARY = 1024
MAX_MODEL_LEN = 1024

_CORPUS = (
    "a penstock is the gate and the pipe that feed a turbine with water from the dam above it",
    "the weather in Paris and in Oslo is fair today, and in Rome it rains, said the lighthouse keeper",
    "user assistant system tool function name arguments city answer question messages content role",
    '{"name": "get_weather", "arguments": {"city": "Paris"}} {"name": "add", "arguments": {"a": 1, "b": 2}}',
    "one two three four five six seven eight nine ten 0123456789 0.25 1e-05 -17",
    "what is the height of the tower? it is three hundred and thirty metres high, give or take a flag",
)

_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}"
    "{{- '</tools><|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- elif message.content %}{%- for part in message.content %}{{- part.text if part.text else '' }}{%- endfor %}"
    "{%- endif %}"
    "{%- if message.tool_calls %}{%- for call in message.tool_calls %}"
    "{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PLAIN = ("<tool_call>", "</tool_call>")


def config(vocabulary: int) -> dict[str, Any]:
    """`config.json`: one real architecture at the smallest sizes its kernels take, and not a token too many."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _tokenizer(folder: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # type: ignore[import-not-found,unused-ignore]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(_PLAIN),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in _PLAIN])
    tokenizer.save(str(folder / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def make(folder: Path) -> None:
    """Writes the model folder; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = _tokenizer(folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL[0],
        "eos_token": _SPECIAL[2],
        "pad_token": _SPECIAL[0],
        "model_max_length": MAX_MODEL_LEN,
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    generation = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "temperature": 1.0}
    for name, content in (
        ("config.json", config(vocabulary)),
        ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
