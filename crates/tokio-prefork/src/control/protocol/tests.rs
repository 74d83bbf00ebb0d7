use proptest::prelude::*;

use super::*;

fn decode_text(text: &str) -> Result<Request, String> {
    Request::decode(text.as_bytes())
}

#[test]
fn documented_requests_are_decoded() {
    for (text, request) in [
        (r#"{"verb":"status"}"#, Request::Status {}),
        (r#"{"verb":"reload"}"#, Request::Reload { wait: true }),
        (r#"{"verb":"reload","wait":false}"#, Request::Reload { wait: false }),
        (r#"{"verb":"scale","to":4}"#, Request::Scale(WorkerCountChange::To(4).into())),
        (r#"{"verb":"scale","by":-1}"#, Request::Scale(WorkerCountChange::By(-1).into())),
        (r#"{"verb":"stop"}"#, Request::Stop { now: false }),
        (r#"{"now":true,"verb":"stop"}"#, Request::Stop { now: true }),
        (r#"{"verb":"upgrade"}"#, Request::Upgrade { wait: true }),
        (r#"{"verb":"upgrade","wait":false}"#, Request::Upgrade { wait: false }),
        (r#"{"verb":"events","since":7}"#, Request::Events { follow: false, since: 7 }),
    ] {
        assert_eq!(decode_text(text).as_ref(), Ok(&request), "{text}");
        assert_eq!(Request::decode(&request.encode()), Ok(request), "{text}");
    }
}

#[test]
fn invalid_requests_are_refused_with_a_reason() {
    for (text, error) in [
        ("", "the request is not JSON"),
        ("status", "the request is not JSON"),
        ("[]", "the request has no verb: give one of status, reload,"),
        (r#"{"verb":"dance"}"#, r#"unknown verb "dance": give one of status, "#),
        (r#"{"verb":7}"#, "unknown verb 7: give one of"),
        (r#"{"verb":"status","x":1}"#, "status: unknown field `x`"),
        (r#"{"verb":"reload","waitt":true}"#, "reload: unknown field `waitt`, expected `wait`"),
        (r#"{"verb":"reload","wait":"no"}"#, "reload: invalid type: string"),
        (r#"{"verb":"scale"}"#, "scale: give either to or by"),
        (r#"{"verb":"scale","to":1,"by":1}"#, "scale: give either to or by"),
        (r#"{"verb":"scale","to":0}"#, "scale: to = 0 is out of range: give 1 to 1024"),
        (r#"{"verb":"scale","by":0}"#, "scale: by = 0 is out of range"),
        (r#"{"verb":"scale","by":-2147483648}"#, "scale: by = -2147483648 is out of range"),
        (r#"{"verb":"scale","into":1}"#, "scale: unknown field `into`"),
    ] {
        let why = decode_text(text).expect_err(text);
        assert!(why.starts_with(error), "{text}: {why}");
    }
    let long = decode_text(&format!(r#"{{"verb":"{}"}}"#, "x".repeat(10_000))).expect_err("long");
    assert!(long.len() < 300);
    let deep = "[".repeat(60_000);
    assert!(decode_text(&deep).expect_err("deep").contains("recursion limit"));
}

#[test]
fn replies_are_read_back() {
    let event = Event { sequence: 3, time_ms: 5, level: "info".into(), text: "a\n\"b\"".into() };
    match Reply::decode(&Reply::Event(event.clone()).encode()) {
        Ok(Reply::Event(read)) => assert_eq!(read, event),
        other => panic!("{other:?}"),
    }
    assert_eq!(Reply::Done("x".into()).encode(), br#"{"message":"x","ok":true}"#);
    assert!(
        matches!(Reply::decode(br#"{"ok":false,"error":"no"}"#), Ok(Reply::Refused(e)) if e == "no")
    );
    assert!(matches!(Reply::decode(br#"{"ok":true,"last":9,"new":[]}"#), Ok(Reply::LastEvent(9))));
    for text in ["", "{}", r#"{"ok":true}"#, r#"{"ok":1}"#] {
        assert!(Reply::decode(text.as_bytes()).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_with_a_reason(bytes: Vec<u8>) {
        prop_assert!(Request::decode(&bytes).is_err_and(|why| !why.is_empty()));
        prop_assert!(Reply::decode(&bytes).is_err());
    }
}
