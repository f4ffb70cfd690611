PYTHON ?= python3
PORT ?= 8501
PYTEST = pytest -q -n logical --maxprocesses 3 --dist loadfile --no-loadscope-reorder

demo: .venv/.installed
	@.venv/bin/python -m app.demo --port $(PORT)

# many tests start processes: modules are compiled once for all of them, whatever the environment says
test: .venv/.installed
	env -u PYTHONDONTWRITEBYTECODE .venv/bin/python -m $(PYTEST)

lint: .venv/.installed
	.venv/bin/ruff check .

bench: .venv/.installed
	.venv/bin/python tests/bench.py

figures: .venv/.installed
	.venv/bin/python docs/figures.py

report: .venv/.installed
	.venv/bin/python -m analyses.report runs/demo runs/demo-vit runs/pruned runs/study --out build/report
	cp build/report/report.html docs/report.html

campaign: .venv/.installed
	.venv/bin/python tests/campaign.py --write

# numbers of others beside ours; options in WITH, such as WITH="--voc VOCdevkit/VOC2007"
reproduce: .venv/.installed
	.venv/bin/python -m tests.reference.reproduce $(WITH)

# the documentation as a site, in an environment of its own: it reads the sources and imports nothing of them
docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	.venv-docs/bin/mkdocs build -q
	@echo 'open build/site/index.html'

# small changes to the mathematics, one at a time, that the tests must notice: docs/mutants.md; in an environment of its own
mutants:
	$(PYTHON) -m venv .venv-mutants
	.venv-mutants/bin/pip install -q -e '.[dev]' 'mutmut>=3.8,<4' -c constraints.txt
	.venv-mutants/bin/mutmut run
	.venv-mutants/bin/mutmut results

# in environments of their own, from the package index: the newest versions of everything, and the wheel from an empty folder
newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install -q --upgrade --upgrade-strategy eager -e '.[dev]'
	.venv-newest/bin/python -m $(PYTEST)

wheel:
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip wheel -q --no-deps -w build/wheel .
	.venv-wheel/bin/pip install -q --force-reinstall build/wheel/*.whl -c constraints.txt
	cd "$$(mktemp -d)" && $(CURDIR)/.venv-wheel/bin/bvit train --data shapes-easy:256 --model bvit_easy --epochs 1 \
		--batch-size 64 --val-limit 64 --out mine && $(CURDIR)/.venv-wheel/bin/bvit pointing-game mine --limit 64

clean:
	rm -rf .pytest_cache .ruff_cache .uv build mutants *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# uv where there is one or the package index gives one (kept in .uv/), else plain pip; the system's Python is never
# written to.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, \
	$(PYTHON) is %d.%d; name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	@if uv --version >/dev/null 2>&1; then uv=uv; else \
		uv=.uv/bin/uv; \
		$$uv --version >/dev/null 2>&1 || $(PYTHON) -m pip install -q --target .uv uv 2>/dev/null \
		|| { $(PYTHON) -m venv .uv && .uv/bin/pip install -q uv; } || true; \
	fi; \
	{ $$uv venv -q --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv \
		&& $$uv pip install --python .venv/bin/python -e '.[dev]' -c constraints.txt; } \
	|| { echo 'uv could not install, trying pip' >&2; \
		$(PYTHON) -m venv .venv && .venv/bin/pip install -e '.[dev]' -c constraints.txt; }
	@touch $@

.PHONY: demo test lint bench figures report docs reproduce campaign mutants newest wheel clean
