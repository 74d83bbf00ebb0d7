//! Responses of HTTP/1 as they come in pieces: where each one ends, and what is wanted of it. Pure.

/// Bytes of the largest head that is read: four times what browsers and curl read.
const MAX_HEAD_SIZE: usize = 1 << 20;
/// Header fields that are read.
const MAX_FIELDS: usize = 4096;
/// Header fields that are read without allocating memory.
const USUAL_FIELDS: usize = 64;
/// As much of a body as may say who handled the request.
const LEAD: usize = 32;
/// Bytes of the longest line of a chunked body that is no data, and of all trailers.
const MAX_CHUNK_LINE: usize = 64 * 1024;

/// One response, read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Whether another request may follow on its connection.
    pub(crate) keeps: bool,
    /// The process that says it has answered.
    pub(crate) pid: Option<u32>,
    /// Bytes of head and body.
    pub(crate) bytes: u64,
}

/// Why a response cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// What came is not HTTP.
    Malformed,
    /// It has more than [`MAX_FIELDS`] header fields.
    TooManyFields,
    /// Its head is larger than [`MAX_HEAD_SIZE`].
    HeadTooLarge,
    /// A line of the chunked body, or its trailers, is longer than [`MAX_CHUNK_LINE`].
    ChunkLineTooLong,
}

use Unreadable::Malformed;

/// What is known before anything comes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Expect {
    /// Responses have no body, whatever they say: the method is HEAD.
    pub(crate) no_body: bool,
    /// The field that tells the process.
    pub(crate) pids: Option<String>,
}

/// Finds the ends of responses in the bytes of one connection.
#[derive(Debug)]
pub(crate) struct Reader {
    state: State,
    /// The beginning of a head that has not come whole, or of a line of a chunked body.
    partial: Vec<u8>,
    answer: Answer,
    lead: [u8; LEAD],
    lead_length: usize,
    /// Bytes of trailers so far.
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of body are left.
    Length(u64),
    /// A line with the size of a chunk is next.
    Size,
    /// So many bytes of a chunk are left, the line end behind it included.
    Chunk(u64),
    /// Trailers, up to an empty line.
    Trailers,
    /// The body ends with the connection.
    UntilClose,
}

const NOTHING: Answer = Answer { status: 0, keeps: true, pid: None, bytes: 0 };

impl Reader {
    pub(crate) fn new() -> Reader {
        let lead = [0; LEAD];
        Reader {
            state: State::Head,
            partial: Vec::new(),
            answer: NOTHING,
            lead,
            lead_length: 0,
            trailers: 0,
        }
    }

    /// Takes what has come: how many bytes of it were used, and the response that ended with them. Without one,
    /// all were used.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        expect: &Expect,
    ) -> Result<(usize, Option<Answer>), Unreadable> {
        let mut used = 0;
        while used < bytes.len() {
            let (taken, over) = self.step(&bytes[used..], expect)?;
            used += taken;
            if over {
                return Ok((used, Some(self.finish())));
            }
        }
        Ok((used, None))
    }

    /// The connection has ended: the response that ended with it, if one did.
    pub(crate) fn end(&mut self) -> Option<Answer> {
        (self.state == State::UntilClose).then(|| self.finish())
    }

    /// Bytes taken, and whether the response is over.
    fn step(&mut self, bytes: &[u8], expect: &Expect) -> Result<(usize, bool), Unreadable> {
        match self.state {
            State::Head => self.head(bytes, expect),
            State::Length(left) => {
                let taken = self.body(bytes, left);
                self.state = State::Length(left - taken as u64);
                Ok((taken, left == taken as u64))
            }
            State::UntilClose => Ok((self.body(bytes, u64::MAX), false)),
            State::Chunk(left) => {
                // The line end behind the data counts as body only in the number of bytes.
                let taken = match left {
                    0..=2 => self.line_end(bytes, left)?,
                    _ => self.body(bytes, left - 2),
                };
                let left = left - taken as u64;
                self.state = if left == 0 { State::Size } else { State::Chunk(left) };
                Ok((taken, false))
            }
            State::Size | State::Trailers => self.line(bytes),
        }
    }

    fn head(&mut self, bytes: &[u8], expect: &Expect) -> Result<(usize, bool), Unreadable> {
        let before = self.partial.len();
        if before > 0 {
            self.partial.extend_from_slice(bytes);
        }
        let all = if before > 0 { &self.partial } else { bytes };
        let (length, status, (state, keeps, pid)) = match parse(all, expect)? {
            Some(parsed) => parsed,
            None if all.len() > MAX_HEAD_SIZE => return Err(Unreadable::HeadTooLarge),
            None => {
                if before == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                return Ok((bytes.len(), false));
            }
        };
        self.partial.clear();
        self.answer.bytes += length as u64;
        // 100 Continue and the like come before the response; 101 ends HTTP on this connection.
        if (100..200).contains(&status) && status != 101 {
            return Ok((length - before, false));
        }
        let ends = matches!(state, State::UntilClose) || status == 101;
        (self.answer.status, self.answer.pid) = (status, pid);
        self.answer.keeps = keeps && !ends;
        self.state = state;
        Ok((length - before, state == State::Length(0)))
    }

    /// Takes up to `left` bytes of the body.
    fn body(&mut self, bytes: &[u8], left: u64) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let wanted = (LEAD - self.lead_length).min(taken);
        self.lead[self.lead_length..self.lead_length + wanted].copy_from_slice(&bytes[..wanted]);
        self.lead_length += wanted;
        self.answer.bytes += taken as u64;
        taken
    }

    /// Takes the CR LF behind the data of a chunk, of which `left` bytes are still to come.
    fn line_end(&mut self, bytes: &[u8], left: u64) -> Result<usize, Unreadable> {
        let wanted = &b"\r\n"[2 - left.min(2) as usize..];
        let taken = bytes.len().min(wanted.len());
        if bytes[..taken] != wanted[..taken] {
            return Err(Malformed);
        }
        self.answer.bytes += taken as u64;
        Ok(taken)
    }

    /// A line of a chunked body that is no data.
    fn line(&mut self, bytes: &[u8]) -> Result<(usize, bool), Unreadable> {
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |at| at + 1);
        self.partial.extend_from_slice(&bytes[..taken]);
        self.answer.bytes += taken as u64;
        if self.state == State::Trailers {
            self.trailers += taken;
        }
        if self.partial.len().max(self.trailers) > MAX_CHUNK_LINE {
            return Err(Unreadable::ChunkLineTooLong);
        }
        if end.is_none() {
            return Ok((taken, false));
        }
        let line = std::mem::take(&mut self.partial);
        let text = line.trim_ascii();
        if self.state == State::Trailers {
            return Ok((taken, text.is_empty()));
        }
        let digits = text.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let are_digits = digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(digits).ok().filter(|_| are_digits);
        let size = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.state = match size.ok_or(Malformed)? {
            0 => State::Trailers,
            size => State::Chunk(size.checked_add(2).ok_or(Malformed)?),
        };
        Ok((taken, false))
    }

    fn finish(&mut self) -> Answer {
        let lead = &self.lead[..self.lead_length];
        self.answer.pid = self.answer.pid.or_else(|| named(lead));
        self.state = State::Head;
        self.lead_length = 0;
        self.trailers = 0;
        std::mem::replace(&mut self.answer, NOTHING)
    }
}

