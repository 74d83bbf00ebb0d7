//! nginx, with fixed responses and files.

use super::{
    PeerConfiguration, PeerDefinition, PeerFile, PeerFileContent, PeerListener, PeerProgram,
    PeerSetup,
};

/// Lengths of `/bytes/N` that have a file; the files are sparse.
const BODY_LENGTHS: [u64; 12] =
    [0, 64, 256, 512, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216];

pub(crate) const NGINX: PeerDefinition = PeerDefinition {
    name: "nginx",
    about: "nginx with fixed responses and files",
    why: "worker_processes and reuseport as nginx advises for many connections; its default of 1000 requests per connection is \
          lifted; opened files are kept open.",
    program: PeerProgram::OnPath { name: "nginx", version_args: &["-v"] },
    install: "apt-get install nginx-light",
    listener: PeerListener::OwnProcesses,
    speaks_tls: true,
    configure: configure_nginx,
};

fn configure_nginx(setup: &PeerSetup<'_>) -> PeerConfiguration {
    let dir = setup.dir.display().to_string();
    let mut files = vec![PeerFile::text("nginx.conf", render_config(setup))];
    files.extend(BODY_LENGTHS.map(|length| PeerFile {
        path: format!("bytes/{length}"),
        content: PeerFileContent::Zeros(length),
    }));
    let words = [setup.program, "-p", &dir, "-c", &setup.file("nginx.conf"), "-e", "stderr"];
    PeerConfiguration {
        command: words.map(str::to_string).to_vec(),
        environment: Vec::new(),
        files,
    }
}

fn render_config(setup: &PeerSetup<'_>) -> String {
    let PeerSetup { port, workers, .. } = setup;
    let dir = setup.dir.display();
    // The directory is readable by this user only, so root's workers must stay root.
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let (listen, tls) = match setup.certificate {
        None => ("", String::new()),
        Some(certificate) => (
            " ssl http2",
            format!(
                "        ssl_certificate {};\n        ssl_certificate_key {};\n        ssl_protocols TLSv1.2 TLSv1.3;\n        \
                 ssl_session_cache off;\n        ssl_session_tickets on;\n",
                certificate.certificate_file().display(),
                certificate.key_file().display()
            ),
        ),
    };
    let served = match setup.static_root {
        Some(root) => format!("root {};\n    ", root.display()),
        None => format!(
            "root {dir};\n        \
             location = / {{ return 200 'Handled by PID $pid\\n'; }}\n        \
             location /bytes/ {{ default_type application/octet-stream; }}\n        \
             location / {{ return 404; }}\n    "
        ),
    };
    let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {dir}/{kind};\n"))
        .concat();
    format!(
        "{user}daemon off;\n\
         worker_processes {workers};\n\
         worker_rlimit_nofile 16384;\n\
         pid {dir}/nginx.pid;\n\
         error_log stderr crit;\n\
         events {{\n    worker_connections 8192;\n}}\n\
         http {{\n{temp}    \
             access_log off;\n    \
             sendfile on;\n    \
             tcp_nopush on;\n    \
             tcp_nodelay on;\n    \
             keepalive_timeout 300s;\n    \
             keepalive_requests 1000000000;\n    \
             open_file_cache max=1000 inactive=300s;\n    \
             default_type 'text/plain; charset=utf-8';\n    \
             server {{\n        \
                 listen 127.0.0.1:{port} reuseport backlog=4096{listen};\n{tls}        \
                 {served}\
             }}\n}}\n"
    )
}
