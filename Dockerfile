# evoxtral serve on a GPU machine. Never built or run here: see docs/serving.md.
#   docker build -t evoxtral . && docker run --gpus all -p 8000:8000 -e EVOXTRAL_API_KEY=… evoxtral --adapter /runs/raft/result
FROM python:3.11-slim AS wheel
# The build fetches wavesurfer.js with npm.
RUN apt-get update && apt-get install -y --no-install-recommends npm
WORKDIR /source
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

# PyTorch's wheels bring CUDA's libraries along; the driver is the host's.
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/
COPY --from=wheel /wheels /tmp/wheels
ENV PATH=/opt/evoxtral/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
RUN python3 -m venv /opt/evoxtral \
    && pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheels/evoxtral-*.whl)[serve,av]" \
    && useradd --uid 10001 --create-home evoxtral \
    && mkdir /models && chown evoxtral /models
USER evoxtral
WORKDIR /home/evoxtral
VOLUME /models
EXPOSE 8000
# Loading the 4B model takes minutes where the disk is slow.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["evoxtral", "serve", "--host", "0.0.0.0", "--port", "8000"]
