# Stops what runs with the role, and kills what has not stopped half a second before `stop_seconds` are over:
# also what ignores SIGTERM, what was forked away from its unit, and whatever systemd has not said by then. That is
# what joined active.target, what the agent started (the file says it, and for how long the fence gives), and what
# these stop or trigger. The fence, bootup and the agent start it. What failed by being stopped counts as stopped; a
# failure of before stays.
# shellcheck shell=dash disable=SC2086 - one word a unit
set -u
now() {
    read -r up _ < /proc/uptime
    echo $((${up%.*} * 100 + 1${up#*.} - 100))
}
began=$(now) most='' units=''
{ read -r most units; } 2> /dev/null < /run/bootstrap/starts
for link in /etc/systemd/system/active.target.wants/* /etc/systemd/system/active.target.requires/*; do
    if [ -L "$link" ]; then units="$units ${link##*/}"; fi
done
[ "$units" ] || exit 0
units="active.target $units"
set -f
rm -f /run/bootstrap/starts
seconds=$(sed -n 's/^stop_seconds *= *\([0-9]\{1,2\}\) *$/\1/p' /etc/bootstrap/loader.conf 2> /dev/null)
[ "${seconds:-10}" -le "${most:-60}" ] || seconds=$most
deadline=$((began + ${seconds:-10} * 100 - 50))

ask() { # no later than the kill is due
    left=$((deadline - $(now)))
    [ "$left" -le 0 ] || timeout "${left}e-2" systemctl "$@"
}

kill_left() { # by their names: of a systemd that stands still nothing is to be learnt
    for unit in $units; do
        name=$(printf '%s' "$unit" | sed 's/\\/\\\\/g')
        find /sys/fs/cgroup -mindepth 1 -type d \( -name "$name" -print -o ! -name '*.slice' \) -prune
    done | while read -r group; do echo 1 > "$group/cgroup.kill"; done
} 2> /dev/null

# A fence that comes late, on a machine that stood still, leaves so much less.
fence=$(sed -n 's/.*-\([0-9]*\)\.timer$/\1/p' /run/bootstrap/fence 2> /dev/null)
if [ "$fence" ]; then
    now_us=$(timeout 0.3 systemctl show -p ExecMainStartTimestampMonotonic --value stop-active.service | tr -cd 0-9)
    late=$((${now_us:-0} / 10000 - fence / 10))
    [ "$late" -le 0 ] || deadline=$((deadline - late))
fi
timeout 0.3 systemctl stop start-active.service
known=''
while [ "$known" != "$units" ]; do
    known=$units
    units=$({
        printf '%s\n' $known
        ask show --property=Wants,Requires --value active.target
        ask show --property=ConsistsOf,RequiredBy,BoundBy,Triggers --value $known
        # A main process that was moved into a session (su, runuser -l: pam_systemd) is there with all that it started.
        for process in $(ask show --property=MainPID --value $known); do
            sed -n 's/^0::.*\/\([^/]*\.scope\)$/\1/p' "/proc/$process/cgroup" 2> /dev/null
        done
    } | sed 's/"//g; s/\\\\/\\/g' | tr ' ' '\n' | grep . | sort -u | tr '\n' ' ')
done
failed=" $(ask list-units --all --state=failed --plain --no-legend --full $units | cut -d ' ' -f 1 | tr '\n' ' ')"
ask stop $units
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do # what is killed before systemd knows that it is to stop may be started again
    kill_left
    timeout 0.2 systemctl kill --signal=KILL $units 2> /dev/null
    timeout 0.2 systemctl stop $units && break
done
for unit in $units; do
    case $failed in *" $unit "*) ;; *) systemctl reset-failed "$unit" 2> /dev/null ;; esac
done
exit 0
