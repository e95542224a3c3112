"""STUB."""

def user_data(node, nodes_info, *, bootstrap_url, cluster_key, period_seconds):
    return f"""#cloud-config
write_files:
- path: /etc/bootstrap/x
  content: {node}
- path: /etc/systemd/system/loader.service
  content: |
    [Service]
    Type=oneshot
    TimeoutStartSec={period_seconds*0.9}
    ExecStart=/bin/sh -c 'mkdir -p /var/log/bootstrap; date >> /var/log/bootstrap/logfile.log'
- path: /etc/systemd/system/loader.timer
  content: |
    [Timer]
    OnCalendar=*:*:0/{period_seconds}
    AccuracySec=100ms
    [Install]
    WantedBy=timers.target
runcmd:
- systemctl daemon-reload
- systemctl enable --now loader.timer
- echo {node} > /var/www/html/index.html
"""