/// How the body ends, whether the connection stays, and who the fields say has answered.
type Framing = (State, bool, Option<u32>);

/// The length of a head, its status and its framing; `None` if it has not come whole.
fn parse(bytes: &[u8], expect: &Expect) -> Result<Option<(usize, u16, Framing)>, Unreadable> {
    let usual = &mut [httparse::EMPTY_HEADER; USUAL_FIELDS];
    match parse_into(bytes, usual, expect) {
        Err(Unreadable::TooManyFields) => {
            parse_into(bytes, &mut vec![httparse::EMPTY_HEADER; MAX_FIELDS], expect)
        }
        outcome => outcome,
    }
}

fn parse_into<'b>(
    bytes: &'b [u8],
    fields: &mut [httparse::Header<'b>],
    expect: &Expect,
) -> Result<Option<(usize, u16, Framing)>, Unreadable> {
    let mut response = httparse::Response::new(fields);
    let mut config = httparse::ParserConfig::default();
    // What servers of old send is not what a bench is to judge.
    config
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true);
    let length = match config.parse_response(&mut response, bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Unreadable::TooManyFields),
        Err(_) => return Err(Malformed),
    };
    let status = response.code.ok_or(Malformed)?;
    let old = response.version == Some(0);
    Ok(Some((length, status, framing(response.headers, old, status, expect)?)))
}

fn framing(
    fields: &[httparse::Header<'_>],
    old: bool,
    status: u16,
    expect: &Expect,
) -> Result<Framing, Unreadable> {
    let (mut length, mut pid) = (None, None);
    // The last coding of all Transfer-Encoding fields, which are one list.
    let mut coding: Option<&[u8]> = None;
    let (mut says_close, mut says_keep) = (false, false);
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            // Equal ones count as one (RFC 9110, 8.6).
            for one in field.value.split(|b| *b == b',') {
                let one = number(one).ok_or(Malformed)?;
                if length.replace(one).is_some_and(|before| before != one) {
                    return Err(Malformed);
                }
            }
        } else if is("transfer-encoding") {
            coding = field.value.rsplit(|b| *b == b',').next();
        } else if is("connection") {
            says_close |= contains(field.value, "close");
            says_keep |= contains(field.value, "keep-alive");
        } else if expect.pids.as_deref().is_some_and(is) {
            pid = number(field.value).and_then(|pid| u32::try_from(pid).ok());
        }
    }
    let none = expect.no_body || matches!(status, 100..200 | 204 | 304);
    let state = match (none, coding, length) {
        (true, ..) => State::Length(0),
        (_, Some(coding), _) if contains(coding, "chunked") => State::Size,
        // Another coding than chunked says nothing about where the body ends.
        (_, Some(_), _) => State::UntilClose,
        (_, _, Some(length)) => State::Length(length),
        _ => State::UntilClose,
    };
    // Both lengths, or chunks of HTTP/1.0, are framing that the next response may not be trusted to (RFC 9112, 6.1).
    let doubtful = coding.is_some() && (old || length.is_some());
    let keeps = !says_close && !doubtful && (!old || says_keep);
    Ok((state, keeps, pid))
}

/// Digits and nothing else, not even a sign.
fn number(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    let are_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| are_digits)?.parse().ok()
}

fn contains(value: &[u8], word: &str) -> bool {
    let mut words = value.split(|b| *b == b',');
    words.any(|given| given.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

/// The process in a body that begins with `Handled by PID 4711`.
fn named(lead: &[u8]) -> Option<u32> {
    let rest = lead.strip_prefix(b"Handled by PID ")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    number(&rest[..digits]).and_then(|pid| u32::try_from(pid).ok())
}

#[cfg(test)]
mod tests;
