//! Servers in Python: uvicorn, gunicorn and Granian.

use super::{
    PeerConfiguration, PeerDefinition, PeerFile, PeerListener, PeerProgram, PeerSetup, words,
};

const PATHS: &str = include_str!("programs/paths.py");
const ASGI: &str = include_str!("programs/asgi.py");
const WSGI: &str = include_str!("programs/wsgi.py");
const RSGI: &str = include_str!("programs/rsgi.py");

pub(crate) const UVICORN: PeerDefinition = PeerDefinition {
    name: "uvicorn",
    about: "a plain ASGI application on uvicorn, under prefork run",
    why: "uvloop and httptools are what uvicorn[standard] installs, and uvicorn's fastest choices.",
    program: PeerProgram::OnPath { name: "uvicorn", version_args: &["--version"] },
    install: "pip install 'uvicorn[standard]'",
    listener: PeerListener::Inherited,
    speaks_tls: true,
    configure: |setup| uvicorn(setup, &["--fd", "{fd}"]),
};

pub(crate) const UVICORN_WORKERS: PeerDefinition = PeerDefinition {
    name: "uvicorn-workers",
    about: "a plain ASGI application on uvicorn with its own workers",
    listener: PeerListener::OwnProcesses,
    configure: |setup| {
        let workers = setup.workers.to_string();
        uvicorn(setup, &["--host", "127.0.0.1", "--port", setup.port, "--workers", &workers])
    },
    ..UVICORN
};

pub(crate) const GUNICORN: PeerDefinition = PeerDefinition {
    name: "gunicorn",
    about: "a plain WSGI application on gunicorn with sync workers, under prefork run",
    why: "sync is gunicorn's default, for use behind a proxy: it closes each connection after its response.",
    program: PeerProgram::OnPath { name: "gunicorn", version_args: &["--version"] },
    install: "pip install gunicorn",
    listener: PeerListener::Inherited,
    speaks_tls: true,
    configure: |setup| gunicorn(setup, "fd://{fd}", 1, &["--worker-class", "sync"]),
};

pub(crate) const GUNICORN_GTHREAD: PeerDefinition = PeerDefinition {
    name: "gunicorn-gthread",
    about: "a plain WSGI application on gunicorn with threads, under prefork run",
    why: "gthread is gunicorn's way to keep connections; 4 threads per worker are within the 2 to 4 per core that it advises.",
    configure: |setup| gunicorn(setup, "fd://{fd}", 1, &GTHREAD_ARGS),
    ..GUNICORN
};

pub(crate) const GUNICORN_WORKERS: PeerDefinition = PeerDefinition {
    name: "gunicorn-workers",
    about: "a plain WSGI application on gunicorn with threads and its own workers",
    listener: PeerListener::OwnProcesses,
    configure: |setup| {
        let address = format!("127.0.0.1:{}", setup.port);
        gunicorn(setup, &address, setup.workers, &GTHREAD_ARGS)
    },
    ..GUNICORN_GTHREAD
};

pub(crate) const GRANIAN: PeerDefinition = PeerDefinition {
    name: "granian",
    about: "a plain RSGI application on Granian with its own workers",
    why: "RSGI is Granian's own interface and its fastest; one thread per worker is its default. It takes no inherited socket.",
    program: PeerProgram::OnPath { name: "granian", version_args: &["--version"] },
    install: "pip install 'granian[uvloop]'",
    listener: PeerListener::OwnProcesses,
    speaks_tls: true,
    configure: granian,
};

const GTHREAD_ARGS: [&str; 6] =
    ["--worker-class", "gthread", "--threads", "4", "--keep-alive", "300"];

fn uvicorn(setup: &PeerSetup<'_>, socket: &[&str]) -> PeerConfiguration {
    let dir = setup.dir.display().to_string();
    let mut command = words(&[setup.program, "asgi:app", "--app-dir", &dir]);
    command.extend(words(socket));
    command.extend(words(&["--loop", "uvloop", "--http", "httptools", "--no-access-log"]));
    command.extend(words(&["--log-level", "warning", "--timeout-keep-alive", "300"]));
    command.extend(words(&["--backlog", "4096"]));
    if let Some((certificate, key)) = setup.certificate_files() {
        command.extend(words(&["--ssl-certfile", &certificate, "--ssl-keyfile", &key]));
    }
    python(command, &[("asgi.py", ASGI), ("paths.py", PATHS)])
}

fn gunicorn(
    setup: &PeerSetup<'_>,
    address: &str,
    workers: usize,
    kind: &[&str],
) -> PeerConfiguration {
    let (dir, workers) = (setup.dir.display().to_string(), workers.to_string());
    let mut command =
        words(&[setup.program, "--chdir", &dir, "--workers", &workers, "--bind", address]);
    command.extend(words(kind));
    command.extend(words(&["--backlog", "4096", "--graceful-timeout", "1"]));
    command.extend(words(&["--log-level", "warning"]));
    if let Some((certificate, key)) = setup.certificate_files() {
        command.extend(words(&["--certfile", &certificate, "--keyfile", &key]));
    }
    command.push("wsgi:app".to_string());
    python(command, &[("wsgi.py", WSGI), ("paths.py", PATHS)])
}

fn granian(setup: &PeerSetup<'_>) -> PeerConfiguration {
    let (dir, workers) = (setup.dir.display().to_string(), setup.workers.to_string());
    let mut command = words(&[setup.program, "--working-dir", &dir, "--interface", "rsgi"]);
    command.extend(words(&["--host", "127.0.0.1", "--port", setup.port, "--workers", &workers]));
    command.extend(words(&["--loop", "uvloop", "--backlog", "4096", "--no-access-log"]));
    command.extend(words(&["--log-level", "warning", "--workers-kill-timeout", "1"]));
    if let Some((certificate, key)) = setup.certificate_files() {
        command.extend(words(&["--ssl-certificate", &certificate, "--ssl-keyfile", &key]));
    }
    command.push("rsgi:app".to_string());
    python(command, &[("rsgi.py", RSGI), ("paths.py", PATHS)])
}

fn python(command: Vec<String>, files: &[(&str, &str)]) -> PeerConfiguration {
    let files = files.iter().map(|(name, text)| PeerFile::text(name, *text)).collect();
    PeerConfiguration { command, environment: Vec::new(), files }
}
