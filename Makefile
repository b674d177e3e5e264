# make demo        run the whole pipeline on synthetic speech; ends with a results table
# make demo-offline  the same for the offline family: tagged transcripts, written when the whole clip has been heard
# make serve       tags while you speak, on the tiny base: open http://127.0.0.1:8000 in a browser
# make test        style check and tests, in two processes (about 5½ minutes on 2 cores)
# make hostile     bad inputs and failures: kills, full disks, malformed rows, two machines; then all slow tests
# make test-wheel  install the wheel into a fresh environment and test it (a few minutes, mostly downloads)
# make bench       speedups over a plain baseline, on the demo's data; at full size if there is a CUDA GPU
# make scaling     pack 20,000 rows: time, memory, disk (about 8 minutes on 2 cores)
# make soak        30 minutes of live clients against a server: memory, step time, every utterance (docs/benchmarks.md)
# make configs     rewrite the comments in configs/ and docs/configuration.md from the config models
# make study       the studies in docs/studies, with three seeds each (about 5 hours on 2 cores)
# make page        fetch wavesurfer.js for the server's web page, if the installation could not (needs npm)
# make chaos       random kills, full disks and concurrent runs against every stage (about 8 minutes): docs/reliability.md
# Every target first installs what is missing into .venv. The demo skips finished steps; `make clean-demo` starts over.
PYTHON ?= python3
BIN := .venv/bin
EVOXTRAL := $(BIN)/evoxtral
DEMO := runs/demo
CONFIGS := configs/demo

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: chaos configs demo demo-offline serve soak test hostile test-wheel bench scaling study install tiny-base tiny-offline-base tiny-tagger clean-demo

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "evoxtral needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/pytest -m "not slow" --ignore tests/hostile --numprocesses 2 --dist worksteal

hostile: .venv/installed
	$(BIN)/pytest tests/hostile --numprocesses 2 --dist worksteal --durations 10
	$(BIN)/pytest tests --ignore tests/hostile -m slow --numprocesses 2 --dist worksteal

test-wheel: .venv/installed
	EVOXTRAL_TEST_WHEEL_ANEW=1 $(BIN)/pytest tests/test_wheel.py

serve: .venv/installed
	$(EVOXTRAL) serve configs/serve.yaml --base data/tiny-base --adapter data/tiny-tagger

demo: $(DEMO)/comparison.txt $(DEMO)/transcripts.txt
	@cat $^

$(DEMO)/data/complete.json: $(CONFIGS)/synth.yaml | .venv/installed
	$(EVOXTRAL) data synth $< --overwrite

$(DEMO)/packed/complete.json: $(CONFIGS)/pack.yaml $(DEMO)/data/complete.json
	$(EVOXTRAL) data check $<
	$(EVOXTRAL) data pack $< --overwrite

$(DEMO)/sft/complete.json: $(CONFIGS)/sft.yaml $(DEMO)/packed/complete.json
	$(EVOXTRAL) sft $< --overwrite

$(DEMO)/eval-sft/complete.json: $(CONFIGS)/eval-sft.yaml $(DEMO)/sft/complete.json
	$(EVOXTRAL) eval $< --overwrite

# RAFT's verifier, where the demo has one: it scores clips without reading their text.
PROBE := $(patsubst $(CONFIGS)/%.yaml,$(DEMO)/%/complete.json,$(wildcard $(CONFIGS)/probe.yaml))

$(DEMO)/probe/complete.json: $(CONFIGS)/probe.yaml $(DEMO)/packed/complete.json
	$(EVOXTRAL) probe $< --overwrite

$(DEMO)/raft/result/complete.json: $(CONFIGS)/raft.yaml $(DEMO)/sft/complete.json $(DEMO)/eval-sft/complete.json $(PROBE)
	$(EVOXTRAL) raft run $< --overwrite

$(DEMO)/eval-raft/complete.json: $(CONFIGS)/eval-raft.yaml $(DEMO)/raft/result/complete.json
	$(EVOXTRAL) eval $< --overwrite

