//! Incremental parser of HTTP/1 responses: finds the end of each response and the pid it names.

use super::plan::LoadPlan;

/// Largest response head, in bytes: four times the limit of browsers and curl.
const MAX_HEAD_SIZE: usize = 1 << 20;
/// Most header fields of a response.
const MAX_HEADER_FIELDS: usize = 4096;
/// Header fields parsed without a heap allocation.
const STACK_HEADER_FIELDS: usize = 64;
/// Bytes kept from the start of a body, to find `Handled by PID n` in it.
pub(crate) const BODY_PREFIX_LEN: usize = 32;
/// Longest size line of a chunk, and longest trailers, in bytes.
const MAX_CHUNK_LINE_SIZE: usize = 64 * 1024;

/// A response, read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParsedResponse {
    pub(crate) status: u16,
    /// Whether another request may follow on its connection.
    pub(crate) can_reuse_connection: bool,
    /// The pid that the response names.
    pub(crate) pid: Option<u32>,
    /// Bytes of head and body.
    pub(crate) bytes: u64,
}

/// Why a response cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseError {
    /// The response is not HTTP.
    Malformed,
    /// It has more than [`MAX_HEADER_FIELDS`] header fields.
    TooManyFields,
    /// Its head is larger than [`MAX_HEAD_SIZE`].
    HeadTooLarge,
    /// The size line of a chunk, or the trailers, exceed [`MAX_CHUNK_LINE_SIZE`].
    ChunkLineTooLong,
}

use ResponseError::Malformed;

/// What the parser must know about the request.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResponseExpectations {
    /// Whether the method is HEAD, so that responses have no body.
    pub(crate) is_head_request: bool,
    /// Header field with the pid; `None` searches the body.
    pub(crate) pid_header: Option<String>,
}

impl ResponseExpectations {
    pub(crate) fn from_plan(plan: &LoadPlan) -> ResponseExpectations {
        ResponseExpectations {
            is_head_request: plan.method == "HEAD",
            pid_header: plan.pid_header.clone(),
        }
    }
}

/// Parses response heads, and remembers the last one: a server repeats its head until a second has passed, and an equal
/// head need not be parsed again.
#[derive(Debug, Default)]
pub(crate) struct ResponseParser {
    pub(crate) expectations: ResponseExpectations,
    /// Bytes of the last head of a final response; empty before the first one.
    last_head: Vec<u8>,
    /// What `last_head` says.
    last_parsed: Option<ParsedHead>,
}

/// What a response head says.
#[derive(Debug, Clone, Copy)]
struct ParsedHead {
    /// Bytes of the head, with the empty line.
    length: usize,
    status: u16,
    /// How the body ends.
    body: ResponseReaderState,
    can_reuse_connection: bool,
    /// The pid in the header field.
    pid: Option<u32>,
}

/// Finds the ends of responses in the bytes of one connection.
#[derive(Debug)]
pub(crate) struct ResponseReader {
    state: ResponseReaderState,
    /// Incomplete head, or incomplete line of a chunked body.
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
    /// Remaining bytes of the body.
    BodyLength(u64),
    /// The size line of a chunk is next.
    ChunkSize,
    /// Remaining bytes of a chunk, with the CR LF behind it.
    ChunkData(u64),
    /// Trailers, up to an empty line.
    Trailers,
    /// The body ends with the connection.
    UntilClose,
}

impl ParsedResponse {
    /// A response of which nothing has come.
    pub(crate) const EMPTY: ParsedResponse =
        ParsedResponse { status: 0, can_reuse_connection: true, pid: None, bytes: 0 };
}

impl ResponseReader {
    pub(crate) fn new() -> ResponseReader {
        let body_prefix = [0; BODY_PREFIX_LEN];
        ResponseReader {
            state: ResponseReaderState::Head,
            partial: Vec::new(),
            response: ParsedResponse::EMPTY,
            body_prefix,
            body_prefix_len: 0,
            trailers: 0,
        }
    }

    /// Parses received bytes. Returns how many it used, and the response that ended with them; without one it
    /// used all.
    pub(crate) fn read_bytes(
        &mut self,
        bytes: &[u8],
        parser: &mut ResponseParser,
    ) -> Result<(usize, Option<ParsedResponse>), ResponseError> {
        // `bytes` is 0 unless a 1xx response has come before.
        let is_at_start = self.state == ResponseReaderState::Head && self.partial.is_empty();
        if is_at_start
            && self.response.bytes == 0
            && let Some((length, response)) = parser.match_whole_response(bytes)
        {
            return Ok((length, Some(response)));
        }
        let mut used = 0;
        while used < bytes.len() {
            let (taken, over) = self.parse_step(&bytes[used..], parser)?;
            used += taken;
            if over {
                return Ok((used, Some(self.take_response())));
            }
        }
        Ok((used, None))
    }

    /// Returns the response that ends with the connection, if there is one.
    pub(crate) fn finish_at_eof(&mut self) -> Option<ParsedResponse> {
        (self.state == ResponseReaderState::UntilClose).then(|| self.take_response())
    }

