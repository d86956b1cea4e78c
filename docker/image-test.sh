#!/usr/bin/env bash
# The images really built and used, without a daemon and without pulling anything:
#   1. a stand-in for the official Ray image is made by debootstrap, under the official name;
#   2. docker/Dockerfile and docker/mlflow.Dockerfile are built on it, and their layers reported;
#   3. the image runs as its own user on a read-only root file system, as the manifests run it: the quickstart from
#      start to end, then a head that takes `ray job submit jobs/pretrain-quickstart.yaml`;
#   4. the MLflow image serves under the name that the cluster knows it by.
#
# Wants root (chroot, mounts, a network namespace), 30 GB of disk, and `apt-get install buildah debootstrap`. IMAGE_TEST_DIR is where
# everything goes; it is removed at the end. STORAGE_DRIVER=overlay, where the kernel lets it, is faster and keeps a layer
# for each instruction, as Docker does; vfs, which works everywhere, copies an image for each layer and so makes one.
set -euo pipefail
cd "$(dirname "$0")/.."

STORAGE_DRIVER=${STORAGE_DRIVER:-vfs}
WORK=$(mktemp -d -p "${IMAGE_TEST_DIR:-/var/tmp}" dira-image-test.XXXXXX)
RAY_VERSION=$(sed -n 's/^ray==//p' constraints.txt)
RAY_BASE=$(sed -n 's/^ARG BASE_IMAGE=//p' docker/Dockerfile)
CPU_BASE=rayproject/ray:$RAY_VERSION-py311-cpu
MLFLOW_BASE=$(sed -n 's/^ARG BASE_IMAGE=//p' docker/mlflow.Dockerfile)
HEAD_PID=
HOST=dira-image-test-$$

say() { printf '\n== %s\n' "$*"; }
fail() { echo "image-test: $*" >&2; exit 1; }

for tool in buildah debootstrap ip unshare; do
  command -v "$tool" >/dev/null || fail "$tool is missing: apt-get install buildah debootstrap iproute2 util-linux"
done
[ "$(id -u)" = 0 ] || fail "run me as root: file systems are made and mounted"

store() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver "$STORAGE_DRIVER" "$@"; }

cleanup() {
  [ -z "$HEAD_PID" ] || kill "$HEAD_PID" 2>/dev/null || true
  wait 2>/dev/null || true
  ip netns delete "$HOST" 2>/dev/null || true
  store umount --all >/dev/null 2>&1 || true
  store rm --all >/dev/null 2>&1 || true
  rm -rf "$WORK"
}
trap cleanup EXIT

# This machine's certificates and pip settings are lent to the build; they are no part of the images.
LENT=(--volume /etc/ssl/certs:/etc/ssl/certs:ro)
[ ! -f /etc/pip.conf ] || LENT+=(--volume /etc/pip.conf:/etc/pip.conf:ro)
LAYERS=true
[ "$STORAGE_DRIVER" != vfs ] || LAYERS=false
build() { store bud --isolation chroot --format docker --pull-never --layers="$LAYERS" "${LENT[@]}" "$@"; }

say "stand-ins for $RAY_BASE, $CPU_BASE and $MLFLOW_BASE"
mkdir -p "$WORK/base"
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,wget bookworm "$WORK/base/root" >"$WORK/log"
cat >"$WORK/base/Dockerfile" <<END
FROM scratch AS python
COPY root/ /
RUN python3 -m venv /opt/python
ENV PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
FROM python AS ray
RUN useradd --uid 1000 --gid 100 --create-home ray && chown -R 1000:100 /opt/python
USER 1000
WORKDIR /home/ray
RUN pip install --quiet --no-cache-dir 'ray[default]==$RAY_VERSION'
END
build --target python --tag "docker.io/library/$MLFLOW_BASE" "$WORK/base" >>"$WORK/log" 2>&1
build --target ray --tag "docker.io/$RAY_BASE" --tag "docker.io/$CPU_BASE" "$WORK/base" >>"$WORK/log" 2>&1
rm -rf "$WORK/base/root"

say "docker/Dockerfile"
started=$SECONDS
build --tag dira-dist:cpu --build-arg "BASE_IMAGE=docker.io/$CPU_BASE" --file docker/Dockerfile . >"$WORK/log" 2>&1 ||
  { tail -40 "$WORK/log"; fail "docker/Dockerfile does not build"; }
echo "built in $((SECONDS - started)) s"
build --tag dira-mlflow:test --build-arg "BASE_IMAGE=docker.io/library/$MLFLOW_BASE" --file docker/mlflow.Dockerfile . \
  >"$WORK/log" 2>&1 || { tail -40 "$WORK/log"; fail "docker/mlflow.Dockerfile does not build"; }
for image in dira-dist:cpu dira-mlflow:test; do
  store inspect --type image "$image" | python3 docker/report_image.py "$image" "$WORK/storage/$STORAGE_DRIVER-layers/layers.json"
