#!/bin/sh
# Installs the Debian packages that trianglemix needs and this machine lacks; arguments name further packages.
# Does nothing, without root, when all of them are there.
set -eu

packages="gcc cmake ninja-build pkg-config libpcre2-dev libjansson-dev libcmocka-dev libdnnl-dev python3 python3-pip $*"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "install-packages: not a Debian system; expecting the counterparts of: $packages"
    exit 0
fi

missing=""
for package in $packages; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0

as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "install-packages: needs root or sudo to install:$missing" >&2
        exit 1
    fi
    as_root=sudo
fi

echo "installing:$missing"
# $missing and $as_root are lists of words on purpose.
# shellcheck disable=SC2086
$as_root apt-get -qq update
# shellcheck disable=SC2086
$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y $missing >/dev/null
