# Two commands do everything on a fresh machine: `make demo` and `make test`.
#   PYTHON=python3.12    the Python that .venv is made with (default: the first of 3.10 or newer found)
#   DETECTRON2=REQ       another Detectron2, e.g.
#                        DETECTRON2='git+https://github.com/facebookresearch/detectron2.git'
PYTHON ?=
DETECTRON2 ?=
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup demo test test-slow lint

setup:
	@DETECTRON2='$(DETECTRON2)' PYTHON='$(PYTHON)' sh tools/setup_env.sh $(VENV)

demo: setup
	$(RUN) tools/train_net.py --config-file configs/quick/faster_rcnn_X26_8x4d_FPN.yaml \
	    OUTPUT_DIR output/demo
	$(RUN) tools/plot_run.py output/demo
	$(RUN) tools/report.py output/demo

# One thread per worker: two workers with two threads each fight over two cores.
test: setup lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto -m "not slow"

test-slow: setup
	$(RUN) -m pytest -m slow

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
