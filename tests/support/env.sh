# What building and testing need, found or installed. Sourced by tests/run and .ci/run, so that both build in the same way into the
# same target directory and nothing is compiled twice.
# shellcheck shell=bash

step() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null; }

# Installs Debian packages; false where there is no Debian or no right to.
install_packages() {
    has apt-get || return 1
    local root=()
    if ((EUID != 0)); then
        has sudo && sudo -n true 2>/dev/null || return 1
        root=(sudo -n)
    fi
    step "installing $*"
    local install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@")
    "${install[@]}" >/dev/null 2>&1 || { "${root[@]}" apt-get update -qq && "${install[@]}" >/dev/null; }
}

# require COMMAND PACKAGE…: the command is there, or the packages bring it.
require() {
    local command=$1
    shift
    has "$command" || { install_packages "$@" && has "$command"; } || fail "$command is missing; on Debian: apt-get install $*"
}

cache=${CDRELAY_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cdrelay}
mkdir -p "$cache"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

has cargo || fail "cargo is missing; install Rust first: https://rustup.rs"
require cc gcc libc6-dev
require make make
require perl perl
require pkg-config pkg-config

# The system's OpenSSL saves minutes of compiling our own.
if [[ -z ${OPENSSL_NO_VENDOR:-} ]]; then
    if pkg-config --exists openssl || install_packages libssl-dev; then
        export OPENSSL_NO_VENDOR=1
    else
        step "no OpenSSL headers here: building OpenSSL from source, which takes minutes the first time"
    fi
fi

# Cargo tells checkouts that share a target directory apart by the age of their files alone.
if [[ -d $CARGO_TARGET_DIR && $PWD != "$(cat "$CARGO_TARGET_DIR/checkout" 2>/dev/null)" ]]; then
    cargo clean --quiet -p cdrelay
    printf '%s\n' "$PWD" >"$CARGO_TARGET_DIR/checkout"
fi
