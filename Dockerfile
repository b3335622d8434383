# docker build -t partcraft .                                     CPU
# docker build -t partcraft --build-arg ACCELERATOR=gpu .         CUDA; run it with --gpus all
# docker run --rm -v "$PWD/logs:/app/logs" partcraft              make demo
# docker run --rm -v "$PWD/logs:/app/logs" -v "$PWD/photos:/photos" -v partcraft:/root/.cache partcraft \
#     partcraft train dataset=folder dataset.dir=/photos
#
# TORCH_INDEX is an index to take torch from, such as that of its CPU builds: without CUDA the image is far smaller.
FROM python:3.11-slim

ARG ACCELERATOR=cpu
ARG TORCH_INDEX=

# CUDA's libraries come with torch's wheels; make runs the demo, g++ is for hardware.compile=true.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
ENV VENV=/opt/venv PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 \
    ACCELERATOR=${ACCELERATOR}

# The dependencies first, with as little of the project as they need: they stay cached while the source changes.
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY tools/check_env.py tools/
COPY src/partcraft_lit/__init__.py src/partcraft_lit/
RUN mkdir conf && make env TORCH_INDEX=${TORCH_INDEX}

COPY . .

CMD ["make", "demo"]
