"""An exported folder is the trained student to anyone who opens it, and never half of one."""

import json

import numpy as np
import pytest
import torch
import transformers
import yaml

from schemas import embedded
from schemas.errors import ResourceError, StateError, UserError
from schemas.manifest import read_manifest
from schemas.training import DEFAULT_DATA, StudentConfig, TrainConfig
from trainer.batches.batch import Batch
from trainer.batches.documents import Documents
from trainer.maths.ragged import pointers
from trainer.student import export as exporting
from trainer.student.export import export, export_run, require_tokenizer, student_tokenizer, whole_model
from trainer.student.model import load_student
from turns import TOLD, conversations

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "intermediate_size": 40},
    "gpt2": {"model_type": "gpt2", **SIZES},  # tied; linear layers the other way round
    "mixtral": {
        "model_type": "mixtral",
        **SIZES,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "num_local_experts": 4,
    },
    "gemma3": {"model_type": "gemma3_text", **SIZES, "num_key_value_heads": 2, "intermediate_size": 40, "head_dim": 6},
}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
TEACHER = {"name": "/home/someone/big`|model", "revision": None, "sha256": "ab" * 32}


@pytest.fixture(scope="module")
def dataset(prepared):
    return read_manifest(prepared)


@pytest.fixture
def trained(prepared):
    """A student of random weights, adapters included, and its config."""

    def make(kind="llama", student=(), **values):
        config = TrainConfig.parse(
            {
                "student": {"init": "config", "config": KINDS[kind], **dict(student)},
                "data": {"dataset": str(prepared)},
                "objectives": {"ce": {}, "dsa": {"weight": {"start": 0.0, "end": 2.0}, "metric": "cosine"}},
                "layers": [{"student": 2, "teacher": 4, "granularity": "words"}],
                **values,
            },
            "test",
        )
        one = load_student(config.student, 0)
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return one.eval(), config

    return make


def write(student, config, dataset, folder, dtype=torch.float32, **values):
    given = {"teacher": TEACHER, "metrics": {"step": 3, "loss": 1.25}} | values
    state = {key: each.clone() for key, each in student.model.state_dict().items()}
    export(state, student.model.config, folder, config=config, dataset=dataset, dtype=dtype, **given)


@torch.no_grad()
def logits_of(student, ids):
    batch = Batch(torch.arange(1), ids, pointers([len(ids)]), ids[:0], pointers([0]), ids[:0])
    return student.head(student(batch, ())[student.depth])


@torch.no_grad()
def opened(folder, ids, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    return model, model(ids[None]).logits[0]


def assert_close(found, expected, tolerance):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


IDS = torch.arange(20) * 37 % 4096


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, LORA])
def test_opened_it_gives_the_students_logits(trained, dataset, tmp_path, kind, lora):
    student, config = trained(kind, {"lora": lora})
    folder = tmp_path / "student"
    write(student, config, dataset, folder)
    model, logits = opened(folder, IDS)
    assert type(model).__name__ == student.architecture
    assert_close(logits, logits_of(student, IDS), 1e-5)
    assert not any("lora" in key for key in model.state_dict())
    assert model.dtype == torch.float32
    assert (folder / "model.safetensors").is_file()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == bool(model.config.tie_word_embeddings)
    # a student goes on from it
    again = load_student(
        config.student.model_copy(update={"model": str(folder), "init": "pretrained", "config": {}}), 0
    )
    if lora is None:
        assert_close(logits_of(again.eval(), IDS), logits, 1e-5)


def test_adapters_change_what_is_exported(trained, dataset, tmp_path):
    student, config = trained("llama", {"lora": LORA})
    before = {key: each.clone() for key, each in student.model.state_dict().items() if "base_layer" in key}
    write(student, config, dataset, tmp_path / "student")
    model, _ = opened(tmp_path / "student", IDS)
    merged = model.state_dict()
    for key, each in before.items():
        assert not torch.equal(merged[key.replace(".base_layer", "")], each)
    # the student itself is as it was
    assert all(torch.equal(each, student.model.state_dict()[key]) for key, each in before.items())


@pytest.mark.parametrize("lora", [None, LORA])
def test_half_precision_is_rounded_once_and_after_merging(trained, dataset, tmp_path, lora):
    student, config = trained("gpt2", {"lora": lora})
    write(student, config, dataset, tmp_path / "exact")
    write(student, config, dataset, tmp_path / "half", dtype=torch.bfloat16)
    exact, half = (opened(tmp_path / name, IDS)[0].state_dict() for name in ("exact", "half"))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    for key, each in exact.items():
        assert torch.equal(half[key], each.to(torch.bfloat16))