    /// Parses one step. Returns the used bytes, and whether the response is complete.
    fn parse_step(
        &mut self,
        bytes: &[u8],
        parser: &mut ResponseParser,
    ) -> Result<(usize, bool), ResponseError> {
        match self.state {
            ResponseReaderState::Head => self.read_head(bytes, parser),
            ResponseReaderState::BodyLength(left) => {
                let taken = self.read_body(bytes, left);
                self.state = ResponseReaderState::BodyLength(left - taken as u64);
                Ok((taken, left == taken as u64))
            }
            ResponseReaderState::UntilClose => Ok((self.read_body(bytes, u64::MAX), false)),
            ResponseReaderState::ChunkData(left) => {
                // The CR LF behind the data is not kept as part of the body prefix.
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
        parser: &mut ResponseParser,
    ) -> Result<(usize, bool), ResponseError> {
        let before = self.partial.len();
        if before > 0 {
            self.partial.extend_from_slice(bytes);
        }
        let all = if before > 0 { &self.partial } else { bytes };
        let head = match parser.parse_head(all)? {
            Some(head) => head,
            None if all.len() > MAX_HEAD_SIZE => return Err(ResponseError::HeadTooLarge),
            None => {
                if before == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                return Ok((bytes.len(), false));
            }
        };
        self.partial.clear();
        self.response.bytes += head.length as u64;
        if head.is_interim() {
            return Ok((head.length - before, false));
        }
        (self.response.status, self.response.pid) = (head.status, head.pid);
        self.response.can_reuse_connection = head.can_reuse_connection;
        self.state = head.body;
        Ok((head.length - before, head.body == ResponseReaderState::BodyLength(0)))
    }

    /// Reads up to `left` bytes of the body.
    fn read_body(&mut self, bytes: &[u8], left: u64) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let wanted = (BODY_PREFIX_LEN - self.body_prefix_len).min(taken);
        self.body_prefix[self.body_prefix_len..self.body_prefix_len + wanted]
            .copy_from_slice(&bytes[..wanted]);
        self.body_prefix_len += wanted;
        self.response.bytes += taken as u64;
        taken
    }

    /// Reads the CR LF behind a chunk, of which `left` bytes remain.
    fn read_chunk_end(&mut self, bytes: &[u8], left: u64) -> Result<usize, ResponseError> {
        let wanted = &b"\r\n"[2 - left.min(2) as usize..];
        let taken = bytes.len().min(wanted.len());
        if bytes[..taken] != wanted[..taken] {
            return Err(Malformed);
        }
        self.response.bytes += taken as u64;
        Ok(taken)
    }

    /// Reads the size line of a chunk, or a line of the trailers.
    fn read_chunk_line(&mut self, bytes: &[u8]) -> Result<(usize, bool), ResponseError> {
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |at| at + 1);
        self.response.bytes += taken as u64;
        if self.state == ResponseReaderState::Trailers {
            self.trailers += taken;
        }
        let line_len = self.partial.len() + taken;
        if line_len.max(self.trailers) > MAX_CHUNK_LINE_SIZE {
            return Err(ResponseError::ChunkLineTooLong);
        }
        // A line that came whole is not copied.
        if end.is_none() || !self.partial.is_empty() {
            self.partial.extend_from_slice(&bytes[..taken]);
        }
        if end.is_none() {
            return Ok((taken, false));
        }
        let line = if self.partial.is_empty() { &bytes[..taken] } else { &self.partial };
        let text = line.trim_ascii();
        let is_over = self.state == ResponseReaderState::Trailers && text.is_empty();
        if self.state == ResponseReaderState::ChunkSize {
            self.state = match parse_chunk_size(text)? {
                0 => ResponseReaderState::Trailers,
                size => ResponseReaderState::ChunkData(size.checked_add(2).ok_or(Malformed)?),
            };
        }
        self.partial.clear();
        Ok((taken, is_over))
    }

    fn take_response(&mut self) -> ParsedResponse {
        let body_prefix = &self.body_prefix[..self.body_prefix_len];
        self.response.pid = self.response.pid.or_else(|| parse_body_pid(body_prefix));
        self.state = ResponseReaderState::Head;
        self.body_prefix_len = 0;
        self.trailers = 0;
        std::mem::replace(&mut self.response, ParsedResponse::EMPTY)
    }
}

impl ParsedHead {
    /// Returns whether the final response is still to come. 101 is final: it ends HTTP on the connection.
    fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

impl ResponseParser {
    pub(crate) fn new(expectations: ResponseExpectations) -> ResponseParser {
        ResponseParser { expectations, ..ResponseParser::default() }
    }

