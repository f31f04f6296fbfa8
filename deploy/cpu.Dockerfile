# The server on CPU. From the root of the repository:
#   docker build -f deploy/cpu.Dockerfile -t spt-jax .
FROM python:3.12-slim
WORKDIR /opt/spt_jax
COPY setup.py pyproject.toml README.md LICENSE ./
COPY configs configs
COPY spt_jax spt_jax
RUN pip install --no-cache-dir ".[serve]" && useradd --create-home server
USER server
# Compiled programs are kept here; mount a volume to keep them from one container to the next.
ENV SPT_JAX_CACHE=/home/server/cache JAX_PLATFORMS=cpu
WORKDIR /home/server
EXPOSE 8000
STOPSIGNAL SIGTERM
# Inside a container 127.0.0.1 cannot be reached. Give a key: docker run -e SPT_JAX_API_KEY=...
ENTRYPOINT ["spt-jax", "serve", "--host=0.0.0.0"]