def test_a_cut_student_has_its_own_config(trained, dataset, tmp_path):
    whole, config = trained("gemma3")
    write(whole, config, dataset, tmp_path / "whole")
    student, config = trained("gemma3", {"model": str(tmp_path / "whole"), "init": {"layers": [0, 2]}, "config": {}})
    write(student, config, dataset, tmp_path / "cut")
    model, logits = opened(tmp_path / "cut", IDS)
    assert model.config.num_hidden_layers == 2
    assert model.config.layer_types == [whole.model.config.layer_types[layer] for layer in (0, 2)]
    assert_close(logits, logits_of(student, IDS), 1e-5)
    assert "decoder layers 0, 2 of `whole`" in (tmp_path / "cut" / "README.md").read_text()


def test_its_tokenizer_is_the_datasets(trained, dataset, prepared, tmp_path):
    student, config = trained()
    write(student, config, dataset, tmp_path / "student")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    documents = Documents(prepared)
    row = documents.batch(np.array([0]))
    ids = row.ids.tolist()
    assert tokenizer.decode(ids) == student_tokenizer(dataset).decode(ids)
    text = "Two dogs, and a cat.\n"
    assert tokenizer(text).input_ids == student_tokenizer(dataset)(text).input_ids
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "student")
    assert generation.eos_token_id == ids[-1] == tokenizer.eos_token_id
    assert generation.pad_token_id is not None


def test_generation_ends_where_responses_of_the_dataset_end(dataset):
    tokenizer = student_tokenizer(dataset)
    other = tokenizer.convert_ids_to_tokens(300)
    side = dataset.tokenizers["student"] | {"suffix": [other]}
    changed = dataset.model_copy(update={"tokenizers": dataset.tokenizers | {"student": side}})
    assert exporting._generation(tokenizer, changed).eos_token_id == [300, tokenizer.eos_token_id]


def test_the_card_says_what_it_is(trained, dataset, tmp_path):
    student, config = trained("gpt2", {"lora": LORA})
    write(student, config, dataset, tmp_path / "student", metrics={"step": 7, "ce": 2.5, "held_out_loss": 3.125})
    card = (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert "base_model" not in front
    for part in (
        dataset.fingerprint,
        "ab" * 32,
        "GPT2LMHeadModel",
        "3.125",
        "2.5",
        '"end": 2.0',
        "2 ← 4 (words)",
        "LoRA",
    ):
        assert part in card
    assert "licence" in card
    # a name may be anything, and where things lie is left out
    assert "`` big`\\|model ``" in card
    assert "/home/someone" not in card
    assert str(tmp_path) not in card
    assert TrainConfig.parse(TrainConfig.from_yaml(tmp_path / "student" / "training.yaml"), "test") == config


def test_the_card_names_a_base_model_of_the_hub(trained, dataset, tmp_path):
    student, config = trained()
    for init, expected in (("pretrained", "some/model"), ({"layers": [0]}, "some/model"), ("config", None)):
        beginning = {"model": "some/model", "revision": "v1", "init": init}
        named = TrainConfig.parse(config.model_dump() | {"student": beginning}, "test")
        write(student, named, dataset, tmp_path / "student")
        card = (tmp_path / "student" / "README.md").read_text(encoding="utf-8")
        assert yaml.safe_load(card.split("---\n")[1]).get("base_model") == expected
        assert "`some/model`, revision `v1`" in card


def test_an_export_is_replaced_only_by_a_whole_one(trained, dataset, tmp_path, monkeypatch):
    student, config = trained()
    folder = tmp_path / "student"
    write(student, config, dataset, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_arguments, **_options):
        assert {path.name for path in folder.iterdir()} == set(before)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "flush", full)
    with pytest.raises(ResourceError, match="No space left"):
        write(student, config, dataset, folder, metrics={"step": 9})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.undo()
    write(student, config, dataset, folder, metrics={"step": 9})
    assert "| `step` | 9 |" in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_what_is_no_export_is_not_replaced(trained, dataset, tmp_path):
    student, config = trained()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StateError, match="no exported student"):
        write(student, config, dataset, tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


def test_a_state_of_another_model(trained):
    student, _ = trained()
    state = dict(student.model.state_dict())
    del state["model.norm.weight"]
    with pytest.raises(ValueError, match=r"lacking.*norm"):
        whole_model(state, student.model.config, None)
    with pytest.raises(ValueError, match=r"unknown.*projector"):
        whole_model(dict(student.model.state_dict()) | {"projector": torch.ones(1)}, student.model.config, None)


def test_a_tokenizer_that_has_gone(dataset, tmp_path):
    side = dataset.config["student"] | {"tokenizer": str(tmp_path / "gone")}
    moved = dataset.model_copy(update={"config": dataset.config | {"student": side}})
    with pytest.raises(UserError, match=r"student's tokenizer .*gone.*no such folder or file.*put it back there"):
        student_tokenizer(moved)


def test_the_chat_template_of_the_dataset_is_the_students(trained, tmp_path):
    """What the student was trained with is what `apply_chat_template` gives to whoever opens it."""
    side = {"tokenizer": "embedded:sentencepiece-bpe", "template": "alpaca"}
    folder = conversations(tmp_path / "out", student=side)
    student, config = trained("llama", data={"dataset": str(folder)})
    write(student, config, read_manifest(folder), tmp_path / "student")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    documents = Documents(folder)
    for row, told in enumerate(TOLD):
        messages = [{"role": role, "content": said} for role, said in told]
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert ids == documents.tokens("student", np.array([row]))[0].tolist()


def test_a_chat_template_that_has_changed(tmp_path):
    file = tmp_path / "turns.jinja"
    template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}{{ '' if add_generation_prompt }}"
    )
    file.write_text(template, encoding="utf-8")
    side = {"tokenizer": "embedded:sentencepiece-bpe", "template": str(file)}
    manifest = read_manifest(conversations(tmp_path / "out", student=side))
    assert student_tokenizer(manifest).chat_template == template
    file.write_text(template.replace("<", "["), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"chat template .*turns.jinja' is not what it was when the dataset was prepared"
    ):
        student_tokenizer(manifest)


