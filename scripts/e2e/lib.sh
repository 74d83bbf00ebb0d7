# Functions for the scripts of this directory, which source it. Each case prints "ok NAME FIGURES" or "FAILED NAME REASON".
# What a machine cannot do at all (no root, no namespaces) is "skipped: NAME (REASON)", which scripts/test repeats at its
# end. A package that should be installable and is not is a failure: see require.

e2e_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
e2e_failed=0

# skip REASON: exits with status 0, as skipped.
skip() {
    printf 'skipped: scripts/e2e/%s (%s)\n' "$(basename -- "$0")" "$*"
    exit 0
}

# give_up REASON: exits with status 1, as failed.
give_up() {
    printf 'FAILED scripts/e2e/%s %s\n' "$(basename -- "$0")" "$*"
    exit 1
}

# die REASON: fails the current case.
die() {
    printf '%s\n' "$*"
    exit 1
}

# run_case NAME FUNCTION: runs a case; the function prints its figures, or calls die.
run_case() {
    local output status
    set +e
    output=$(
        set -e
        # Processes that end with the case.
        children=()
        trap 'end_children' EXIT
        "$2" 2>&1
    )
    status=$?
    set -e
    # One line for each case.
    output=$(tr '\n' ' ' <<<"$output")
    if ((status == 0)); then
        printf 'ok %s %s\n' "$1" "$output"
    else
        printf 'FAILED %s %s\n' "$1" "$output"
        e2e_failed=1
    fi
}

end_children() {
    ((${#children[@]})) || return 0
    kill -KILL "${children[@]}" 2>/dev/null || true
    wait "${children[@]}" 2>/dev/null || true
}

# need COMMAND PACKAGE...: installs the packages if the command is missing; fails if that is impossible, with the output of
# apt-get in $apt_output.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    apt_output="no apt-get here"
    command -v apt-get >/dev/null || return 1
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    # Retried after an update, as the package lists may be outdated.
    apt_output=$("${apt[@]}" install -y --no-install-recommends "$@" 2>&1 >/dev/null) || {
        "${apt[@]}" update >/dev/null 2>&1 || true
        apt_output=$("${apt[@]}" install -y --no-install-recommends "$@" 2>&1 >/dev/null) || return 1
    }
    apt_output="it is installed, and has no $command"
    command -v "$command" >/dev/null
}

# require COMMAND PACKAGE...: like need, but ends the script: as skipped without root or apt-get, as failed if the
# installation fails.
require() {
    need "$@" && return
    [[ $(id -u) == 0 ]] || skip "no $1 here, and only root can install it"
    command -v apt-get >/dev/null || skip "no $1 here, and no apt-get to install it"
    give_up "cannot install ${*:2}: $(tail -n 1 <<<"$apt_output")"
}

# await SECONDS COMMAND...: repeats a command until it succeeds.
await() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.05
    done
}

# seconds_of COMMAND...: runs a command, and prints how many seconds it took.
seconds_of() {
    local from=$EPOCHREALTIME
    "$@" >&2 || return
    awk -v from="$from" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f", to - from }'
}

# url_of CONTROL: prints the first address of the server with this control socket; fails until all its workers serve.
url_of() {
    local status
    status=$("$prefork" status --json --control "$1" 2>/dev/null) || return 1
    grep -q '"phase": "running"' <<<"$status" || return 1
    sed -n '/"listeners": \[/,/\]/s/^ *"\([^"]*:[^"]*\)".*/\1/p' <<<"$status" | head -n 1
}

# built_binary: prints the path of the binary that cargo test has built, and builds it if it is missing.
built_binary() {
    if [[ -n ${PREFORK_BINARY:-} ]]; then
        readlink -f -- "$PREFORK_BINARY"
        return
    fi
    (cd -- "$e2e_root" && cargo build --quiet --locked >&2)
    readlink -f -- "${CARGO_TARGET_DIR:-$e2e_root/target}/debug/prefork"
}

# load_begin FILE ARGUMENT...: starts a load in the background until load_end, with its report in FILE.
load_begin() {
    load_file=$1
    shift
    "$prefork" bench --warm-up 0 --duration 1h --timeout 15s --threads 1 --json "$@" >"$load_file" 2>"$load_file.err" &
    load_pid=$!
    children+=("$load_pid")
    await 20 load_has_handler || die "the load does not begin: $(cat -- "$load_file.err")"
}

# load_has_handler: succeeds once the load handles SIGINT, which the shell has its background processes ignore. One that comes earlier
# is lost, and the load goes on for its hour.
load_has_handler() { (( 0x$(awk '/SigCgt/ { print $2 }' "/proc/$load_pid/status") & 2 )); }

# load_end: ends the load, waits for requests in flight, and sets $load_figures.
load_end() {
    kill -INT "$load_pid" 2>/dev/null || true
    wait "$load_pid" || true
    [[ -s $load_file ]] || die "no report of the load: $(cat -- "$load_file.err")"
    load_figures="$(figure responses) responses, $(figure refused) refused, $(figure reset) reset, \
$(figure closed_early) closed early, $(figure timed_out) timed out, longest $(longest) ms"
}

# figure NAME: prints the first number of this name in the report of the load.
figure() {
    sed -n "s/^ *\"$1\": \([0-9]*\).*/\1/p" "$load_file" | head -n 1
}

# longest: prints the latency of the slowest request in milliseconds.
longest() {
    sed -n '/"latency"/,/"curve"/s/^ *"max": \([0-9]*\).*/\1/p' "$load_file" | awk '{ printf "%.0f", $1 / 1000 }'
}

# load_lost: prints how many requests failed.
load_lost() {
    local name sum=0
    for name in refused reset closed_early timed_out malformed; do
        sum=$((sum + $(figure "$name")))
    done
    printf '%s' "$sum"
}
