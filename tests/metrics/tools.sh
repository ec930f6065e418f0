#!/bin/bash
# Installs a parser of what the daemon tells in the cache, once for each version, and prints how it is called.
#
#   tools.sh promtool      Prometheus' own: from PATH, else out of Debian's package, without installing it (it is a service)
#   tools.sh openmetrics   the Python client's strict parser of OpenMetrics
#   tools.sh otlp          OpenTelemetry's definition of traces for Python
#
# Cache: ${HOSTLER_CACHE:-${XDG_CACHE_HOME:-~/.cache}/hostler}/metrics. Status 75: it cannot be had here.
set -euo pipefail

tool=${1:?promtool, openmetrics or otlp}
cache=${HOSTLER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hostler}/metrics
mkdir -p "$cache"
exec 9>"$cache/.lock-$tool"
flock 9
cannot() { echo "$1" >&2; exit 75; }

case $tool in
  promtool)
    if command -v promtool; then exit 0; fi
    dir=$cache/promtool
    if [ ! -e "$dir/.whole" ]; then
      command -v apt-get >/dev/null || cannot "promtool is not installed, and this is no Debian machine"
      rm -rf "$dir" && mkdir -p "$dir"
      (cd "$dir" && apt-get -q download prometheus && dpkg -x prometheus_*.deb x) >"$dir/log" 2>&1 ||
        cannot "the package prometheus cannot be had: $(tail -n 1 "$dir/log")"
      mv "$dir/x/usr/bin/promtool" "$dir/promtool"
      rm -rf "$dir/x" "$dir"/*.deb
      : >"$dir/.whole"
    fi
    echo "$dir/promtool"
    ;;
  openmetrics | otlp)
    if [ "$tool" = otlp ]; then package=opentelemetry-proto version=1.45.2; else package=prometheus-client version=0.26.0; fi
    dir=$cache/$tool-$version
    command -v python3 >/dev/null || cannot "python3 is missing"
    if [ ! -e "$dir/.whole" ]; then
      rm -rf "$dir" && mkdir -p "$dir"
      python3 -m pip -q --disable-pip-version-check install --target "$dir" "$package==$version" \
        >"$cache/$tool.log" 2>&1 || cannot "$package: $(tail -n 1 "$cache/$tool.log")"
      : >"$dir/.whole"
    fi
    echo "$dir"
    ;;
  *) echo "tools.sh: promtool, openmetrics or otlp, not $tool" >&2; exit 64 ;;
esac
