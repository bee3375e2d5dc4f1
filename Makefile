# Two commands for a newcomer: make up, make test. Everything else follows from them.
SHELL := /bin/sh
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The project's own settings, wherever make was started from.
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Without compiled files, each start of Ansible would compile itself anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help up down status report check test faults bench docs clean venv hosts lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: ## from a fresh machine to three applications that serve requests through PgBouncer
	@scripts/stage.sh 1/5 "Python environment" scripts/venv.sh
	@scripts/stage.sh 2/5 "Docker engine" scripts/engine.sh
	@scripts/stage.sh 3/5 "Host image" scripts/host_image.sh trixie
	@scripts/stage.sh 4/5 "Hosts" ansible-playbook ansible/playbooks/docker_up.yml
	@scripts/stage.sh 5/5 "Deployment (site.yml)" ansible-playbook site.yml
	@python scripts/status.py

down: venv ## remove the hosts of `make up`, with their data
	@scripts/stage.sh 1/1 "Removing the hosts" ansible-playbook ansible/playbooks/docker_down.yml

status: venv ## each application: its address, the path of its database traffic, connections
	@python scripts/status.py

report: venv ## a page for people, .cache/report.html: ways, pools, budget, versions, certificates, deployments
	@mkdir -p .cache
	@python scripts/status.py --report .cache/report.html

check: venv ## linters, syntax, templates and the quick unit tests; needs no hosts
	@scripts/check.sh

test: ## linters, all unit tests, then Molecule on hosts of its own; SCENARIO=peers: one scenario; SCENARIO=all: every one
	@scripts/test.sh $(SCENARIO)

faults: venv ## every fault of pooler and database against the hosts of `make up`, under load; a table (11 minutes)
	@python -m pytest -v tests/faults

bench: venv ## each connection strategy under load, on the hosts of `make up`: a table and a page; QUICK=1: less
	@python scripts/bench.py stack $(if $(QUICK),--quick)

docs: venv ## write docs/variables.md from the argument specs, and the documentation of filters
	@python scripts/reference.py
	@python scripts/filter_docs.py

clean: down ## make down, and the caches: images, pip's volume, the virtual environment
	-docker volume rm poolkit-pip-cache
	-docker images --format '{{.Repository}}:{{.Tag}}' | grep '^poolkit-' | xargs -r docker image rm
	rm -rf .venv .cache .ruff_cache .pytest_cache

lock: venv ## update requirements.lock after a change in pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras --no-header pyproject.toml -o requirements.lock
	for folder in examples/django examples/fastapi examples/flask roles/app/files/server; do (cd $$folder && uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header requirements.in -o requirements.txt); done

venv: ## the Python environment alone, for deployments to hosts of your own
	@scripts/venv.sh
