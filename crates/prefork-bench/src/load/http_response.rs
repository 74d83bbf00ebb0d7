//! Responses of HTTP/1 as they come in pieces: where each one ends, and what is wanted of it. Pure.

/// Bytes of the largest head that is read: four times what browsers and curl read.
const MAX_HEAD_SIZE: usize = 1 << 20;
/// Header fields that are read.
const MAX_HEADER_FIELDS: usize = 4096;
/// Header fields that are read without allocating memory.
const STACK_HEADER_FIELDS: usize = 64;
/// As much of a body as may say who handled the request.
const BODY_PREFIX_LEN: usize = 32;
/// Bytes of the longest line of a chunked body that is no data, and of all trailers.
const MAX_CHUNK_LINE_SIZE: usize = 64 * 1024;

/// One response, read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParsedResponse {
    pub(crate) status: u16,
    /// Whether another request may follow on its connection.
    pub(crate) can_reuse_connection: bool,
    /// The process that says it has answered.
    pub(crate) pid: Option<u32>,
    /// Bytes of head and body.
    pub(crate) bytes: u64,
}

/// Why a response cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseError {
    /// What came is not HTTP.
    Malformed,
    /// It has more than [`MAX_HEADER_FIELDS`] header fields.
    TooManyFields,
    /// Its head is larger than [`MAX_HEAD_SIZE`].
    HeadTooLarge,
    /// A line of the chunked body, or its trailers, is longer than [`MAX_CHUNK_LINE_SIZE`].
    ChunkLineTooLong,
}

use ResponseError::Malformed;

/// What is known before anything comes.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResponseExpectations {
    /// Responses have no body, whatever they say: the method is HEAD.
    pub(crate) is_head_request: bool,
    /// The field that tells the process.
    pub(crate) pid_header: Option<String>,
}

/// Finds the ends of responses in the bytes of one connection.
#[derive(Debug)]
pub(crate) struct ResponseReader {
    state: ResponseReaderState,
    /// The beginning of a head that has not come whole, or of a line of a chunked body.
    partial: Vec<u8>,
    response: ParsedResponse,
    body_prefix: [u8; BODY_PREFIX_LEN],
    body_prefix_len: usize,
    /// Bytes of trailers so far.
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResponseReaderState {
    Head,
    /// So many bytes of body are left.
    BodyLength(u64),
    /// A line with the size of a chunk is next.
    ChunkSize,
    /// So many bytes of a chunk are left, the line end behind it included.
    ChunkData(u64),
    /// Trailers, up to an empty line.
    Trailers,
    /// The body ends with the connection.
    UntilClose,
}

const EMPTY_RESPONSE: ParsedResponse =
    ParsedResponse { status: 0, can_reuse_connection: true, pid: None, bytes: 0 };

impl ResponseReader {
    pub(crate) fn new() -> ResponseReader {
        let body_prefix = [0; BODY_PREFIX_LEN];
        ResponseReader {
            state: ResponseReaderState::Head,
            partial: Vec::new(),
            response: EMPTY_RESPONSE,
            body_prefix,
            body_prefix_len: 0,
            trailers: 0,
        }
    }

    /// Takes what has come: how many bytes of it were used, and the response that ended with them. Without one,
    /// all were used.
    pub(crate) fn read_bytes(
        &mut self,
        bytes: &[u8],
        expectations: &ResponseExpectations,
    ) -> Result<(usize, Option<ParsedResponse>), ResponseError> {
        let mut used = 0;
        while used < bytes.len() {
            let (taken, over) = self.advance(&bytes[used..], expectations)?;
            used += taken;
            if over {
                return Ok((used, Some(self.take_response())));
            }
        }
        Ok((used, None))
    }

    /// The connection has ended: the response that ended with it, if one did.
    pub(crate) fn finish_at_eof(&mut self) -> Option<ParsedResponse> {
        (self.state == ResponseReaderState::UntilClose).then(|| self.take_response())
    }

