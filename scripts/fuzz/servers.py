"""The compared servers: prefork, nginx with a Node upstream that reports how nginx parsed a request, and Node."""

import os
import signal
import socket
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))

NGINX = """
worker_processes 2;
daemon off;
pid {dir}/nginx.pid;
error_log {dir}/nginx.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_header_buffer_size 8k;
    large_client_header_buffers 8 64k;
    client_body_buffer_size 256k;
    client_max_body_size 0;
    keepalive_requests 100000;
    keepalive_timeout 60;
    upstream reports {{ server unix:{dir}/upstream; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        merge_slashes off;
        location / {{
            rewrite ^ /seen break;
            proxy_pass http://reports;
            proxy_http_version 1.1;
            proxy_method POST;
            proxy_pass_request_headers off;
            proxy_set_header Host reports;
            proxy_set_header Connection "";
            proxy_set_header X-Method $request_method;
            proxy_set_header X-Target $request_uri;
        }}
    }}
}}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Servers:
    """Starts all three, or only nginx and Node without the command `ours`. Their ports are in `ports`."""

    def __init__(self, directory, ours):
        self.children = []
        self.ports = {name: free_port() for name in ("ours", "nginx", "node") if ours or name != "ours"}
        node = ["node", os.path.join(HERE, "peers.js"), str(self.ports["node"]), os.path.join(directory, "upstream")]
        self.start(directory, "node", node)
        self.await_port("node")
        os.chmod(os.path.join(directory, "upstream"), 0o777)
        configuration = os.path.join(directory, "nginx.conf")
        with open(configuration, "w") as f:
            f.write(NGINX.format(dir=directory, port=self.ports["nginx"]))
        self.start(directory, "nginx", ["nginx", "-p", directory, "-c", configuration])
        self.await_port("nginx")
        if not ours:
            return
        self.start(directory, "ours", [word.replace("ADDRESS", f"127.0.0.1:{self.ports['ours']}") for word in ours])
        self.await_port("ours")

    def start(self, directory, name, command):
        log = open(os.path.join(directory, name + ".out"), "wb")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFORK_")}
        environment["PATH"] += ":/usr/sbin:/sbin"
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        self.children.append((name, child))

    def await_port(self, name, seconds=30):
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            try:
                socket.create_connection(("127.0.0.1", self.ports[name]), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise SystemExit(f"{name} does not listen after {seconds} s")
                time.sleep(0.02)

    def check(self):
        """Fails the run if a server has ended."""
        for name, child in self.children:
            if child.poll() is not None:
                raise SystemExit(f"{name} has ended with {child.returncode}")

    def stop(self):
        for _, child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
        for _, child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
