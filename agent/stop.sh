# Stops what runs with the role (the units that joined active.target), and kills what has not stopped half a
# second before `stop_seconds` are over: also what ignores SIGTERM, and what was forked away from its unit. The
# fence, bootup and the agent start it. What failed by being stopped counts as stopped; a failure of before stays.
# shellcheck shell=dash disable=SC2086 - one word a unit
set -u
units=
for link in /etc/systemd/system/active.target.wants/* /etc/systemd/system/active.target.requires/*; do
    if [ -L "$link" ]; then units="$units ${link##*/}"; fi
done
[ "$units" ] || exit 0
rm -f /run/bootstrap/starts
timeout 0.3 systemctl stop start-active.service
seconds=$(sed -n 's/^stop_seconds *= *\([0-9]\{1,2\}\) *$/\1/p' /etc/bootstrap/loader.conf 2> /dev/null)
groups=$(systemctl show --property=ControlGroup --value $units)
failed=" $(systemctl list-units --all --state=failed --plain --no-legend --full $units | cut -d ' ' -f 1 | tr '\n' ' ')"
timeout "$((${seconds:-10} - 1)).5" systemctl stop active.target $units
for group in $groups; do
    case $group in
        /*/*) [ ! -e "/sys/fs/cgroup$group/cgroup.kill" ] || echo 1 > "/sys/fs/cgroup$group/cgroup.kill" ;;
    esac
done
systemctl kill --signal=KILL $units 2> /dev/null
timeout 5 systemctl stop active.target $units
for unit in $units; do
    case $failed in *" $unit "*) ;; *) systemctl reset-failed "$unit" 2> /dev/null ;; esac
done
exit 0
