//! HTTP/2 frames, written and read without a library.

use super::{Client, Failure};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;

/// In SETTINGS and PING.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns the status in HEADERS, if it is in the static table or a literal of three digits.
    pub fn status(&self) -> Option<u16> {
        let known = [200, 204, 206, 304, 400, 404, 500];
        match *self.payload.first()? {
            indexed @ 0x88..=0x8e => Some(known[usize::from(indexed - 0x88)]),
            // A literal with the name of entry 8, Huffman-coded or not.
            0x48 | 0x08 | 0x18 => match &self.payload[1..] {
                [3, digits @ ..] => std::str::from_utf8(&digits[..3]).ok()?.parse().ok(),
                [0x83, 0x68, 0x0f, 0x7f, ..] => Some(408),
                [0x83, 0x6c, 0x0c, 0xff, ..] => Some(503),
                _ => None,
            },
            _ => None,
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut raw = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    raw.extend([kind, flags]);
    raw.extend(stream.to_be_bytes());
    raw.extend(payload);
    raw
}

/// Encodes a header block that uses only the static table and literals.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    let mut block = match method {
        "GET" => vec![0x82],
        "POST" => vec![0x83],
        other => [&[0x42, other.len() as u8], other.as_bytes()].concat(),
    };
    block.push(0x86);
    for (name, value) in [(0x44, path), (0x41, "test")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.as_bytes());
    }
    block
}

pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &request("GET", path))
}

/// Sends the preface and the first SETTINGS.
pub fn greet(client: &mut Client) {
    client.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).expect("send");
}

pub fn read(client: &mut Client) -> Result<Frame, Failure> {
    let head = client.read_exactly(9)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
    let payload = client.read_exactly(length as usize)?;
    Ok(Frame { kind: head[3], flags: head[4], stream, payload })
}

/// Reads frames until one of this kind on this stream arrives, and returns it.
#[track_caller]
pub fn read_until(client: &mut Client, kind: u8, stream: u32) -> Frame {
    loop {
        match read(client) {
            Ok(frame) if (frame.kind, frame.stream) == (kind, stream) => return frame,
            Ok(_) => {}
            Err(e) => panic!("no frame of kind {kind} on stream {stream}: {e:?}"),
        }
    }
}

/// Reads all frames until the connection ends.
pub fn read_to_end(client: &mut Client) -> Vec<Frame> {
    std::iter::from_fn(|| read(client).ok()).collect()
}