    /// Bytes taken, and whether the response is over.
    fn advance(
        &mut self,
        bytes: &[u8],
        expectations: &ResponseExpectations,
    ) -> Result<(usize, bool), ResponseError> {
        match self.state {
            ResponseReaderState::Head => self.read_head(bytes, expectations),
            ResponseReaderState::BodyLength(left) => {
                let taken = self.read_body(bytes, left);
                self.state = ResponseReaderState::BodyLength(left - taken as u64);
                Ok((taken, left == taken as u64))
            }
            ResponseReaderState::UntilClose => Ok((self.read_body(bytes, u64::MAX), false)),
            ResponseReaderState::ChunkData(left) => {
                // The line end behind the data counts as body only in the number of bytes.
                let taken = match left {
                    0..=2 => self.read_chunk_end(bytes, left)?,
                    _ => self.read_body(bytes, left - 2),
                };
                let left = left - taken as u64;
                self.state = if left == 0 {
                    ResponseReaderState::ChunkSize
                } else {
                    ResponseReaderState::ChunkData(left)
                };
                Ok((taken, false))
            }
            ResponseReaderState::ChunkSize | ResponseReaderState::Trailers => {
                self.read_chunk_line(bytes)
            }
        }
    }

    fn read_head(
        &mut self,
        bytes: &[u8],
        expectations: &ResponseExpectations,
    ) -> Result<(usize, bool), ResponseError> {
        let before = self.partial.len();
        if before > 0 {
            self.partial.extend_from_slice(bytes);
        }
        let all = if before > 0 { &self.partial } else { bytes };
        let (length, status, (state, can_reuse_connection, pid)) =
            match parse_head(all, expectations)? {
                Some(parsed) => parsed,
                None if all.len() > MAX_HEAD_SIZE => return Err(ResponseError::HeadTooLarge),
                None => {
                    if before == 0 {
                        self.partial.extend_from_slice(bytes);
                    }
                    return Ok((bytes.len(), false));
                }
            };
        self.partial.clear();
        self.response.bytes += length as u64;
        // 100 Continue and the like come before the response; 101 ends HTTP on this connection.
        if (100..200).contains(&status) && status != 101 {
            return Ok((length - before, false));
        }
        let ends = matches!(state, ResponseReaderState::UntilClose) || status == 101;
        (self.response.status, self.response.pid) = (status, pid);
        self.response.can_reuse_connection = can_reuse_connection && !ends;
        self.state = state;
        Ok((length - before, state == ResponseReaderState::BodyLength(0)))
    }

    /// Takes up to `left` bytes of the body.
    fn read_body(&mut self, bytes: &[u8], left: u64) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let wanted = (BODY_PREFIX_LEN - self.body_prefix_len).min(taken);
        self.body_prefix[self.body_prefix_len..self.body_prefix_len + wanted]
            .copy_from_slice(&bytes[..wanted]);
        self.body_prefix_len += wanted;
        self.response.bytes += taken as u64;
        taken
    }

    /// Takes the CR LF behind the data of a chunk, of which `left` bytes are still to come.
    fn read_chunk_end(&mut self, bytes: &[u8], left: u64) -> Result<usize, ResponseError> {
        let wanted = &b"\r\n"[2 - left.min(2) as usize..];
        let taken = bytes.len().min(wanted.len());
        if bytes[..taken] != wanted[..taken] {
            return Err(Malformed);
        }
        self.response.bytes += taken as u64;
        Ok(taken)
    }

    /// A line of a chunked body that is no data.
    fn read_chunk_line(&mut self, bytes: &[u8]) -> Result<(usize, bool), ResponseError> {
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |at| at + 1);
        self.partial.extend_from_slice(&bytes[..taken]);
        self.response.bytes += taken as u64;
        if self.state == ResponseReaderState::Trailers {
            self.trailers += taken;
        }
        if self.partial.len().max(self.trailers) > MAX_CHUNK_LINE_SIZE {
            return Err(ResponseError::ChunkLineTooLong);
        }
        if end.is_none() {
            return Ok((taken, false));
        }
        let line = std::mem::take(&mut self.partial);
        let text = line.trim_ascii();
        if self.state == ResponseReaderState::Trailers {
            return Ok((taken, text.is_empty()));
        }
        let digits = text.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let are_digits = digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| are_digits);
        let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.state = match size.ok_or(Malformed)? {
            0 => ResponseReaderState::Trailers,
            size => ResponseReaderState::ChunkData(size.checked_add(2).ok_or(Malformed)?),
        };
        Ok((taken, false))
    }

    fn take_response(&mut self) -> ParsedResponse {
        let body_prefix = &self.body_prefix[..self.body_prefix_len];
        self.response.pid = self.response.pid.or_else(|| parse_body_pid(body_prefix));
        self.state = ResponseReaderState::Head;
        self.body_prefix_len = 0;
        self.trailers = 0;
        std::mem::replace(&mut self.response, EMPTY_RESPONSE)
    }
}

