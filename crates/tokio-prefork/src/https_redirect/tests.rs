use super::*;

fn respond(redirect: &HttpsRedirect, request: Request<()>) -> RedirectResponse {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(redirect.respond(&request))
}

fn location(port: Option<u16>, method: &str, target: &str, host: Option<&str>) -> Option<String> {
    let mut request = Request::builder().method(method).uri(target);
    if let Some(host) = host {
        request = request.header(HOST, host);
    }
    let request = request.body(()).expect("request");
    let response = respond(&HttpsRedirect::new(port, None), request);
    let location = response.headers().get(LOCATION);
    let is_redirect = response.status() == StatusCode::PERMANENT_REDIRECT;
    assert_eq!(is_redirect, location.is_some(), "{response:?}");
    assert!(is_redirect || response.status() == StatusCode::BAD_REQUEST, "{response:?}");
    location.map(|value| value.to_str().expect("text").to_string())
}

#[test]
fn every_target_is_redirected_to_its_https_url() {
    for (target, host, url) in [
        ("/", Some("example.org"), "https://example.org/"),
        ("/a/b?c=d&e", Some("example.org:80"), "https://example.org/a/b?c=d&e"),
        ("/?", Some("example.org"), "https://example.org/?"),
        ("//evil.example/", Some("example.org"), "https://example.org//evil.example/"),
        ("/\\evil.example", Some("example.org"), "https://example.org/\\evil.example"),
        ("/%0d%0aA:b", Some("example.org."), "https://example.org/%0d%0aA:b"),
        ("/\u{fc}?\u{fc}", Some("[::1]:80"), "https://[::1]/%C3%BC?%C3%BC"),
        ("http://example.org/a?b", Some("other.example"), "https://example.org/a?b"),
        ("http://example.org:80?b", None, "https://example.org/?b"),
        ("*", Some("example.org"), "https://example.org/"),
    ] {
        assert_eq!(location(None, "OPTIONS", target, host).as_deref(), Some(url));
    }
    let url = location(Some(8443), "POST", "/a", Some("127.0.0.1:8080"));
    assert_eq!(url.as_deref(), Some("https://127.0.0.1:8443/a"));
    assert_eq!(location(Some(443), "GET", "/", Some("a")).as_deref(), Some("https://a/"));
}

#[test]
fn a_request_without_a_valid_host_is_refused() {
    for host in
        [None, Some(""), Some("a@b"), Some("a/b"), Some("a%2fb"), Some("1.2.3"), Some("[x]")]
    {
        assert_eq!(location(None, "GET", "/", host), None, "{host:?}");
    }
    assert_eq!(location(None, "GET", "http://user@host/", Some("host")), None);
    assert_eq!(location(None, "CONNECT", "example.org:443", Some("example.org")), None);
}

#[test]
fn the_body_contains_nothing_of_the_request() {
    let request = Request::builder().uri("/secret").header(HOST, "example.org").body(());
    let response = respond(&HttpsRedirect::new(None, None), request.expect("request"));
    let body = format!("{:?}", response.body());
    assert!(!body.contains("secret") && !body.contains("example.org"), "{body}");
}

#[test]
fn challenges_are_served_from_their_directory_and_nothing_else_is() {
    let dir = tempfile::tempdir().expect("directory");
    std::fs::write(dir.path().join("token-1"), "token-1.key").expect("write");
    let redirect = HttpsRedirect::new(None, Some(dir.path()));
    for (method, target, status) in [
        ("GET", "/.well-known/acme-challenge/token-1", 200),
        ("HEAD", "/.well-known/acme-challenge/token-1?query", 200),
        ("POST", "/.well-known/acme-challenge/token-1", 405),
        ("GET", "/.well-known/acme-challenge/token-2", 404),
        ("GET", "/.well-known/acme-challenge/", 404),
        ("GET", "/.well-known/acme-challenge/token%2d1", 404),
        ("GET", "/.well-known/acme-challenge", 308),
        ("GET", "/token-1", 308),
    ] {
        let request = Request::builder().method(method).uri(target).header(HOST, "example.org");
        let response = respond(&redirect, request.body(()).expect("request"));
        assert_eq!(response.status(), status, "{method} {target}");
        if status == 200 {
            assert_eq!(response.headers()[CONTENT_TYPE], "text/plain");
        }
    }
}
