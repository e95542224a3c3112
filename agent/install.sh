# Brings this node's agent up; install.service starts it again until it has succeeded. A run may die
# at any line: the next one does all of them again. Of what the journal shows, the last command
# is the one that failed.
# shellcheck shell=dash
set -eux
umask 022
cd /etc/bootstrap
packages="apache2 logrotate openssh-client openssl python3-requests"
# Not just whether their programs are there: an installation that died leaves packages half set up.
# shellcheck disable=SC2086 - one word a package
if [ "$(dpkg-query --show --showformat='${db:Status-Status} ' $packages)" != \
    "installed installed installed installed installed " ]; then
    export DEBIAN_FRONTEND=noninteractive
    dpkg --configure -a || :  # it waits for no other installer, as the two below do
    apt-get -o DPkg::Lock::Timeout=120 update
    apt-get -o DPkg::Lock::Timeout=120 install -y $packages
fi
# An agent that is here and well stays: it asks the web site for a newer one itself.
passed="self-check passed"
if [ ! -e loader.py ] || [ "$(timeout 30 python3 -B loader.py --self-check)" != "$passed" ]; then
    python3 - @URL@/loader.py loader.tmp.py <<'END'
import http.client, os, sys, urllib.request
url, path = sys.argv[1:]
try:
    with urllib.request.urlopen(url, timeout=10) as answer:
        content = answer.read(1 << 20)
        promised = int(answer.headers.get("Content-Length") or len(content))
    if len(content) != promised:
        raise ValueError(f"not whole, {len(content)} bytes of {promised}")
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(f"{url}: {error}")
END
    [ "$(timeout 30 python3 -B loader.tmp.py --self-check)" = "$passed" ]
    mv loader.tmp.py loader.py
fi
mkdir -p /var/log/bootstrap
# Not a page that is neither ours nor the one that Apache came with: that is an application's. The
# folder may be somebody else's, who could plant a link or a folder where something is staged.
front=/var/www/html/index.html
if [ ! -e "$front" ] || grep -qs -e @OURS@ -e "Default Page: It works" "$front"; then
    cp index.html page.tmp
    mv -fT page.tmp "$front"
fi
a2enconf -q bootstrap
systemctl --no-reload enable bootup.service fence-clock.timer loader.timer rollback.timer
systemctl start bootup.service
systemctl restart apache2.service || {
    systemctl status --no-pager --full --lines=20 apache2.service
    exit 1
}
systemctl start fence-clock.timer loader.timer handover.service rollback.timer
sync -f /etc /var
touch installed
