# The environment, with git and Make, for an ordinary user; see 'In a container' in README.md.
FROM python:3.11-slim-bookworm AS tools
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 researcher
USER 1000
# Beside the project, so that it hides no .venv of the host; on PATH, so that nothing needs to be activated.
ENV VENV=/home/researcher/venv
ENV PATH=$VENV/bin:$PATH

FROM tools AS project
WORKDIR /home/researcher/multiscale
COPY --chown=1000:1000 . .
# https://download.pytorch.org/whl/cpu has torch's build for processors, without the gigabytes of CUDA libraries.
ARG PIP_EXTRA_INDEX_URL
RUN make install
CMD ["make", "demo"]
