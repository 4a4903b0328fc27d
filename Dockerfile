# The project with every dependency at the tested version:
#
#   docker build -t spherescale .                                    for GPUs (torch brings CUDA with it)
#   docker build -t spherescale:cpu --build-arg TORCH=cpu .          for CPUs, without CUDA's gigabytes
#
# The driver is the host's, through the NVIDIA container toolkit. Nothing in it runs as root: user 1000, or any other
# (`docker run --user "$(id -u):$(id -g)"`), which must be able to write to the run's folder.
FROM python:3.11-slim-bookworm
ARG TORCH=gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/spherescale
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY cluster cluster
COPY stages stages
COPY docs docs
RUN if [ "$TORCH" = cpu ]; then \
      pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' constraints.txt)"; \
    fi \
    && pip install --no-cache-dir -c constraints.txt -e '.[export]'
# A home that any user may write to: Triton's and PyTorch's compiled kernels are kept there. And a name, for users whom
# /etc/passwd does not know.
RUN useradd --uid 1000 --home-dir /home/spherescale --create-home spherescale && chmod 1777 /home/spherescale
ENV PYTHONUNBUFFERED=1 HOME=/home/spherescale USER=spherescale
USER 1000:1000
CMD ["python", "stages/train.py", "--help"]
