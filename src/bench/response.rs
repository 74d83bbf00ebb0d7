//! Responses of HTTP/1 as they come in pieces: where each one ends, and what is wanted of it. Pure.

/// The largest head that is read.
const LARGEST_HEAD: usize = 64 * 1024;
/// As much of a body as may say who handled the request.
const LEAD: usize = 32;
/// The longest line of a chunked body: a size with extensions, or a trailer.
const LONGEST_LINE: usize = 8 * 1024;

/// One response, read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Whether another request may follow on its connection.
    pub(super) keeps: bool,
    /// The process that says it has answered.
    pub(super) pid: Option<u32>,
    /// Bytes of head and body.
    pub(super) bytes: u64,
}

/// What came is not HTTP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What is known before anything comes.
#[derive(Debug, Clone, Default)]
pub(super) struct Expect {
    /// Responses have no body, whatever they say: the method is HEAD.
    pub(super) no_body: bool,
    /// The field that tells the process.
    pub(super) pids: Option<String>,
}

/// Finds the ends of responses in the bytes of one connection.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
    /// The beginning of a head that has not come whole, or of a line of a chunked body.
    partial: Vec<u8>,
    answer: Answer,
    lead: [u8; LEAD],
    lead_length: usize,
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
    pub(super) fn new() -> Reader {
        let lead = [0; LEAD];
        Reader { state: State::Head, partial: Vec::new(), answer: NOTHING, lead, lead_length: 0 }
    }

    /// Takes what has come: how many bytes of it were used, and the response that ended with them. Without one,
    /// all were used.
    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        expect: &Expect,
    ) -> Result<(usize, Option<Answer>), Malformed> {
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
    pub(super) fn end(&mut self) -> Option<Answer> {
        (self.state == State::UntilClose).then(|| self.finish())
    }

    /// Bytes taken, and whether the response is over.
    fn step(&mut self, bytes: &[u8], expect: &Expect) -> Result<(usize, bool), Malformed> {
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
                    0..=2 => self.skip(bytes, left),
                    _ => self.body(bytes, left - 2),
                };
                let left = left - taken as u64;
                self.state = if left == 0 { State::Size } else { State::Chunk(left) };
                Ok((taken, false))
            }
            State::Size | State::Trailers => self.line(bytes),
        }
    }

    fn head(&mut self, bytes: &[u8], expect: &Expect) -> Result<(usize, bool), Malformed> {
        let before = self.partial.len();
        if before > 0 {
            self.partial.extend_from_slice(bytes);
        }
        let all = if before > 0 { &self.partial } else { bytes };
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(all).map_err(|_| Malformed)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial if all.len() > LARGEST_HEAD => return Err(Malformed),
            httparse::Status::Partial => {
                if before == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                return Ok((bytes.len(), false));
            }
        };
        let status = response.code.ok_or(Malformed)?;
        let old = response.version == Some(0);
        let (state, keeps, pid) = framing(response.headers, old, status, expect)?;
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

    fn skip(&mut self, bytes: &[u8], left: u64) -> usize {
        let taken = bytes.len().min(left as usize);
        self.answer.bytes += taken as u64;
        taken
    }

    /// A line of a chunked body that is no data.
    fn line(&mut self, bytes: &[u8]) -> Result<(usize, bool), Malformed> {
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |at| at + 1);
        self.partial.extend_from_slice(&bytes[..taken]);
        self.answer.bytes += taken as u64;
        if self.partial.len() > LONGEST_LINE {
            return Err(Malformed);
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
        let size = std::str::from_utf8(digits).ok().and_then(|d| u64::from_str_radix(d, 16).ok());
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
        std::mem::replace(&mut self.answer, NOTHING)
    }
}

/// How the body ends, whether the connection stays, and who the fields say has answered.
fn framing(
    fields: &[httparse::Header<'_>],
    old: bool,
    status: u16,
    expect: &Expect,
) -> Result<(State, bool, Option<u32>), Malformed> {
    let (mut length, mut chunked, mut keeps, mut pid) = (None, false, !old, None);
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            length = Some(number(field.value).ok_or(Malformed)?);
        } else if is("transfer-encoding") {
            chunked = contains(field.value, "chunked");
        } else if is("connection") {
            keeps =
                !contains(field.value, "close") && (keeps || contains(field.value, "keep-alive"));
        } else if expect.pids.as_deref().is_some_and(is) {
            pid = number(field.value).and_then(|pid| u32::try_from(pid).ok());
        }
    }
    let none = expect.no_body || matches!(status, 100..200 | 204 | 304);
    let state = match (none, chunked, length) {
        (true, ..) => State::Length(0),
        (_, true, _) => State::Size,
        (_, _, Some(length)) => State::Length(length),
        _ => State::UntilClose,
    };
    Ok((state, keeps, pid))
}

fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
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
#[path = "response_tests.rs"]
mod tests;
