#!/bin/sh
# Puts binaries and units where a package puts them: install.sh BINDIR DESTDIR PREFIX SYSCONFDIR (see the Makefile).
# Paths in units are written for PREFIX=/usr and rewritten for any other.
set -eu
# The directories are for all to look into, the daemon's user too.
umask 022
bindir=$1 destdir=$2 prefix=$3 sysconfdir=$4
cd "$(dirname "$0")/.."

for program in hostlerd hostler; do
  [ -x "$bindir/$program" ] || { echo "install: $bindir/$program is missing: run \`make build\` first" >&2; exit 1; }
done

put() { # MODE SOURCE TARGET-BELOW-DESTDIR
  mkdir -p "$destdir$(dirname "$3")"
  install -m "$1" "$2" "$destdir$3"
}

put_text() { # SOURCE-DIRECTORY TARGET-DIRECTORY: every file in it, with paths for this prefix
  for file in "$1"/*; do
    put 0644 "$file" "$2/$(basename "$file")"
    [ "$prefix" = /usr ] || sed -i -e "s#/usr/libexec/hostler/#$prefix/libexec/hostler/#g" \
      -e "s#/usr/lib/hostler/#$prefix/lib/hostler/#g" -e "s#/usr/lib/systemd/user/#$prefix/lib/systemd/user/#g" \
      -e "s#/usr/share/doc/hostler/#$prefix/share/doc/hostler/#g" -e "s#/usr/bin/hostler#$prefix/bin/hostler#g" \
      "$destdir$2/$(basename "$file")"
  done
}

put 0755 "$bindir/hostlerd" "$prefix/libexec/hostler/hostlerd"
put 0755 "$bindir/hostler" "$prefix/bin/hostler"
# Manual pages and completions are what the program says of itself.
"$bindir/hostler" --quiet pages "$destdir$prefix/share"
put_text units/system "$prefix/lib/systemd/system"
put_text units/system-preset "$prefix/lib/systemd/system-preset"
put_text units/user "$prefix/lib/systemd/user"
put_text units/service-user "$prefix/lib/systemd/user"
put_text units/sysusers.d "$prefix/lib/sysusers.d"
put_text units/tmpfiles.d "$prefix/lib/tmpfiles.d"
put_text units/catalog "$prefix/lib/systemd/catalog"
put_text units/containers "$prefix/lib/hostler"
for script in postinst prerm purge; do
  put 0755 "packaging/$script.sh" "$prefix/lib/hostler/$script.sh"
done
# Policies of the bus and of polkit are read from nowhere else but /etc, which is for administrators.
put_text units/dbus-1/interfaces "$prefix/share/dbus-1/interfaces"
put_text units/dbus-1/system.d /usr/share/dbus-1/system.d
put_text units/dbus-1/system-services "$prefix/share/dbus-1/system-services"
put_text units/dbus-1/services "$prefix/share/dbus-1/services"
put_text units/polkit-1/actions /usr/share/polkit-1/actions
put_text units/polkit-1/rules.d /usr/share/polkit-1/rules.d
# Read from nowhere else, either.
put 0644 units/needrestart/hostler.conf "$sysconfdir/needrestart/conf.d/hostler.conf"
# As in the source tree, so that the links among them hold.
for file in README.md ARCHITECTURE.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE docs/*.* docs/images/* \
  contrib/engines/*.* contrib/engines/*/*.* contrib/grafana/* contrib/haproxy/* contrib/nginx/* contrib/prometheus/scrape.yml \
  contrib/prometheus/alerts.yml; do
  put 0644 "$file" "$prefix/share/doc/hostler/$file"
done
# Packages bring the bill of materials of their binaries (sbom.py).
[ -z "${HOSTLER_SBOM:-}" ] || put 0644 "$HOSTLER_SBOM" "$prefix/share/hostler/hostler.cdx.json"
mkdir -p "$destdir$sysconfdir/hostler/models.d"
