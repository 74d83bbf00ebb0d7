use super::*;

fn configuration(peer: &PeerDefinition, workers: usize) -> PeerConfiguration {
    (peer.configure)(&PeerSetup {
        program: "/usr/bin/program",
        dir: Path::new("/dir"),
        port: "8080",
        workers,
        certificate: None,
        static_root: None,
    })
}

fn text(configuration: &PeerConfiguration, path: &str) -> String {
    let file = configuration.files.iter().find(|file| file.path == path).expect(path);
    match &file.content {
        PeerFileContent::Text(text) => text.clone(),
        PeerFileContent::Zeros(_) => panic!("{path} is a body"),
    }
}

#[test]
fn names_of_peers_are_unique_and_found() {
    for peer in all_peers() {
        assert_eq!(find_peer(peer.name).map(|found| found.name), Ok(peer.name));
        assert_eq!(all_peers().filter(|other| other.name == peer.name).count(), 1);
    }
    let why = find_peer("apache").expect_err("none");
    assert!(why.contains("nginx") && why.contains("NAME=COMMAND"), "{why}");
}

#[test]
fn a_missing_program_says_how_to_install_it() {
    let program = PeerProgram::OnPath { name: "no-such-program-9", version_args: &[] };
    let missing = PeerDefinition { program, ..javascript::NODE };
    let why = check_peer(&missing, false, false).expect_err("none");
    assert!(why.contains("no-such-program-9 is not on PATH"), "{why}");
    assert!(why.contains("apt-get install nodejs"), "{why}");
}

#[test]
fn node_is_started_as_it_is() {
    let node = configuration(&javascript::NODE, 3);
    assert_eq!(node.command, ["/usr/bin/program", "/dir/node_server.js"]);
    assert_eq!(node.environment, [("NODE_ENV", "production".to_string())]);
    let cluster = configuration(&javascript::NODE_CLUSTER, 3);
    assert_eq!(cluster.command[1..], ["/dir/node_cluster.js", "3", "rr"]);
    assert!(cluster.environment.contains(&("PORT", "8080".to_string())));
    assert_eq!(cluster.files.len(), 2);
}

#[test]
fn nginx_has_as_many_workers_and_no_limit_of_requests() {
    let nginx = configuration(&nginx::NGINX, 3);
    let config = text(&nginx, "nginx.conf");
    for line in [
        "worker_processes 3;",
        "listen 127.0.0.1:8080 reuseport backlog=4096;",
        "access_log off;",
        "keepalive_requests 1000000000;",
        "location = / { return 200 'Handled by PID $pid\\n'; }",
    ] {
        assert!(config.contains(line), "{line}: {config}");
    }
    assert!(nginx.files.contains(&PeerFile {
        path: "bytes/65536".to_string(),
        content: PeerFileContent::Zeros(65_536)
    }));
}

/// Returns the command line of a peer with a port and a certificate.
fn https_line(peer: &PeerDefinition) -> String {
    let certificate = CompareCertificate::in_directory(Path::new("/tls"));
    let setup = PeerSetup {
        program: peer.program.name(),
        dir: Path::new("/dir"),
        port: "{port}",
        workers: 3,
        certificate: Some(&certificate),
        static_root: None,
    };
    (peer.configure)(&setup).command.join(" ")
}

#[test]
fn peers_that_take_a_socket_have_one_process_per_worker_of_prefork() {
    let line = |peer| configuration(peer, 3).command.join(" ");
    let uvicorn = line(&python::UVICORN);
    assert!(uvicorn.contains(" --fd {fd} --loop uvloop --http httptools "), "{uvicorn}");
    assert!(!uvicorn.contains("--workers"), "{uvicorn}");
    let gunicorn = line(&python::GUNICORN);
    assert!(gunicorn.contains("--workers 1 --bind fd://{fd} --worker-class sync"), "{gunicorn}");
    let gthread = line(&python::GUNICORN_GTHREAD);
    assert!(gthread.contains("--worker-class gthread --threads 4 --keep-alive 300"), "{gthread}");
    let puma = text(&configuration(&puma::PUMA, 3), "puma.rb");
    assert!(puma.contains("workers 0\nthreads 5, 5\n"), "{puma}");
}

#[test]
fn peers_with_processes_of_their_own_have_as_many_as_there_are_workers() {
    let line = |peer| configuration(peer, 3).command.join(" ");
    for peer in [&python::UVICORN_WORKERS, &python::GUNICORN_WORKERS, &python::GRANIAN] {
        let line = line(peer);
        assert!(line.contains("--workers 3") && line.contains("8080"), "{line}");
    }
    let puma = text(&configuration(&puma::PUMA_CLUSTER, 3), "puma.rb");
    assert!(puma.contains("workers 3\npreload_app!\n"), "{puma}");
    assert!(line(&javascript::PM2).ends_with("start /dir/node_server.js -i 3"));
    assert!(line(&javascript::BUN).ends_with("/dir/bun_server.js 3"));
    assert_eq!(line(&rust::AXUM), "/usr/bin/program 3 8080");
    assert!(line(&javascript::DENO).ends_with("/dir/deno_server.js 3"));
}

#[test]
fn peers_that_speak_tls_get_certificate_and_key() {
    for (peer, part) in [
        (&python::UVICORN, "--ssl-certfile /tls/cert.pem --ssl-keyfile /tls/key.pem"),
        (&python::GUNICORN, "--certfile /tls/cert.pem --keyfile /tls/key.pem"),
        (&python::GRANIAN, "--ssl-certificate /tls/cert.pem --ssl-keyfile /tls/key.pem"),
        (&puma::PUMA, "ssl://127.0.0.1:{port}?cert=/tls/cert.pem&key=/tls/key.pem"),
    ] {
        let line = https_line(peer);
        assert!(line.contains(part), "{line}");
    }
    let why = check_peer(&rust::AXUM, true, false).expect_err("no TLS");
    assert!(why.contains("without --https"), "{why}");
}