def described(kind):
    return transformers.AutoConfig.for_model(**{**KINDS["llama"], "model_type": kind})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text", "qwen3", "olmo2"])
def test_the_datasets_tokenizer_is_read_back_beside_most_models(prepared, kind):
    config = StudentConfig(init="config", config={"model_type": kind})
    require_tokenizer(Documents(prepared), config, described(kind))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_5_moe_text"])
def test_where_another_tokenizer_would_be_read_back_the_run_does_not_begin(prepared, kind):
    config = StudentConfig(init="config", config={"model_type": kind})
    with pytest.raises(UserError, match=rf"beside a model of type '{kind}' as its own Qwen.*another `model_type`"):
        require_tokenizer(Documents(prepared), config, described(kind))
    with pytest.raises(UserError, match=r"`mta-prep align .* --student some/qwen -o NEW` makes a dataset for"):
        require_tokenizer(Documents(prepared), StudentConfig(model="some/qwen"), described(kind))


def test_a_tokenizer_that_has_changed_since(prepared, tmp_path):
    documents = Documents(prepared)
    other = tmp_path / "other"
    transformers.AutoTokenizer.from_pretrained(embedded.resolve("embedded:sentencepiece-bpe")).save_pretrained(other)
    side = documents.manifest.config["student"] | {"tokenizer": str(other)}
    changed = documents.manifest.model_copy(update={"config": documents.manifest.config | {"student": side}})
    documents.manifest = changed
    with pytest.raises(UserError, match=r"other' gives other tokens than .*Put the old one back"):
        require_tokenizer(documents, StudentConfig(model="any"), described("llama"))


def test_a_run_exports_in_its_own_precision_with_what_it_logged(trained, prepared, tmp_path):
    student, config = trained(precision="bf16")
    records = [
        {"step": 10.0, "loss": 3.0, "ce": 2.0},
        {"step": 10.0, "held_out_loss": 4.5},
        {"step": 20.0, "loss": 1.5, "ce": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    state = student.model.state_dict()
    folder = export_run(state, student, config, {DEFAULT_DATA: Documents(prepared)}, None, tmp_path)
    assert folder == tmp_path / "student"
    card = (folder / "README.md").read_text()
    assert "| `step` | 20 |" in card
    assert "| `held_out_loss` | 4.5 |" in card
    assert "teacher: none" in card
    assert opened(folder, IDS)[0].dtype == torch.bfloat16
