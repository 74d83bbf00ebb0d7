//! The demonstration routes of the built-in application, and serving without them.

use crate::support::Server;

/// The flag that the warning suggests.
const SUGGESTED_FLAG: &str = "--demo=false";

#[test]
fn without_demo_only_health_checks_are_served() {
    let server = Server::with(1, &["--demo=false"]);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/", "/cluster", "/fib/1", "/fib/1?on=loop", "/bytes/1", "/sleep/0", "/fault/exit"]
    {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.text().contains("cluster"), "{}", answer.text());
    }
    let posted = server.connect().post("/echo", b"x").expect("answer");
    assert_eq!(posted.status, 404);
    server.stop();
}

#[test]
fn faults_without_demo_are_a_configuration_error() {
    let ended = Server::builder().args(["--faults", "--demo=false"]).run();
    assert_eq!(ended.status, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.contains("demo"), "{}", ended.stderr);
}

#[test]
fn demo_routes_on_a_public_address_are_warned_about_once() {
    let open = Server::builder().workers(1).bind([":0"]).start();
    assert_eq!(open.count_log(&[SUGGESTED_FLAG]), 1, "{}", open.log());
    open.stop();
    for (bind, args) in [
        ("127.0.0.1:0", &[][..]),
        ("[::1]:0", &[]),
        ("unix:socket", &[]),
        (":0", &["--demo=false"]),
        (":0", &["--root", "."]),
    ] {
        let server = Server::builder().workers(1).bind([bind]).args(args.iter().copied()).start();
        assert_eq!(server.count_log(&[SUGGESTED_FLAG]), 0, "{bind} {args:?}");
        server.stop();
    }
}
