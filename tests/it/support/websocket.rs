//! A WebSocket client on [`Client`]: the handshake, and frames of up to 125 bytes.

use super::{Client, Failure};

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocketFrame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl WebSocketFrame {
    pub fn text(&self) -> String {
        assert_eq!(self.opcode, TEXT, "{self:?}");
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// Returns the code of a close frame.
    pub fn close_code(&self) -> Option<u16> {
        let code = self.payload.first_chunk().filter(|_| self.opcode == CLOSE)?;
        Some(u16::from_be_bytes(*code))
    }
}

/// Returns the request of a handshake, with the key of RFC 6455, section 1.3.
pub fn handshake(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Reads the response to a handshake, and checks its key.
#[track_caller]
pub fn accept(client: &mut Client) {
    let response = client.read().expect("a response");
    assert_eq!(response.status, 101, "{response:?}");
    let key = response.header("sec-websocket-accept");
    assert_eq!(key, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
}

/// Encodes a frame of a client, which is masked.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    assert!(payload.len() < 126);
    let mut bytes = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

pub fn read(client: &mut Client) -> Result<WebSocketFrame, Failure> {
    let head = client.read_exactly(2)?;
    assert!(head[1] < 126, "a short frame without a mask");
    let payload = client.read_exactly(head[1].into())?;
    Ok(WebSocketFrame { opcode: head[0] & 0x0f, payload })
}
