# The two that do all the set-up: `make server` and `make test`.
PYTHON ?= python3
BROKERS ?=
SERVER ?= localhost:8081
KAFKA_PORTS = 9092,9093,9094
KAFKA_DIRECTORY = .kafka

VENV = .venv
CHATSVC = $(VENV)/bin/chatsvc
COMPOSE = docker compose --file deploy/docker-compose.yml
KAFKA = $(PYTHON) deploy/kafka/brokers.py

# make soak: how long, and which faults.
SECONDS = 600
SEED = 1

# make up: full, with three brokers, or small, with one.
PROFILE = full

.PHONY: help server client test soak system-packages up down kafka-up kafka-down clean

help:
	@echo "make server              a server with a broker in memory, or with BROKERS=localhost:9092,..."
	@echo "make client USER=alice   talk, at SERVER=$(SERVER)"
	@echo "make up                  all of it by docker: servers behind nginx, dashboards; also PROFILE=small"
	@echo "make down                stop it; messages are kept"
	@echo "make kafka-up            three Kafka brokers on $(KAFKA_PORTS), by docker or else by Java"
	@echo "make kafka-down          stop them"
	@echo "make test                all tests (Python, Java 17 and Maven; as root)"
	@echo "make soak                ten minutes of random faults; also SECONDS=3600 SEED=2"
	@echo "make clean               remove what the others made, messages too"

# What runs, installed from this tree; changes to the code need no new install.
$(CHATSVC): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

server: $(CHATSVC)
	@exec $(CHATSVC) serve $(if $(BROKERS),--brokers $(BROKERS))

client: $(CHATSVC)
	@exec $(CHATSVC) join "$(USER)" --server $(SERVER)

$(VENV)/bin/tox: | $(CHATSVC)
	$(VENV)/bin/python -m pip install --quiet 'tox>=4.20'

# What tests need beside Python, Java and Maven. RUNLEVEL: no service is started by its installation.
system-packages:
	@missing=$$( \
		PATH=$$PATH:/usr/sbin:/sbin command -v nginx >/dev/null || echo nginx; \
		command -v promtool >/dev/null || echo prometheus; \
		command -v go >/dev/null || echo golang-go; \
		command -v npm >/dev/null || echo npm; \
		PATH=$$PATH:/usr/sbin:/sbin command -v ip >/dev/null || echo iproute2; \
		ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || echo libfaketime); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update --quiet && \
			RUNLEVEL=1 apt-get install --quiet --yes --no-install-recommends $$missing; \
	else \
		echo "The tests need more packages: sudo apt-get install" $$missing >&2; exit 1; \
	fi

test: system-packages $(VENV)/bin/tox
	$(VENV)/bin/tox run

soak: $(VENV)/bin/tox
	$(VENV)/bin/tox run -e py -- tests/faults/test_soak.py --log-cli-level=INFO \
		--soak-seconds=$(SECONDS) --soak-seed=$(SEED) --timeout=$$(($(SECONDS) + 600))

up:
	@docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 || { \
		echo "make up needs docker, running, with its plugin compose (2.24 or newer)." \
			"Without it: make kafka-up, then make server BROKERS=..." >&2; exit 1; }
	$(COMPOSE) --profile $(PROFILE) up --detach
	@echo "Clients: localhost:8085   Dashboard: http://localhost:3000   Kafka UI: http://localhost:8080"

down:
	COMPOSE_PROFILES=full,small $(COMPOSE) down

kafka-up:
	@if docker info >/dev/null 2>&1; then \
		$(COMPOSE) run --rm init-topics; \
	else \
		$(KAFKA) up --directory $(KAFKA_DIRECTORY) --ports $(KAFKA_PORTS); \
	fi

kafka-down:
	@if docker info >/dev/null 2>&1; then $(MAKE) down; else $(KAFKA) down --directory $(KAFKA_DIRECTORY); fi

clean: kafka-down
	rm -rf $(VENV) .tox $(KAFKA_DIRECTORY) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
