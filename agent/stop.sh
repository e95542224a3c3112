# Stops what runs with the role, and kills what has not stopped half a second before `stop_seconds` are over: also
# what ignores SIGTERM or was forked away, and whatever systemd has said. That is what joined active.target, what
# the agent started (its file says it, and what time the fence gives), and what these stop or trigger. What failed
# by being stopped counts as stopped; a failure of before stays.
# shellcheck shell=dash disable=SC2086 - one word a unit
set -u
now() {
    read -r up _ < /proc/uptime
    echo $((${up%.*} * 100 + 1${up#*.} - 100))
}
began=$(now) most=60 units='' run=/run/bootstrap
# Nothing starts any more; what did is known until it has stopped, to the agent and the next stop.
[ ! -e $run/starts ] || cat $run/stops >> $run/starts 2> /dev/null
mv -f $run/starts $run/stops 2> /dev/null
while read -r seconds started; do
    units="$units $started"
    [ "$seconds" -ge $most ] || most=$seconds
done 2> /dev/null < $run/stops
for link in /etc/systemd/system/active.target.[wr]*/*; do
    [ ! -L "$link" ] || units="$units ${link##*/}"
done
[ "$units" ] || exit 0
units="active.target $units"
set -f
# As the agent reads it. The shorter one: the fence may be armed for that.
seconds=$(sed -n 's/^\s*stop_seconds\s*[=:]\s*\([1-9][0-9]\?\)\s*$/\1/I;T;p;q' /etc/bootstrap/loader.conf 2> /dev/null)
[ "${seconds:-10}" -le $most ] || seconds=$most
deadline=$((began + ${seconds:-10} * 100 - 50))

ask() { # no later than the kill is due
    left=$((deadline - $(now)))
    [ "$left" -le 0 ] || timeout "${left}e-2" systemctl "$@"
}

soon() { timeout 0.15 systemctl "$@" 2> /dev/null; } # three in less than that half a second

kill_left() { # by their names (io.service has _io.service): a systemd that stands still says nothing
    for name in $names; do set -- "$@" -o -name "$name" -o -name "_$name"; done
    find /sys/fs/cgroup -mindepth 1 -type d \( \( -false "$@" \) -print -o ! -name '*.slice' \) -prune |
        while read -r group; do echo 1 > "$group/cgroup.kill"; done
} 2> /dev/null

# A fence that comes late (the machine stood still) leaves so much less.
fence=$(sed -n 's/.*-\([0-9]*\)\.timer$/\1/p' $run/fence 2> /dev/null)
if [ "$fence" ]; then
    now_us=$(timeout 0.3 systemctl show -p ExecMainStartTimestampMonotonic --value stop-active.service | tr -cd 0-9)
    late=$((${now_us:-0} / 10000 - fence / 10))
    [ "$late" -le 0 ] || deadline=$((deadline - late))
fi
timeout 0.3 systemctl stop start-active.service
for _ in $(seq 9); do # a socket's connections (Accept=yes) by a pattern: more may come, a daemon-reload loses them
    known=$units
    units=$({
        printf '%s\n' $known
        ask show --property=Wants,Requires --value active.target
        ask show --property=Id,ConsistsOf,RequiredBy,BoundBy,Triggers --value $known
        # A main process that pam_systemd (su, runuser -l) moved into a session: all of that.
        for process in $(ask show --property=MainPID --value $known); do
            sed -n 's/^0::.*\/\([^/]*\.scope\)$/\1/p' "/proc/$process/cgroup" 2> /dev/null
        done
    } | tr ' ' '\n' | sed -n 's/"//g; s/\\\\/\\/g; /./p; /\.socket$/{s/\(@.*\)\?\.socket$/@[0-9]*-*.service/; y/\\/?/; p}' |
        sort -u | tr '\n' ' ')
    [ "$known" != "$units" ] || break
done
names=$(printf '%s' "$units" | tr '\\' '?') list='list-units --all --plain --no-legend --full'
failed=" $(ask $list --state=failed $names | cut -d ' ' -f 1 | tr '\n' ' ')"
ask stop $units
for _ in $(seq 15); do # what is killed before systemd knows of the stop may be started again
    kill_left
    soon kill --signal=KILL $units
    soon stop $units
    left=$(soon $list --state=active,activating,reloading,deactivating $names) || left=unknown
    [ "$left" ] || break
done
for unit in $(timeout 1 systemctl $list --state=failed $names | cut -d ' ' -f 1); do
    case $failed in *" $unit "*) ;; *) soon reset-failed "$unit" ;; esac
done
[ "$left" ] || rm -f $run/stops
