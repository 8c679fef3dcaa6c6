#!/usr/bin/env bash
# Builds the container image from the Dockerfile and runs it: its version, then a server with a health check on a real
# Postgres, then an orderly stop. Needs buildah and root; no engine, and no registry.
#
# The Dockerfile's base images are replaced by stand-ins made here, of this machine's own files:
#
#   builder  a shell and the C library; Go, its module cache and its build cache are mounted from the host
#   base     what distroless/static holds that a static binary can notice: users, root certificates, time zones, /tmp
#
# So what is tested is the Dockerfile and the binary in a bare file system. That the real base images agree with their
# stand-ins is not.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

die() { echo "image: $*" >&2; exit 1; }
say() { echo "image: $*"; }
[ "$(id -u)" = 0 ] || die 'building without an engine mounts and changes roots; run it as root'
command -v buildah >/dev/null || die 'buildah is missing; `make deps-image` installs it'

scratch=$(mktemp -d)
server_pid=
postgres_started=

# Everything lives in the scratch directory: the machine's own images are neither used nor touched.
# vfs needs no support from the kernel or the file system, chroot no namespaces and no cgroups.
buildah=(buildah --root "$scratch/storage" --runroot "$scratch/run" --storage-driver vfs)

cleanup() {
  set +e
  [ -z "$server_pid" ] || kill -KILL -- "-$server_pid" 2>/dev/null
  [ -z "$postgres_started" ] || as_postgres "$postgres_bin/pg_ctl" -D "$scratch/pg/data" -m immediate stop >/dev/null
  "${buildah[@]}" rm --all >/dev/null 2>&1
  rm -rf "$scratch"
}
trap cleanup EXIT

# The stand-ins --------------------------------------------------------------------------------------------------------

# put ROOTFS FILE...: host files at their own paths, links followed.
put() {
  local root=$1 file
  shift
  for file in "$@"; do
    mkdir -p "$root$(dirname "$file")"
    cp -rL "$file" "$root$file"
  done
}

# commit ROOTFS NAME CONFIG...: the directory as an image.
commit() {
  local root=$1 name=$2 container
  shift 2
  container=$("${buildah[@]}" from scratch)
  "${buildah[@]}" add --quiet "$container" "$root" / >/dev/null
  "${buildah[@]}" config "$@" "$container"
  "${buildah[@]}" commit --quiet --rm "$container" "$name" >/dev/null
}

make_stand_ins() {
  local root=$scratch/builder shell
  shell=$(readlink -f /bin/sh)
  mkdir -p "$root"/{bin,tmp,src,root,etc}
  chmod 1777 "$root/tmp"
  cp "$shell" "$root/bin/sh"
  ldd "$shell" | grep -o '/[^ ]*' | while read -r library; do put "$root" "$library"; done
  put "$root" /etc/ssl/certs/ca-certificates.crt
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  local settings=(--env PATH=/usr/local/go/bin:/bin --env GOPATH=/go --env GOCACHE=/go/build --env GOTOOLCHAIN=local)
  local name
  for name in GOPROXY GOSUMDB GONOSUMDB GOPRIVATE; do
    settings+=(--env "$name=$(go env $name)")
  done
  commit "$root" stand-in/builder "${settings[@]}"

  root=$scratch/base
  mkdir -p "$root"/{tmp,home/nonroot,etc}
  chmod 1777 "$root/tmp"
  chown 65532:65532 "$root/home/nonroot"
  put "$root" /etc/ssl/certs/ca-certificates.crt
  if [ -d /usr/share/zoneinfo ]; then put "$root" /usr/share/zoneinfo; fi
  printf '%s\n' 'root:x:0:0:root:/root:/sbin/nologin' 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' \
    >"$root/etc/passwd"
  printf '%s\n' 'root:x:0:' 'nonroot:x:65532:' >"$root/etc/group"
  commit "$root" stand-in/base --user 65532:65532 --workingdir /home/nonroot
}

# The image ------------------------------------------------------------------------------------------------------------