done

# A container of an image: its user, environment and working directory, its root file system read-only but for /tmp. All
# are on a host of their own, that reaches nobody.
ip netns add "$HOST"
ip -n "$HOST" link set lo up
container() { # container MOUNT UID:GID WORKDIR COMMAND...
  ip netns exec "$HOST" unshare --mount bash -euo pipefail -c '
    root=$1 user=$2 folder=$3; shift 3
    mount --bind "$root" "$root"
    for kernel in proc sys dev; do mount --rbind "/$kernel" "$root/$kernel"; done
    mount --bind "$0" "$root/tmp"
    for file in resolv.conf hosts; do [ ! -f "$root/etc/$file" ] || mount --bind "/etc/$file" "$root/etc/$file"; done
    mount -o remount,ro,bind "$root"
    exec chroot --userspec="$user" --groups="${user#*:}" "$root" /usr/bin/env -i --chdir="$folder" HOME=/tmp "$@"
  ' "$WORK/tmp" "$@"
}
mkdir -m 1777 "$WORK/tmp"
MOUNT=$(store mount "$(store from --pull-never dira-dist:cpu)")
mapfile -t ENVIRONMENT < <(store inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' dira-dist:cpu | sed '/^$/d')
TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
in_image() { container "$MOUNT" 1000:100 /home/ray/dira-dist "${ENVIRONMENT[@]}" RAY_AUTH_MODE=token "RAY_AUTH_TOKEN=$TOKEN" OMP_NUM_THREADS=1 "$@"; }

say "the quickstart, as $(in_image id --user --name), nothing writable but /tmp"
in_image touch /home/ray/dira-dist/x 2>/dev/null && fail "the root file system is writable"
started=$SECONDS
in_image dira-dist quickstart /tmp/quickstart >"$WORK/log" 2>&1 || { tail -40 "$WORK/log"; fail "the quickstart failed"; }
grep -E 'steps|pulled from' "$WORK/log"
echo "took $((SECONDS - started)) s"

say "ray job submit jobs/pretrain-quickstart.yaml, on a head started from the image"
in_image dira-dist shard /tmp/quickstart/archive/images /tmp/shards --image-size 0 \
  --labels /tmp/quickstart/archive/labels.csv --label-columns finding,findings,pattern \
  --split train=0.8,val=0.2 --group-by patient >"$WORK/log" 2>&1
in_image ray start --head --block --num-cpus=2 --object-store-memory=134217728 >"$WORK/head.log" 2>&1 &
HEAD_PID=$!
# the image's own health check, as Docker would run it
mapfile -t HEALTH < <(store inspect --type image --format '{{range .Docker.Config.Healthcheck.Test}}{{println .}}{{end}}' dira-dist:cpu | sed '/^$/d')
for attempt in $(seq 60); do
  in_image "${HEALTH[@]:1}" && break
  [ "$attempt" -lt 60 ] || { tail -20 "$WORK/head.log"; fail "the head never became healthy"; }
  sleep 1
done
echo "healthy"
in_image ray job submit --address http://127.0.0.1:8265 -- jobs/pretrain-quickstart.yaml \
  --set data.train=/tmp/shards/train --set data.val=/tmp/shards/val --set probe=null --set tracking={} \
  --set checkpoint.storage=/tmp/runs --set 'stages=[{objective: di, steps: 2}, {objective: dira, steps: 2}]' \
  >"$WORK/log" 2>&1 || { tail -40 "$WORK/log"; fail "ray job submit failed"; }
grep 'finished' "$WORK/log"
kill "$HEAD_PID"; wait "$HEAD_PID" 2>/dev/null || true; HEAD_PID=

say "the MLflow image answers to the name mlflow:5000"
MLFLOW=$(store mount "$(store from --pull-never dira-mlflow:test)")
container "$MLFLOW" 10001:10001 /tmp PATH=/opt/python/bin:/usr/bin:/bin MLFLOW_BACKEND_STORE_URI=sqlite:////tmp/mlflow.db \
  MLFLOW_SERVER_ALLOWED_HOSTS=mlflow:5000 mlflow server --workers 1 >"$WORK/log" 2>&1 &
HEAD_PID=$!
ip netns exec "$HOST" wget --quiet --tries=60 --waitretry=1 --retry-connrefused --output-document=/dev/null http://127.0.0.1:5000/health
ip netns exec "$HOST" wget --quiet --header 'Host: mlflow:5000' --header 'Content-Type: application/json' --post-data '{"max_results": 1}' \
  --output-document=- http://127.0.0.1:5000/api/2.0/mlflow/experiments/search | grep -q Default || fail "MLflow refuses its name"
container "$MLFLOW" 10001:10001 /tmp PATH=/opt/python/bin:/usr/bin:/bin python -c 'import boto3, psycopg2'
say "all of it works"
