# What the scripts of this directory share; to be sourced. Each case prints "ok NAME figures" or "FAILED NAME why", and
# what this machine cannot do at all (no root, no namespaces) "skipped: what (why)", which scripts/test repeats at its end.
# What could be had and cannot be installed is a failure: see require.

e2e_root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
e2e_failed=0

# skip WHY: ends the script, as no failure.
skip() {
    printf 'skipped: scripts/e2e/%s (%s)\n' "$(basename -- "$0")" "$*"
    exit 0
}

# give_up WHY: ends the script, as a failure.
give_up() {
    printf 'FAILED scripts/e2e/%s %s\n' "$(basename -- "$0")" "$*"
    exit 1
}

# die WHY: ends a case, as a failure.
die() {
    printf '%s\n' "$*"
    exit 1
}

# run_case NAME FUNCTION: the function prints its figures, or dies.
run_case() {
    local said status
    set +e
    said=$(
        set -e
        # Who a case starts, and has to end with it.
        children=()
        trap 'end_children' EXIT
        "$2" 2>&1
    )
    status=$?
    set -e
    # One line a case.
    said=$(tr '\n' ' ' <<<"$said")
    if ((status == 0)); then
        printf 'ok %s %s\n' "$1" "$said"
    else
        printf 'FAILED %s %s\n' "$1" "$said"
        e2e_failed=1
    fi
}

end_children() {
    ((${#children[@]})) || return 0
    kill -KILL "${children[@]}" 2>/dev/null || true
    wait "${children[@]}" 2>/dev/null || true
}

# need COMMAND PACKAGE...: installed if it is not there; fails if that cannot be, with apt-get's words in $apt_said.
need() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    apt_said="no apt-get here"
    command -v apt-get >/dev/null || return 1
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
    # The lists may be older than the packages.
    apt_said=$("${apt[@]}" install -y --no-install-recommends "$@" 2>&1 >/dev/null) || {
        "${apt[@]}" update >/dev/null 2>&1 || true
        apt_said=$("${apt[@]}" install -y --no-install-recommends "$@" 2>&1 >/dev/null) || return 1
    }
    apt_said="it is installed, and has no $command"
    command -v "$command" >/dev/null
}

# require COMMAND PACKAGE...: the same. Ends the script: skipped where nobody can install anything (no root, no apt-get), and
# failed where the installation fails.
require() {
    need "$@" && return
    [[ $(id -u) == 0 ]] || skip "no $1 here, and only root can install it"
    command -v apt-get >/dev/null || skip "no $1 here, and no apt-get to install it"
    give_up "cannot install ${*:2}: $(tail -n 1 <<<"$apt_said")"
}

# await SECONDS COMMAND...: until it succeeds.
await() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < until)) || return 1
        sleep 0.05
    done
}

# seconds_of COMMAND...: how long it took, in seconds.
seconds_of() {
    local from=$EPOCHREALTIME
    "$@" >&2 || return
    awk -v from="$from" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.2f", to - from }'
}

# built_binary: the path of the binary that cargo test has built, or builds it.
built_binary() {
    if [[ -n ${PREFORK_BINARY:-} ]]; then
        readlink -f -- "$PREFORK_BINARY"
        return
    fi
    (cd -- "$e2e_root" && cargo build --quiet --locked >&2)
    readlink -f -- "${CARGO_TARGET_DIR:-$e2e_root/target}/debug/prefork"
}

# load_begin FILE ARGUMENT...: puts load on a server in the background until load_end.
load_begin() {
    load_file=$1
    shift
    "$prefork" bench --warm-up 0 --duration 120s --timeout 15s --threads 1 --json "$@" >"$load_file" 2>"$load_file.err" &
    load_pid=$!
    children+=("$load_pid")
}

# load_end: ends it, waits for what is on the way, and sets $load_figures.
load_end() {
    kill -INT "$load_pid" 2>/dev/null || true
    wait "$load_pid" || true
    [[ -s $load_file ]] || die "no report of the load: $(cat -- "$load_file.err")"
    load_figures="$(figure responses) responses, $(figure refused) refused, $(figure reset) reset, \
$(figure closed_early) closed early, $(figure timed_out) timed out, longest $(longest) ms"
}

# figure NAME: the first number of this name in the report of the load.
figure() {
    sed -n "s/^ *\"$1\": \([0-9]*\).*/\1/p" "$load_file" | head -n 1
}

# longest: milliseconds from the moment the slowest request was due to the end of its response.
longest() {
    sed -n '/"latency"/,/"curve"/s/^ *"max": \([0-9]*\).*/\1/p' "$load_file" | awk '{ printf "%.0f", $1 / 1000 }'
}

# load_lost: how many requests failed, in whatever way.
load_lost() {
    local name sum=0
    for name in refused reset closed_early timed_out malformed; do
        sum=$((sum + $(figure "$name")))
    done
    printf '%s' "$sum"
}
