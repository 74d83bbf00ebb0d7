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
    let missing = PeerDefinition { program: "no-such-program-9", ..node::NODE };
    let why = find_installed(&missing).expect_err("none");
    assert!(why.contains("no-such-program-9 is not on PATH"), "{why}");
    assert!(why.contains("apt-get install nodejs"), "{why}");
}

#[test]
fn node_is_started_as_it_is() {
    let node = configuration(&node::NODE, 3);
    assert_eq!(node.command, ["/usr/bin/program", "/dir/node_server.js"]);
    assert_eq!(node.environment, [("NODE_ENV", "production".to_string())]);
    let cluster = configuration(&node::NODE_CLUSTER, 3);
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