    /// Returns the response at the start of `bytes` and its length, if its head is that of the last response and its body
    /// has a length and is there.
    fn match_whole_response(&self, bytes: &[u8]) -> Option<(usize, ParsedResponse)> {
        let head = self.last_parsed?;
        let ResponseReaderState::BodyLength(body_len) = head.body else { return None };
        let (first, rest) = bytes.split_at_checked(head.length)?;
        let body_len = usize::try_from(body_len).ok()?;
        if rest.len() < body_len || first != self.last_head {
            return None;
        }
        let body_prefix = &rest[..body_len.min(BODY_PREFIX_LEN)];
        let length = head.length + body_len;
        let response = ParsedResponse {
            status: head.status,
            can_reuse_connection: head.can_reuse_connection,
            pid: head.pid.or_else(|| parse_body_pid(body_prefix)),
            bytes: length as u64,
        };
        Some((length, response))
    }

    /// Parses the head at the start of `bytes`; `None` if it is incomplete.
    fn parse_head(&mut self, bytes: &[u8]) -> Result<Option<ParsedHead>, ResponseError> {
        if let Some(last) = self.last_parsed
            && bytes.starts_with(&self.last_head)
        {
            return Ok(Some(last));
        }
        let usual = &mut [httparse::EMPTY_HEADER; STACK_HEADER_FIELDS];
        let head = match parse_head_with_fields(bytes, usual, &self.expectations) {
            Err(ResponseError::TooManyFields) => {
                let all = &mut vec![httparse::EMPTY_HEADER; MAX_HEADER_FIELDS];
                parse_head_with_fields(bytes, all, &self.expectations)?
            }
            outcome => outcome?,
        };
        // An interim head would displace the one that is repeated.
        if let Some(head) = head.filter(|head| !head.is_interim()) {
            self.last_head.clear();
            self.last_head.extend_from_slice(&bytes[..head.length]);
            self.last_parsed = Some(head);
        }
        Ok(head)
    }
}

fn parse_head_with_fields<'b>(
    bytes: &'b [u8],
    fields: &mut [httparse::Header<'b>],
    expectations: &ResponseExpectations,
) -> Result<Option<ParsedHead>, ResponseError> {
    let mut response = httparse::Response::new(fields);
    let mut config = httparse::ParserConfig::default();
    // Old servers send these, and the load generator does not judge conformance.
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
    let (body, can_reuse_connection, pid) =
        response_framing(response.headers, is_http_1_0, status, expectations)?;
    let ends = matches!(body, ResponseReaderState::UntilClose) || status == 101;
    let can_reuse_connection = can_reuse_connection && !ends;
    Ok(Some(ParsedHead { length, status, body, can_reuse_connection, pid }))
}

/// How the body ends, whether the connection can be reused, and the pid from the header fields.
type ResponseFraming = (ResponseReaderState, bool, Option<u32>);

fn response_framing(
    fields: &[httparse::Header<'_>],
    is_http_1_0: bool,
    status: u16,
    expectations: &ResponseExpectations,
) -> Result<ResponseFraming, ResponseError> {
    let (mut length, mut pid) = (None, None);
    // The last coding of all Transfer-Encoding fields, which form one list.
    let mut coding: Option<&[u8]> = None;
    let (mut says_close, mut says_keep) = (false, false);
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            // Equal lengths count as one (RFC 9110, 8.6).
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
        // A coding other than chunked does not say where the body ends.
        (_, Some(_), _) => ResponseReaderState::UntilClose,
        (_, _, Some(length)) => ResponseReaderState::BodyLength(length),
        _ => ResponseReaderState::UntilClose,
    };
    // With both lengths, or chunks in HTTP/1.0, the connection must not be reused (RFC 9112, 6.1).
    let doubtful = coding.is_some() && (is_http_1_0 || length.is_some());
    let can_reuse_connection = !says_close && !doubtful && (!is_http_1_0 || says_keep);
    Ok((state, can_reuse_connection, pid))
}

/// Parses the size line of a chunk, without its line end; ignores chunk extensions.
fn parse_chunk_size(line: &[u8]) -> Result<u64, ResponseError> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let are_digits = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| are_digits);
    digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(Malformed)
}

/// Parses decimal digits; unlike `str::parse`, rejects a sign.
pub(crate) fn parse_decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    match parse_leading_digits(digits)? {
        (number, length) if length == digits.len() && length > 0 => Some(number),
        _ => None,
    }
}

/// Parses the digits at the start of `text`, and returns their number too; `None` if they do not fit.
fn parse_leading_digits(text: &[u8]) -> Option<(u64, usize)> {
    let (mut number, mut length) = (0u64, 0);
    for digit in text.iter().take_while(|b| b.is_ascii_digit()) {
        number = number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        length += 1;
    }
    Some((number, length))
}

fn list_contains_token(value: &[u8], word: &str) -> bool {
    let mut words = value.split(|b| *b == b',');
    words.any(|given| given.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// Parses the pid in a body that starts with `Handled by PID 4711`.
pub(crate) fn parse_body_pid(body_prefix: &[u8]) -> Option<u32> {
    let rest = body_prefix.strip_prefix(b"Handled by PID ")?;
    let (pid, length) = parse_leading_digits(rest)?;
    u32::try_from(pid).ok().filter(|_| length > 0)
}

#[cfg(test)]
mod tests;
