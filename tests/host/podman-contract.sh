#!/bin/bash
# Runs the ignored tests of tests/podman, which judge the podman adapter by its effects, inside a test host: as the service user,
# against the API socket that the daemon uses. Arguments go to the test binary.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ "${HOSTLER_HOST_TESTS:-}" = skip ]; then
  echo "SKIPPED tests/host/podman-contract.sh: HOSTLER_HOST_TESTS=skip" >&2
  [ -z "${HOSTLER_SKIPPED:-}" ] || echo "podman contract tests: HOSTLER_HOST_TESTS=skip" >>"$HOSTLER_SKIPPED"
  exit 0
fi

artefact() { # NAME cargo-arguments: builds, and prints the executable of the target NAME
  local name=$1
  shift
  cargo "$@" --locked --message-format json | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == sys.argv[1]:
        print(message["executable"])' "$name" | tail -n 1
}
tests=$(artefact podman test --no-run --test podman)
hostlerd=$(artefact hostlerd build --bin hostlerd)
testhost=$(artefact hostler-testhost build -p testhost)

work=$(mktemp -d)
name=contract-$$
trap '"$testhost" stop "$name"; rm -rf "$work"' EXIT
tests/podman/image.sh "$work/busybox.tar" "$(tests/host/mkroot.sh)/usr/bin/busybox"
cp "$tests" "$work/podman-tests"

"$testhost" boot "$name"
"$testhost" install "$name" "$(dirname "$hostlerd")"
"$testhost" copy "$name" "$work/podman-tests" /usr/local/bin
"$testhost" user "$name" hostler podman import --quiet - localhost/busybox:1 <"$work/busybox.tar" >/dev/null
"$testhost" user "$name" hostler env HOSTLER_TEST_PODMAN_SOCKET=/run/hostler/podman.sock \
  HOSTLER_TEST_IMAGE=localhost/busybox:1 /usr/local/bin/podman-tests --ignored --test-threads 1 "$@"
