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

# All in one go, for the whole workspace: what the other checks built is then taken as it is.
read -r tests hostlerd testhost < <(cargo test --workspace --locked --no-run --message-format json | python3 -c '
import json, sys
made = {}
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"):
        made[message["target"]["name"], message["profile"]["test"]] = message["executable"]
print(made["podman", True], made["hostlerd", False], made["hostler-testhost", False])')

work=$(mktemp -d)
name=contract-$$
trap '"$testhost" stop "$name"; rm -rf "$work"' EXIT
tests/podman/image.sh "$work/busybox.tar" "$(tests/host/mkroot.sh)/usr/bin/busybox"
cp "$tests" "$work/podman-tests"

"$testhost" boot "$name"
"$testhost" install "$name" "$(dirname "$hostlerd")"
"$testhost" copy "$name" "$work/podman-tests" /usr/local/bin
"$testhost" user "$name" hostler podman import --quiet - localhost/busybox:1 <"$work/busybox.tar" >/dev/null
# A device under a name that only CDI brings into a container. Without root, crun mounts a device from the path that it has in the
# container and passes over hostPath, so both are the same.
"$testhost" exec "$name" sh -c 'mknod -m 0666 /dev/hostler-test c 1 3 && mkdir -p /etc/cdi && cat >/etc/cdi/hostler-test.yaml' <<'CDI'
cdiVersion: 0.6.0
kind: hostler.test/device
devices:
  - name: one
    containerEdits:
      deviceNodes:
        - path: /dev/hostler-test
CDI
# --test-threads 1: some of these kill the API under whoever else uses it.
# shellcheck disable=SC2016 # expanded there, not here
"$testhost" user "$name" hostler sh -c 'exec env HOSTLER_TEST_PODMAN_SOCKET=/run/hostler/service/podman.sock \
  HOSTLER_TEST_IMAGE=localhost/busybox:1 HOSTLER_TEST_CDI_DEVICE=hostler.test/device=one \
  HOSTLER_TEST_PODMAN_ALIVE="$XDG_RUNTIME_DIR/libpod/tmp/alive" \
  HOSTLER_TEST_PODMAN_KILL="systemctl --user kill --kill-whom=main --signal=KILL hostler-podman.service" \
  /usr/local/bin/podman-tests --ignored --test-threads 1 "$@"' sh "$@"
