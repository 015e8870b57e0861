"""Folders of models: safetensors, configurations, processors that name code, indexes."""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

from .good import PREPROCESSOR
from .values import CANARY, TEXTS, Case, as_json, bent, value


def safetensors(good: Path, rng: random.Random) -> Case:
    """A header that lies about its tensors."""
    folder = rng.choice(("teacher", "hubert", "wavlm"))
    content = (good / folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    for _ in range(rng.choice((1, 1, 2))):
        one = header.setdefault(rng.choice(names), {})
        way = rng.randrange(9)
        if way < 3:
            header = bent(header, rng)
        elif way == 3:
            one["dtype"] = rng.choice(
                ("F64", "F16", "F8_E4M3", "F4", "C64", "U8", "BOOL", "I64", "f32", "", "X" * 10_000, 5)
            )
        elif way == 4:
            one["shape"] = rng.choice(
                ([], [0], [0, 2**63], [2**32, 2**32], [-1], [1.5], [1] * 65, [1] * 5000, "1", None, [2**64])
            )
        elif way == 5:
            end = len(body)
            one["data_offsets"] = rng.choice(
                ([0, 0], [0, end], [end, 0], [-4, 0], [0, 2**63], [0.0, 4.0], [0], [end, end + 4], None)
            )
        elif way == 6:
            many = rng.choice((5, 5_000, 60_000))
            header |= {
                f"layers.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2} for n in range(many)
            }
        elif way == 7:
            header["__metadata__"] = rng.choice(
                ({"format": "pt"}, {"a": 1}, {"a": {}}, "x", None, {"a": "b" * 10**6}, {"\ud800": "x"})
            )
        else:
            header[rng.choice([*TEXTS, "__metadata__"])] = copy.deepcopy(one)
        if not isinstance(header, dict):
            break
        names = list(header) or ["x"]
        header = (
            {name: said if isinstance(said, dict) else {} for name, said in header.items()}
            if rng.random() < 0.5
            else header
        )
        names = [name for name in header if isinstance(header[name], dict)] or ["x"]
    text = as_json(header, rng) + b" " * rng.choice((0, 0, 3, 4096))
    said = rng.choice((len(text),) * 12 + (0, 1, len(text) - 1, len(text) + 8, 2**31, 2**63, 2**64 - 1))
    return Case(
        "safetensors",
        ("import", folder, "--output", "out"),
        {f"{folder}/model.safetensors": struct.pack("<Q", said) + text + body},
        (folder,),
    )


def _folder_command(folder: str, rng: random.Random) -> tuple[str, ...]:
    return rng.choice(
        (
            *(3 * [("import", folder, "--output", "out")]),
            ("profile", folder, "--seconds", "0.5", "--threads", "1"),
            ("export", folder, "--output", "out", "--format", rng.choice(("transformers", "torchaudio", "s3prl"))),
        )
    )


def native_config(good: Path, rng: random.Random) -> Case:
    """A configuration of ours with something wrong, and good weights."""
    tree = bent(json.loads((good / "teacher/config.json").read_text()), rng)
    return Case("config", _folder_command("teacher", rng), {"teacher/config.json": as_json(tree, rng)}, ("teacher",))


MORE_SETTINGS = (
    "auto_map",
    "num_labels",
    "id2label",
    "architectures",
    "adapter_attn_dim",
    "quantization_config",
    "torch_dtype",
)


def transformers_config(good: Path, rng: random.Random) -> Case:
    """A configuration of Transformers' with something wrong, and good weights."""
    folder = rng.choice(("hubert", "wavlm", "wav2vec2", "data2vec"))
    tree = json.loads((good / folder / "config.json").read_text())
    if rng.random() < 0.2:
        tree[rng.choice(MORE_SETTINGS)] = value(rng)
    return Case(
        "config of Transformers",
        _folder_command(folder, rng),
        {f"{folder}/config.json": as_json(bent(tree, rng), rng)},
        (folder,),
    )


def processors(good: Path, rng: random.Random) -> Case:
    """Files beside a model that name code, which is there; and "y" is what standard input would say."""
    folder = rng.choice(("hubert", "wavlm", "wav2vec2"))
    names: dict[str, Any] = {
        "AutoFeatureExtractor": "beside.Beside",
        "AutoProcessor": "beside.Beside",
        "AutoConfig": "beside.Beside",
    }
    names |= {"AutoModel": "beside.Beside", "AutoTokenizer": ["beside.Beside", None]}
    code = (
        f"import pathlib\npathlib.Path(__file__).with_name({CANARY!r}).write_text('ran')\nclass Beside: ...\n".encode()
    )
    tree: Any = dict(PREPROCESSOR)
    files = {f"{folder}/beside.py": code, f"{folder}/modeling_beside.py": code}
    if rng.random() < 0.7:
        tree |= {
            "auto_map": rng.choice((names, "beside.Beside", {"AutoFeatureExtractor": "a/b--beside.Beside"}, value(rng)))
        }
        tree |= {"feature_extractor_type": "Beside", "processor_class": "Beside", "trust_remote_code": True}
    if rng.random() < 0.6:
        tree = bent(tree, rng)
    name = rng.choice(
        ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "adapter_config.json")
    )
    if name == "processor_config.json" and rng.random() < 0.8:
        tree = {"feature_extractor": tree, "auto_map": names}
    files[f"{folder}/{name}"] = as_json(tree, rng)
    if rng.random() < 0.4:
        config = json.loads((good / folder / "config.json").read_text()) | {"auto_map": names}
        files[f"{folder}/config.json"] = json.dumps(config | {"model_type": rng.choice((folder, "beside"))}).encode()
    return Case("processor", _folder_command(folder, rng), files, (folder,))


def indexes(good: Path, rng: random.Random) -> Case:
    """An index of weights in several files."""
    weights = (good / "hubert/model.safetensors").read_bytes()
    names = [
        name for name in json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")]) if name != "__metadata__"
    ]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index: Any = {"metadata": {"total_size": 1}, "weight_map": {name: shards[n % 2] for n, name in enumerate(names)}}
    if rng.random() < 0.5:
        odd = [
            *TEXTS,
            *shards,
            "config.json",
            "model.safetensors.index.json",
            "../teacher/model.safetensors",
            "x.bin",
            "beside.py",
        ]
        for name in rng.sample(names, rng.choice((1, 5, len(names)))):
            index["weight_map"][name] = rng.choice(odd)
    else:
        index = bent(index, rng)
    if rng.random() < 0.1:
        index["weight_map"] = (
            {f"w{n}": f"shard{n}.safetensors" for n in range(50_000)} if isinstance(index, dict) else {}
        )
    name = rng.choice(("model.safetensors", "pytorch_model.bin"))
    files = {
        "folder/config.json": (good / "hubert/config.json").read_bytes(),
        f"folder/{name}.index.json": as_json(index, rng),
    }
    files |= {f"folder/{shard}": weights for shard in (shards if rng.random() < 0.7 else shards[:1])}
    return Case("index", ("import", "folder", "--output", "out"), files)