build_image() {
  mkdir -p "$(go env GOMODCACHE)" "$(go env GOCACHE)"
  # Only Docker's own format has health checks.
  "${buildah[@]}" bud --quiet --format docker --isolation chroot --pull-never --tag tasker \
    --build-arg BUILDER=stand-in/builder --build-arg BASE=stand-in/base --build-arg VERSION="$version" \
    --volume "$(go env GOROOT):/usr/local/go:ro" \
    --volume "$(go env GOMODCACHE):/go/pkg/mod" --volume "$(go env GOCACHE):/go/build" \
    . >/dev/null
}

# inspect FIELD: one value of the image's configuration.
inspect() { "${buildah[@]}" inspect --type image --format "{{$1}}" tasker; }

check_configuration() {
  local user check
  user=$(inspect .Docker.Config.User)
  [ "$user" = 65532:65532 ] || die "the image runs as '$user', not as 65532:65532"
  check=$(inspect .Docker.Config.Healthcheck.Test)
  [ "$check" = '[CMD /usr/bin/tasker health]' ] || die "the image's health check is '$check'"
  [ ! -e "$("${buildah[@]}" mount "$container")/bin/sh" ] || die 'the image holds a shell'
}

run() { "${buildah[@]}" run --isolation chroot "$@"; }

check_version() {
  local told
  told=$(run "$container" -- /usr/bin/tasker version)
  [[ $told == *"$version"* ]] || die "it says it is '$told', but was built as $version"
  say "says: $told"
}

# A server on Postgres -------------------------------------------------------------------------------------------------

as_postgres() { (cd / && setpriv --reuid postgres --regid postgres --init-groups "$@"); }

start_postgres() {
  postgres_bin=$(find /usr/lib/postgresql/*/bin -maxdepth 0 2>/dev/null | sort -V | tail -1)
  [ -x "$postgres_bin/initdb" ] || die 'PostgreSQL is missing; `make deps-postgres` installs it'
  chmod 711 "$scratch"
  install -d -o postgres -m 755 "$scratch/pg"
  as_postgres "$postgres_bin/initdb" -D "$scratch/pg/data" --auth trust --encoding UTF8 >/dev/null
  as_postgres "$postgres_bin/pg_ctl" -D "$scratch/pg/data" -l "$scratch/pg/log" -w \
    -o "-c listen_addresses= -c unix_socket_directories=$scratch/pg" start >/dev/null || die "PostgreSQL did not start"
  postgres_started=yes
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# server_process: the server itself, among the processes that buildah started for it.
server_process() {
  local pid
  for pid in $(pgrep -g "$server_pid"); do
    [[ $(readlink "/proc/$pid/exe") != */tasker ]] || echo "$pid"
  done
}

check_server() {
  local address log=$scratch/serve.log tries
  address=127.0.0.1:$(free_port)
  # A process group of its own, in which the server behind buildah can be found.
  setsid "${buildah[@]}" run --isolation chroot --volume "$scratch/pg:/pg" \
    --env "TASKER_DATABASE_URL=postgres://postgres@/postgres?host=/pg" --env "TASKER_LISTEN=$address" \
    "$container" -- /usr/bin/tasker serve --auto-migrate >"$log" 2>&1 &
  server_pid=$!
  for ((tries = 0; ; tries++)); do
    if run "$container" -- /usr/bin/tasker health --address "$address" >"$scratch/health.log" 2>&1; then break; fi
    kill -0 "$server_pid" 2>/dev/null || { cat "$log" >&2; die 'the server ended'; }
    [ "$tries" -lt 60 ] || { cat "$log" "$scratch/health.log" >&2; die 'the server did not become healthy'; }
    sleep 0.5
  done
  say "serves and is healthy on $address"
  # buildah would kill the server when it gets the signal itself.
  kill -TERM "$(server_process)"
  local code=0
  timeout 25 tail --pid="$server_pid" -f /dev/null || { cat "$log" >&2; die 'the server did not stop within 25 s'; }
  wait "$server_pid" || code=$?
  server_pid=
  [ "$code" = 0 ] || { cat "$log" >&2; die "the server stopped with exit status $code"; }
  say 'stopped in order'
}

version=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo dev)}
make_stand_ins
say "building $version"
build_image
container=$("${buildah[@]}" from --pull-never tasker)
check_configuration
size=$(stat --format %s "$("${buildah[@]}" mount "$container")/usr/bin/tasker")
say "built; the binary is $((size / 1024)) KiB"
check_version
start_postgres
check_server
say 'the image builds, runs, serves and stops'
