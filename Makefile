# Two commands are enough on a fresh machine: `make serve` and `make test`.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
MODELS ?= models
DEFAULT_MODEL ?= $(if $(filter models,$(MODELS)),blood_cells)

SERVE_ENV := .venv
DEV_ENV := .venv-dev
RAY_ENV := .venv-ray
CLIENT_ENVS := .venv-clients
S3_ENV := .venv-s3
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Unit tests that neither export, train, nor start many servers.
FAST_TESTS := tests/client tests/evaluation/metrics tests/labels tests/model_export/graph \
	tests/model_package tests/service/batching tests/service/decoders tests/service/engines \
	tests/service/imaging tests/training/data tests/training/targets \
	tests/training/test_losses.py tests/test_task_registration.py tests/test_documents.py

.PHONY: help serve test test-fast test-engines test-images test-ray test-clients lint format check settings messages lock \
	kernels tensorrt-bindings clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | sort | \
		while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done

serve: $(SERVE_ENV)/installed ## Serve the bundled models on the CPU (no torch)
	CENTERNET_HOST=$(HOST) CENTERNET_PORT=$(PORT) CENTERNET_MODELS=$(MODELS) \
	$(if $(DEFAULT_MODEL),CENTERNET_DEFAULT_MODEL=$(DEFAULT_MODEL)) \
	exec $(SERVE_ENV)/bin/centernet-serve

test: check $(SERVE_ENV)/installed tensorrt-bindings ## Run every check and every test (15 to 20 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(DEV_ENV)/installed ## Run the fast unit tests (under a minute on 2 cores)
	OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not engines' $(FAST_TESTS)

# -s prints the duration of each build. The library (95 MB) stays in the environment.
test-engines: $(DEV_ENV)/installed ## Build real TensorRT-RTX engines (minutes, 3 GB of memory)
	$(DEV_ENV)/bin/python $(INSTALL) --editable '.[dev,tensorrt-rtx]'
	$(DEV_ENV)/bin/python -m pytest -s -m engines

# -s prints the memory of the service. Needs root, buildah, debootstrap and Docker Compose.
test-images: $(DEV_ENV)/installed ## Build the container images and run their commands, as root
	OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -m pytest -s -m images tests/deployment

# An environment of its own: Ray brings 30 packages. The S3 server needs other versions.
test-ray: $(RAY_ENV)/installed $(S3_ENV)/installed ## Run the service and bulk detection on Ray clusters of three nodes on this machine
	OMP_NUM_THREADS=1 $(RAY_ENV)/bin/python -m pytest -m 'ray or not ray' tests/deployment/test_ray_files.py \
		tests/deployment/test_ray_cluster.py tests/bulk

# An environment for each client: their packages conflict.
CLIENTS := $(basename $(notdir $(wildcard tests/clients/requirements/*.txt)))
test-clients: $(DEV_ENV)/installed $(CLIENTS:%=$(CLIENT_ENVS)/%/installed) ## Run clients of other inference servers, unchanged, against the service
	OMP_NUM_THREADS=1 $(DEV_ENV)/bin/python -m pytest -m clients tests/clients

check: lint ## Check style, types and import rules
	$(DEV_ENV)/bin/mypy
	$(DEV_ENV)/bin/lint-imports

lint: $(DEV_ENV)/installed ## Check style
	$(DEV_ENV)/bin/ruff check .
	$(DEV_ENV)/bin/ruff format --check .

format: $(DEV_ENV)/installed ## Fix style
	$(DEV_ENV)/bin/ruff check --fix .
	$(DEV_ENV)/bin/ruff format .

settings: $(DEV_ENV)/installed ## Update the table in docs/settings.md and the settings in the Helm chart
	$(DEV_ENV)/bin/python -m docs.generate_settings_table docs/settings.md
	$(DEV_ENV)/bin/python -m deploy.kubernetes.generate_settings_schema \
		deploy/kubernetes/centernet/values.schema.json

# The version of grpcio-tools in constraints.txt decides the generated files.
messages: $(DEV_ENV)/installed ## Generate the protobuf messages of the gRPC server
	cd service/grpc && $(abspath $(DEV_ENV))/bin/python -m grpc_tools.protoc --proto_path=. \
		--descriptor_set_out=messages.binpb --pyi_out=. inference.proto health.proto

lock: $(DEV_ENV)/installed $(RAY_ENV)/installed ## Write the versions of the environments to constraints.txt
	for env in $(DEV_ENV) $(RAY_ENV); do $$env/bin/python -m pip freeze --exclude-editable; done \
		| grep -v '^torch==' | sort -fsu -t= -k1,1 > constraints.txt
	echo 'torch==2.13.0' >> constraints.txt
	sed -n 's/^onnxruntime==/onnxruntime-gpu==/p' constraints.txt >> constraints.txt

$(SERVE_ENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SERVE_ENV)
	$(SERVE_ENV)/bin/python $(INSTALL) --editable '.[serve]'
	touch $@

$(RAY_ENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY_ENV)
	$(RAY_ENV)/bin/python $(INSTALL) --editable '.[serve,ray]' kubernetes-validate pytest
	touch $@

# The files list every package of the environment: `pip freeze` after `pip install CLIENT`, or after
# `pip install 'moto[s3]' flask flask-cors`.
define install-listed
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@
endef

$(CLIENT_ENVS)/%/installed: tests/clients/requirements/%.txt
	$(install-listed)

$(S3_ENV)/installed: tests/bulk/object_storage_server.txt
	$(install-listed)

# torch first: a CPU build that is installed already is kept, whatever depends on it.
$(DEV_ENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DEV_ENV)
	$(DEV_ENV)/bin/python $(INSTALL) torch==2.13.0
	$(DEV_ENV)/bin/python $(INSTALL) --editable '.[dev]'
	touch $@

# The PTX is committed, so only changes to the kernels need nvcc. Exactly 13.0: PTX of a newer
# version needs a newer driver.
KERNELS := model_export/engines/corner_pooling
KERNELS_PTX ?= $(KERNELS).ptx
kernels: ## Compile the CUDA kernels (needs nvcc 13.0)
	nvcc --ptx -arch=compute_75 -O3 -o $(KERNELS_PTX) $(KERNELS).cu

# TensorRT's Python bindings and the lean runtime, which has a plugin registry (91 MB to download).
# Two versions cannot be imported from one environment, so each has its own folder. Tests that need
# them are skipped where they are absent.
TENSORRT_VERSIONS := 10.16.1.11 11.4.0.106
TENSORRT_BINDINGS := $(DEV_ENV)/tensorrt
tensorrt-bindings: $(TENSORRT_VERSIONS:%=$(TENSORRT_BINDINGS)/%/installed) ## Download TensorRT's Python bindings for the tests

$(TENSORRT_BINDINGS)/%/installed: $(DEV_ENV)/installed
	$(DEV_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(@D) tensorrt-cu13-bindings==$* tensorrt-lean-cu13-libs==$*
	touch $@

clean: ## Delete the environments and caches
	rm -rf $(SERVE_ENV) $(DEV_ENV) $(RAY_ENV) $(CLIENT_ENVS) $(S3_ENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
