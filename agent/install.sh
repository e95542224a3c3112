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
    # The web site is not to be trusted: an operator has signed which agent it is.
    python3 - @URL@ @OURS@ loader.tmp.py <<'END'
import hashlib, http.client, json, os, subprocess, sys, urllib.request
base, namespace, path = sys.argv[1:]
url = base

def get(name, most):
    global url
    url = f"{base}/{name}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        content = answer.read(most)
        promised = int(answer.headers.get("Content-Length") or len(content))
    if len(content) != promised:
        raise ValueError(f"not whole, {len(content)} bytes of {promised}")
    return content

def write(name, content):
    with open(name, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())

try:
    told = get("release.json", 1 << 16)
    release = json.loads(told)
    signature = get(f"releases/{int(release['generation'])}/release.json.sig", 1 << 14)
    write("release.tmp.sig", signature)
    words = ["-Y", "verify", "-f", "allowed_signers", "-I", "operator", "-n", namespace]
    words += ["-s", "release.tmp.sig"]
    ran = subprocess.run(["ssh-keygen", *words], input=told, stdout=2, timeout=10)
    os.remove("release.tmp.sig")
    if ran.returncode:
        raise ValueError("its signature is no operator's")
    with open("cluster") as file:
        own = file.read().strip()
    if release["cluster"] != own:
        raise ValueError(f"a release of {release['cluster']}, and this is a node of {own}")
    digest = release["files"]["loader.py"]["sha256"]
    content = get(f"releases/{digest}/loader.py", 1 << 20)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("not what the release says it is")
    write(path, content)
except (
    *(OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException),
    subprocess.TimeoutExpired,
) as error:
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
systemctl --no-reload enable bootup.service fence-clock.timer health.path loader.timer rollback.timer
systemctl start bootup.service
systemctl restart apache2.service || {
    systemctl status --no-pager --full --lines=20 apache2.service
    exit 1
}
systemctl start fence-clock.timer health.path loader.timer handover.service rollback.timer
sync -f /etc /var
touch installed