/// How the body ends, whether the connection stays, and who the fields say has answered.
type ResponseFraming = (ResponseReaderState, bool, Option<u32>);

/// The length of a head, its status and its framing; `None` if it has not come whole.
fn parse_head(
    bytes: &[u8],
    expectations: &ResponseExpectations,
) -> Result<Option<(usize, u16, ResponseFraming)>, ResponseError> {
    let usual = &mut [httparse::EMPTY_HEADER; STACK_HEADER_FIELDS];
    match parse_head_with_fields(bytes, usual, expectations) {
        Err(ResponseError::TooManyFields) => parse_head_with_fields(
            bytes,
            &mut vec![httparse::EMPTY_HEADER; MAX_HEADER_FIELDS],
            expectations,
        ),
        outcome => outcome,
    }
}

fn parse_head_with_fields<'b>(
    bytes: &'b [u8],
    fields: &mut [httparse::Header<'b>],
    expectations: &ResponseExpectations,
) -> Result<Option<(usize, u16, ResponseFraming)>, ResponseError> {
    let mut response = httparse::Response::new(fields);
    let mut config = httparse::ParserConfig::default();
    // What servers of old send is not what a bench is to judge.
    config
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true);
    let length = match config.parse_response(&mut response, bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(ResponseError::TooManyFields),
        Err(_) => return Err(Malformed),
    };
    let status = response.code.ok_or(Malformed)?;
    let is_http_1_0 = response.version == Some(0);
    Ok(Some((
        length,
        status,
        response_framing(response.headers, is_http_1_0, status, expectations)?,
    )))
}

fn response_framing(
    fields: &[httparse::Header<'_>],
    is_http_1_0: bool,
    status: u16,
    expectations: &ResponseExpectations,
) -> Result<ResponseFraming, ResponseError> {
    let (mut length, mut pid) = (None, None);
    // The last coding of all Transfer-Encoding fields, which are one list.
    let mut coding: Option<&[u8]> = None;
    let (mut says_close, mut says_keep) = (false, false);
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            // Equal ones count as one (RFC 9110, 8.6).
            for one in field.value.split(|b| *b == b',') {
                let one = parse_decimal(one).ok_or(Malformed)?;
                if length.replace(one).is_some_and(|before| before != one) {
                    return Err(Malformed);
                }
            }
        } else if is("transfer-encoding") {
            coding = field.value.rsplit(|b| *b == b',').next();
        } else if is("connection") {
            says_close |= list_contains_token(field.value, "close");
            says_keep |= list_contains_token(field.value, "keep-alive");
        } else if expectations.pid_header.as_deref().is_some_and(is) {
            pid = parse_decimal(field.value).and_then(|pid| u32::try_from(pid).ok());
        }
    }
    let none = expectations.is_head_request || matches!(status, 100..200 | 204 | 304);
    let state = match (none, coding, length) {
        (true, ..) => ResponseReaderState::BodyLength(0),
        (_, Some(coding), _) if list_contains_token(coding, "chunked") => {
            ResponseReaderState::ChunkSize
        }
        // Another coding than chunked says nothing about where the body ends.
        (_, Some(_), _) => ResponseReaderState::UntilClose,
        (_, _, Some(length)) => ResponseReaderState::BodyLength(length),
        _ => ResponseReaderState::UntilClose,
    };
    // Both lengths, or chunks of HTTP/1.0, are framing that the next response may not be trusted to (RFC 9112, 6.1).
    let doubtful = coding.is_some() && (is_http_1_0 || length.is_some());
    let can_reuse_connection = !says_close && !doubtful && (!is_http_1_0 || says_keep);
    Ok((state, can_reuse_connection, pid))
}

/// Digits and nothing else, not even a sign.
fn parse_decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    let are_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| are_digits)?.parse().ok()
}

fn list_contains_token(value: &[u8], word: &str) -> bool {
    let mut words = value.split(|b| *b == b',');
    words.any(|given| given.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// The process in a body that begins with `Handled by PID 4711`.
fn parse_body_pid(body_prefix: &[u8]) -> Option<u32> {
    let rest = body_prefix.strip_prefix(b"Handled by PID ")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    parse_decimal(&rest[..digits]).and_then(|pid| u32::try_from(pid).ok())
}

#[cfg(test)]
mod tests;
