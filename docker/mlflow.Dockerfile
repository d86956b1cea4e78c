# An MLflow server with the PostgreSQL and S3 clients, in the versions that the jobs write with.
#
#   docker build -f docker/mlflow.Dockerfile -t dira-mlflow:0.2.0 .
#
# Everything is set by the environment, so that no secret stands on a command line: MLFLOW_BACKEND_STORE_URI,
# MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_SERVER_ALLOWED_HOSTS, AWS_*.
ARG BASE_IMAGE=python:3.11.9-slim-bookworm
FROM ${BASE_IMAGE}

RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mlflow

# hadolint ignore=DL3013
RUN --mount=type=bind,source=constraints.txt,target=/tmp/constraints.txt \
    pip install --no-cache-dir --constraint /tmp/constraints.txt mlflow boto3 psycopg2-binary==2.9.13

USER 10001:10001
WORKDIR /tmp
ENV PYTHONUNBUFFERED=1
EXPOSE 5000

HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/health', timeout=4)"]

CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "2"]