$(DEMO)/comparison.txt: $(DEMO)/eval-sft/complete.json $(DEMO)/eval-raft/complete.json
	$(EVOXTRAL) compare $(DEMO)/eval-sft $(DEMO)/eval-raft --output $(DEMO)/comparison >$@.part
	mv $@.part $@

$(DEMO)/transcripts.txt: $(CONFIGS)/transcribe.yaml $(DEMO)/raft/result/complete.json
	$(EVOXTRAL) transcribe --config $< --overwrite >$@.part
	mv $@.part $@

demo-offline:
	$(MAKE) demo DEMO=runs/demo-offline CONFIGS=configs/offline/demo

clean-demo:
	rm -rf $(DEMO) runs/demo-offline

# Speedups, measured on the demo's dataset and adapter. Without a GPU, full_size.py says so and fails; bench continues.
bench: $(DEMO)/sft/complete.json
	$(BIN)/python benchmarks/cached_audio.py --dataset $(DEMO)/packed
	$(BIN)/python benchmarks/generation.py --dataset $(DEMO)/packed --adapter $(DEMO)/sft
	$(BIN)/python benchmarks/together.py --recordings $(DEMO)/data/audio --adapter $(DEMO)/sft
	-$(BIN)/python benchmarks/full_size.py

.PHONY: page
page: .venv/installed
	$(BIN)/python hatch_build.py

chaos: .venv/installed
	$(BIN)/python benchmarks/chaos.py --document docs/reliability.md

soak: $(DEMO)/data/complete.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py --json docs/serving-soak.json --document docs/benchmarks.md

# Measures the figures in docs/scaling.md.
scaling: .venv/installed
	$(BIN)/python benchmarks/packing.py --rounds 3 --json docs/scaling.json

# Writes tables and figures to docs/studies. An interrupted study resumes where it stopped.
study: .venv/installed $(DEMO)/eval-sft/complete.json
	$(BIN)/python benchmarks/study_layouts.py --document docs/studies/layouts.md
	$(BIN)/python benchmarks/study_raft.py --document docs/studies/raft.md
	$(BIN)/python benchmarks/study_selection.py --document docs/studies/selection.md
	$(BIN)/python benchmarks/study_stress.py --document docs/studies/stress.md
	$(BIN)/python benchmarks/study_adapters.py --document docs/studies/adapters.md
	$(BIN)/python benchmarks/study_words.py --document docs/studies/words.md
	$(BIN)/python benchmarks/study_families.py --document docs/studies/families.md
	$(BIN)/python benchmarks/study_thresholds.py --document docs/studies/thresholds.md
	$(BIN)/python benchmarks/transcription.py --document docs/studies/transcription.md

configs: .venv/installed
	$(BIN)/python -m evoxtral_train.config.describe

# Trains data/tiny-tagger (about 7 minutes): an adapter for data/tiny-base that writes tags while it listens.
tiny-tagger: .venv/installed
	$(EVOXTRAL) data synth configs/tagger/synth.yaml --overwrite
	$(EVOXTRAL) data pack configs/tagger/pack.yaml --overwrite
	$(EVOXTRAL) sft configs/tagger/sft.yaml --overwrite
	$(EVOXTRAL) eval configs/tagger/eval.yaml --overwrite
	$(EVOXTRAL) export configs/tagger/export.yaml --overwrite
	mkdir -p data/tiny-tagger
	cp runs/tagger/export/release/* data/tiny-tagger/

# Retrains data/tiny-base from scratch; tiny-offline-base does so for data/tiny-offline-base.
TINY_FILES := README.md run.json metrics.json config.json generation_config.json model.safetensors preprocessor_config.json tekken.json

tiny-base: .venv/installed
	$(EVOXTRAL) tiny-base configs/tiny-base.yaml --overwrite
	cd runs/tiny-base && cp $(TINY_FILES) ../../data/tiny-base/

tiny-offline-base: .venv/installed
	$(EVOXTRAL) tiny-base configs/offline/tiny-base.yaml --overwrite
	mkdir -p data/tiny-offline-base
	cd runs/tiny-offline-base && cp $(TINY_FILES) ../../data/tiny-offline-base/
