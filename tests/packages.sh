#!/bin/sh
# Makes sure that each Debian package named is installed: `tests/packages.sh PACKAGE...`.
#
# As root it installs what is missing; otherwise it says what to install and fails. It never removes anything.
set -eu

missing=
for package in "$@"; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "tests need these packages:$missing (as root: apt-get install$missing)" >&2
    exit 1
fi

# One installation at a time: tests run side by side, and apt has a single lock.
export DEBIAN_FRONTEND=noninteractive
# A server that a test starts on a port of its own must not be started by its package as well.
exec 9>/tmp/pointsman-tests-apt.lock
flock 9
install() { RUNLEVEL=1 apt-get install -y --no-install-recommends $missing >/dev/null 2>&1; }
install || { apt-get update >/dev/null 2>&1 && install; } || {
    echo "tests need these packages, and apt-get could not install them:$missing" >&2
    exit 1
}
