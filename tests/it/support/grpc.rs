//! A gRPC client for `examples/grpc.rs`, on bare HTTP/2 frames.

use super::http2::{
    self, ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, SETTINGS, frame,
};
use super::{Address, Client, Server};

/// A reply of the example.
#[derive(Debug)]
pub struct GreetReply {
    pub text: String,
    pub pid: u32,
}

/// A client that connects again when the server says that its connection ends.
pub struct GrpcClient {
    address: Address,
    connection: Option<(Client, u32)>,
}

impl GrpcClient {
    pub fn new(server: &Server) -> GrpcClient {
        GrpcClient { address: server.address().clone(), connection: None }
    }

    /// Calls `Greet`. An error is the status of gRPC.
    #[track_caller]
    pub fn greet(&mut self, name: &str) -> Result<GreetReply, String> {
        let (mut client, stream) = self.connection.take().unwrap_or_else(|| {
            let mut client = Client::connect(&self.address).expect("connect");
            // No dynamic table, so that each header block stands alone: SETTINGS_HEADER_TABLE_SIZE is 0.
            let settings = frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]);
            client.send([http2::PREFACE, &settings].concat()).expect("send");
            (client, 1)
        });
        let length = name.len() as u8;
        // Field 1 of the message, behind the prefix of gRPC: no compression, and the length.
        let message = [&[0, 0, 0, 0, length + 2, 0x0a, length], name.as_bytes()].concat();
        let head = frame(HEADERS, END_HEADERS, stream, &request_head());
        client.send([head, frame(DATA, END_STREAM, stream, &message)].concat()).expect("send");
        let (mut reply, mut is_going_away) = (Vec::new(), false);
        let trailers = loop {
            let got = http2::read(&mut client).expect("a frame");
            match (got.kind, got.stream) {
                (PING, 0) if got.flags & ACK == 0 => {
                    client.send(frame(PING, ACK, 0, &got.payload)).expect("send");
                }
                (GOAWAY, 0) => is_going_away = true,
                (DATA, id) if id == stream => reply.extend(got.payload),
                (HEADERS, id) if id == stream && got.flags & END_STREAM != 0 => break got.payload,
                _ => {}
            }
        };
        // With GOAWAY, requests under way are answered, and new ones need a new connection.
        self.connection = (!is_going_away).then_some((client, stream + 2));
        match grpc_status(&trailers) {
            Some(0) => Ok(parse_reply(&reply)),
            status => Err(status.map_or("none".to_string(), |status| status.to_string())),
        }
    }
}

/// Encodes the head of a call, with literals.
fn request_head() -> Vec<u8> {
    let literal = |name: &str, value: &str| {
        [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
    };
    let mut head = http2::request("POST", "/greeter.Greeter/Greet");
    head.extend(literal("content-type", "application/grpc"));
    head.extend(literal("te", "trailers"));
    head
}

/// Finds `grpc-status` in a header block: a literal whose value is one digit.
fn grpc_status(block: &[u8]) -> Option<u8> {
    // `grpc-status` in the Huffman code of HPACK.
    let huffman = [0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f];
    for name in [&huffman[..], b"grpc-status"] {
        if let Some(at) = block.windows(name.len()).position(|window| window == name) {
            return match block[at + name.len()..] {
                [1, digit, ..] => Some(digit - b'0'),
                // Huffman-coded digits: 0, 1 and 2 have five bits, the others six.
                [0x81, byte, ..] if byte >> 3 <= 2 => Some(byte >> 3),
                [0x81, byte, ..] => Some((byte >> 2) - 0x19 + 3),
                _ => None,
            };
        }
    }
    None
}

/// Parses a reply: the text in field 1, and the pid in field 2.
#[track_caller]
fn parse_reply(bytes: &[u8]) -> GreetReply {
    let message = &bytes[5..];
    assert_eq!(message[0], 0x0a, "{message:?}");
    let (text, rest) = message[2..].split_at(message[1].into());
    assert_eq!(rest[0], 0x10, "{rest:?}");
    let groups = rest[1..].iter().enumerate();
    let pid = groups.fold(0, |pid, (n, byte)| pid | u32::from(byte & 0x7f) << (7 * n));
    GreetReply { text: String::from_utf8_lossy(text).into_owned(), pid }
}
