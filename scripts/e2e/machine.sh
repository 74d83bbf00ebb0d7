# Functions for scripts that test under a real systemd, which source it after lib.sh: a minimal Debian (made once, in a cache),
# booted by systemd-nspawn in namespaces that end with the script.
#
# The script calls `outside RELEASE...`, which runs it again for each release as `SCRIPT --inside RELEASE BINARY PID`, with namespaces
# of its own. It defines install_prefork, which installs the server into $machine before the boot, and may define prepare and
# clean_up, which run once outside, before and after all.

cache=${XDG_CACHE_HOME:-/var/cache}/prefork-e2e
url=http://127.0.0.1:3000

# Seconds for all cases of one release, without creating its file system.
limit=240

### Outside the namespaces: requirements and cleaning up.

make_root() {
    [[ -d $cache/$1 ]] && return
    mkdir -p -- "$cache"
    local new
    new=$(mktemp -d --tmpdir="$cache")
    chmod 755 -- "$new"
    if ! timeout 420 debootstrap --variant=minbase --include=systemd,systemd-sysv,libnss-systemd "$1" "$new" \
        "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$cache/$1.log" 2>&1; then
        tail -n 3 -- "$cache/$1.log" >&2
        rm -rf -- "$new"
        return 1
    fi
    mv -T -- "$new" "$cache/$1"
}

# group_places ID: prints control groups of this run, below which nspawn creates its own, so that runs do not collide.
group_places() {
    local place
    for place in /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup; do
        [[ -w $place/cgroup.procs ]] && printf '%s/prefork-e2e-%s\n' "$place" "$1"
    done
    return 0
}

remove_groups() {
    rmdir -- "/sys/fs/cgroup/memory/prefork-e2e-$$" 2>/dev/null || true
    group_places "$$" | while read -r place; do
        # Groups of processes that are still ending can be removed a moment later.
        [[ ! -d $place ]] || await 5 remove_tree "$place" || printf 'left behind: %s\n' "$place" >&2
    done
}

remove_tree() {
    find "$1" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [[ ! -d $1 ]]
}

prepare() { :; }
clean_up() { :; }

outside() {
    local release tried
    [[ $(id -u) == 0 ]] || skip "needs root"
    unshare --mount --net --pid --fork true 2>/dev/null || skip "no namespaces may be made here"
    require debootstrap debootstrap
    require systemd-nspawn systemd-container
    prefork=$(built_binary)
    trap 'clean_up; remove_groups' EXIT
    prepare
    for release in "$@"; do
        make_root "$release" || give_up "cannot make a file system of Debian $release: see $cache/$release.log"
        group_places "$$" | while read -r place; do mkdir -p -- "$place"; done
        timeout -k 5 "$limit" unshare --mount --propagation private --net --pid --fork --mount-proc --kill-child \
            "$(readlink -f -- "$0")" --inside "$release" "$prefork" "$$" || e2e_failed=1
    done
    exit "$e2e_failed"
}

### Inside the namespaces: the booted Debian.

in_machine() { nsenter --all --target "$leader" -- "$@"; }
ctl() { in_machine systemctl "$@"; }
show() { ctl show --value --property "$1" "${2:-prefork}"; }
status_json() { in_machine prefork status --json; }
answers() { status_json >/dev/null; }
# workers: prints the pids of the workers.
workers() { status_json | sed -n 's/^ *"pid": \([0-9]*\).*/\1/p' | grep -vx -- "$(show MainPID)"; }
# signal ARGUMENT...: kill(1), which a minimal Debian does not have.
signal() { in_machine bash -c 'kill "$@"' kill "$@"; }
journal() { in_machine journalctl --no-pager --quiet --unit prefork "$@"; }
# own_journal ARGUMENT...: the records of the service since its last start, without those of systemd.
own_journal() { in_machine journalctl --no-pager --quiet "_SYSTEMD_INVOCATION_ID=$(show InvocationID)" "$@"; }
# has_line PATTERN, first_line PATTERN: as grep -q and grep -m 1, but they read their input to its end. grep would end journalctl
# with SIGPIPE, which pipefail counts as a failure.
has_line() { [[ -n $(grep -- "$1") ]]; }
first_line() { grep -- "$1" | sed -n 1p; }
is_active() { [[ $(show ActiveState) == active ]]; }

# drop_in NAME: installs standard input as a drop-in of the service.
drop_in() {
    mkdir -p -- "$machine/etc/systemd/system/prefork.service.d"
    cat >"$machine/etc/systemd/system/prefork.service.d/$1.conf"
    ctl daemon-reload
}

# fresh: restarts the service with the current drop-ins.
fresh() {
    ctl stop prefork.socket prefork.service 2>/dev/null || true
    ctl reset-failed 2>/dev/null || true
    ctl start prefork || die "did not start: $(journal --lines 3 --output cat)"
}

# under_load [RATE]: starts a load of new connections at a steady rate.
under_load() {
    load_begin "$work/load.json" --close --rate "${1:-200}" --connections 64 "$url/"
    await 5 requests_come || die "no load: $(cat -- "$work/load.json.err")"
}
requests_come() { ((($(requests)) > 10)); }
requests() { status_json | sed -n 's/^ *"requests": \([0-9]*\).*/\1/p' | sort -n | tail -n 1; }

none_refused() { [[ $(figure refused) == 0 ]] || die "$load_figures"; }
none_lost() { [[ $(load_lost) == 0 ]] || die "$load_figures"; }

boot() {
    machine=$work/machine
    mount -t tmpfs -o mode=755 prefork-e2e "$work"
    mkdir -- "$work/upper" "$work/work" "$machine"
    mount -t overlay -o "lowerdir=$cache/$release,upperdir=$work/upper,workdir=$work/work" overlay "$machine"
    install_prefork
    ip link set lo up
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --directory "$machine" --boot --register=no --keep-unit \
        --machine prefork-e2e --capability=CAP_BPF --system-call-filter=bpf --console=pipe </dev/null >"$work/console" 2>&1 &
    nspawn=$!
    await 20 booted || {
        cat -- "$work/console"
        printf 'FAILED boot of %s\n' "$release"
        exit 1
    }
    drop_in e2e <<'UNIT'
[Service]
Environment=PREFORK_WORKERS=2 PREFORK_FAULTS=true
TimeoutStartSec=20
UNIT
}

booted() {
    leader=$(pgrep --parent "$nspawn" | head -n 1)
    [[ -n $leader ]] && [[ $(ctl is-system-running 2>/dev/null) =~ ^(running|degraded)$ ]]
}

# begin_machine RELEASE BINARY PID: boots the release, and sets $work, $machine, $prefork, $outer and $version.
begin_machine() {
    release=$1 prefork=$2 outer=$3
    group_places "$outer" | while read -r place; do echo 0 >"$place/cgroup.procs"; done
    work=$(mktemp -d)
    boot
    version=$(ctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    printf 'Debian %s, systemd %s\n' "$release" "$version"
}

# end_machine: ends the script with the status of its cases.
end_machine() {
    ctl poweroff 2>/dev/null || true
    await 10 gone || true
    umount -- "$machine" "$work" 2>/dev/null || true
    rmdir -- "$work" 2>/dev/null || true
    exit "$e2e_failed"
}
gone() { ! kill -0 "$nspawn"; }
