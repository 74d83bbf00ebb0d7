//! HPACK (RFC 7541): reads the header fields of responses, and writes those of requests.

use std::collections::VecDeque;

use super::huffman;
use crate::load::http_response::parse_decimal;

/// Size of both dynamic tables until a SETTINGS frame changes it.
pub(super) const DEFAULT_TABLE_SIZE: usize = 4096;
/// What an entry of a dynamic table counts beside its name and value (RFC 7541, 4.1).
const ENTRY_OVERHEAD: usize = 32;
/// Dynamic table size update to 0 (RFC 7541, 6.3).
pub(super) const TABLE_SIZE_ZERO: u8 = 0x20;

/// The static table (RFC 7541, appendix A).
#[rustfmt::skip]
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"), (":scheme", "http"),
    (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""), ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""), ("accept-ranges", ""), ("accept", ""), ("access-control-allow-origin", ""), ("age", ""),
    ("allow", ""), ("authorization", ""), ("cache-control", ""), ("content-disposition", ""), ("content-encoding", ""),
    ("content-language", ""), ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""),
    ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""),
    ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""),
    ("set-cookie", ""), ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

/// What the load needs of a header block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct HeaderFields {
    /// `:status`; `None` in trailers.
    pub(super) status: Option<u16>,
    pub(super) content_length: Option<u64>,
    /// The pid in the header field that names it.
    pub(super) pid: Option<u32>,
    /// Bytes of names and values, without pseudo-header fields.
    pub(super) bytes: u64,
    /// Whether a value that the load needs is no number, or there are two that differ.
    pub(super) is_malformed: bool,
}

/// A header block that is no HPACK, after which no other one can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HpackError;

/// Name and value.
type TableEntry = (Box<[u8]>, Box<[u8]>);

/// Decodes the header blocks of one connection, in the order in which they come.
#[derive(Debug, Default)]
pub(super) struct HeaderDecoder {
    /// The newest entry first.
    dynamic: VecDeque<TableEntry>,
    /// Size of `dynamic` (RFC 7541, 4.1).
    size: usize,
    /// By how much the server limits it below [`DEFAULT_TABLE_SIZE`].
    reduced_by: usize,
    /// The last block, if it does not change the table: a server repeats it until a second has passed, and an equal block need
    /// not be decoded again.
    last_block: Vec<u8>,
    last_fields: HeaderFields,
    /// Kept to save an allocation each time.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl HeaderDecoder {
    /// Returns what a header block says; `pid_header` is the field that names the pid.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        pid_header: Option<&str>,
    ) -> Result<HeaderFields, HpackError> {
        if !self.last_block.is_empty() && block == self.last_block {
            return Ok(self.last_fields);
        }
        let mut fields = HeaderFields::default();
        let mut reader = BlockReader { rest: block };
        let mut changes_table = false;
        while let Some(first) = reader.rest.first().copied() {
            // The pattern of the first bits tells what follows.
            match first.leading_zeros() {
                0 => self.read_indexed(&mut reader)?,
                2 => {
                    let size = reader.read_integer(5)?;
                    self.reduced_by = DEFAULT_TABLE_SIZE.checked_sub(size).ok_or(HpackError)?;
                    self.evict();
                    changes_table = true;
                    continue;
                }
                1 => {
                    self.read_literal(&mut reader, 6)?;
                    self.insert();
                    changes_table = true;
                }
                _ => self.read_literal(&mut reader, 4)?,
            }
            fields.add(&self.name, &self.value, pid_header);
        }
        self.last_block.clear();
        if !changes_table {
            self.last_block.extend_from_slice(block);
            self.last_fields = fields;
        }
        Ok(fields)
    }

    /// Reads a field that is in a table into `name` and `value`.
    fn read_indexed(&mut self, reader: &mut BlockReader) -> Result<(), HpackError> {
        let index = reader.read_integer(7)?;
        self.copy_entry(index, true)
    }

    /// Reads a literal field into `name` and `value`.
    fn read_literal(&mut self, reader: &mut BlockReader, prefix: u32) -> Result<(), HpackError> {
        match reader.read_integer(prefix)? {
            0 => reader.read_string(&mut self.name)?,
            index => self.copy_entry(index, false)?,
        }
        reader.read_string(&mut self.value)
    }

    /// Copies the name of an entry, and its value if asked.
    fn copy_entry(&mut self, index: usize, with_value: bool) -> Result<(), HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError)?;
        let (name, value) = match STATIC_TABLE.get(index) {
            Some((name, value)) => (name.as_bytes(), value.as_bytes()),
            None => {
                let entry = self.dynamic.get(index - STATIC_TABLE.len()).ok_or(HpackError)?;
                (&*entry.0, &*entry.1)
            }
        };
        self.name.clear();
        self.name.extend_from_slice(name);
        if with_value {
            self.value.clear();
            self.value.extend_from_slice(value);
        }
        Ok(())
    }

    /// Adds `name` and `value` to the table.
    fn insert(&mut self) {
        self.size += self.name.len() + self.value.len() + ENTRY_OVERHEAD;
        self.dynamic.push_front((self.name.as_slice().into(), self.value.as_slice().into()));
        self.evict();
    }

    /// Removes the oldest entries until the rest fits.
    fn evict(&mut self) {
        while self.size > DEFAULT_TABLE_SIZE - self.reduced_by
            && let Some((name, value)) = self.dynamic.pop_back()
        {
            self.size -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }
}

impl HeaderFields {
    fn add(&mut self, name: &[u8], value: &[u8], pid_header: Option<&str>) {
        if let Some(pseudo) = name.strip_prefix(b":") {
            let status = parse_decimal(value).and_then(|status| u16::try_from(status).ok());
            let status = status.filter(|status| (100..1000).contains(status));
            self.is_malformed |= pseudo != b"status" || status.is_none() || self.status.is_some();
            self.status = status;
            return;
        }
        self.bytes += (name.len() + value.len()) as u64;
        if name == b"content-length" {
            let length = parse_decimal(value);
            let differs = self.content_length.is_some() && self.content_length != length;
            self.is_malformed |= length.is_none() || differs;
            self.content_length = length;
        }
        if pid_header.is_some_and(|header| header.as_bytes().eq_ignore_ascii_case(name)) {
            self.pid = parse_decimal(value).and_then(|pid| u32::try_from(pid).ok());
        }
    }
}

/// The bytes of a header block that are still to be read.
struct BlockReader<'b> {
    rest: &'b [u8],
}

impl BlockReader<'_> {
    /// Reads an integer with a prefix of `prefix` bits (RFC 7541, 5.1).
    fn read_integer(&mut self, prefix: u32) -> Result<usize, HpackError> {
        let (first, mut rest) = self.rest.split_first().ok_or(HpackError)?;
        let largest = (1usize << prefix) - 1;
        let mut number = usize::from(*first) & largest;
        // Four more bytes: up to 2^28, far beyond any index or length.
        let mut shifts = [0, 7, 14, 21].iter();
        let mut has_more = number == largest;
        while has_more {
            let (next, after) = rest.split_first().ok_or(HpackError)?;
            rest = after;
            number += usize::from(next & 0x7f) << shifts.next().ok_or(HpackError)?;
            has_more = next & 0x80 != 0;
        }
        self.rest = rest;
        Ok(number)
    }

    /// Reads a string (RFC 7541, 5.2) in place of what is in `text`.
    fn read_string(&mut self, text: &mut Vec<u8>) -> Result<(), HpackError> {
        let is_huffman = self.rest.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.read_integer(7)?;
        let (encoded, rest) = self.rest.split_at_checked(length).ok_or(HpackError)?;
        self.rest = rest;
        text.clear();
        match is_huffman {
            true => huffman::decode(encoded, text).ok_or(HpackError),
            false => {
                text.extend_from_slice(encoded);
                Ok(())
            }
        }
    }
}

/// The header block of a request, in the forms in which it is sent.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestBlock {
    /// Without the dynamic table.
    pub(super) plain: Vec<u8>,
    /// Adds fields that are not in the static table to the dynamic one.
    pub(super) inserting: Vec<u8>,
    /// Uses the fields that `inserting`, and no other block, has added.
    pub(super) indexed: Vec<u8>,
}

impl RequestBlock {
    /// Encodes fields in this order.
    pub(super) fn encode(fields: &[(String, Vec<u8>)]) -> RequestBlock {
        let size = |(name, value): &(String, Vec<u8>)| name.len() + value.len() + ENTRY_OVERHEAD;
        let mut block = RequestBlock::default();
        // What the table has no room for is sent as literal.
        let (mut inserted, mut room) = (Vec::new(), DEFAULT_TABLE_SIZE);
        for field in fields {
            let (name, value) = field;
            let in_table = STATIC_TABLE.iter().position(|(known, fixed)| {
                known == name && !value.is_empty() && fixed.as_bytes() == value
            });
            if let Some(index) = in_table {
                for form in [&mut block.plain, &mut block.inserting, &mut block.indexed] {
                    write_integer(form, 0x80, 7, index + 1);
                }
                continue;
            }
            write_literal(&mut block.plain, 0, 4, name, value);
            if size(field) <= room {
                room -= size(field);
                inserted.push(block.indexed.len());
                write_literal(&mut block.inserting, 0x40, 6, name, value);
                // The index is written below, when the number of later entries is known.
                block.indexed.push(0);
            } else {
                write_literal(&mut block.inserting, 0, 4, name, value);
                write_literal(&mut block.indexed, 0, 4, name, value);
            }
        }
        let mut shifted = 0;
        for (number, at) in inserted.iter().enumerate() {
            // The newest entry has the lowest index.
            let mut index = Vec::new();
            write_integer(&mut index, 0x80, 7, STATIC_TABLE.len() + inserted.len() - number);
            let at = at + shifted;
            shifted += index.len() - 1;
            drop(block.indexed.splice(at..=at, index));
        }
        block
    }
}

/// Writes an integer into the last `prefix` bits of a byte with these `flags`, and into further bytes.
fn write_integer(block: &mut Vec<u8>, flags: u8, prefix: u32, number: usize) {
    let largest = (1usize << prefix) - 1;
    if number < largest {
        return block.push(flags | number as u8);
    }
    block.push(flags | largest as u8);
    let mut rest = number - largest;
    while rest >= 0x80 {
        block.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    block.push(rest as u8);
}

fn write_literal(block: &mut Vec<u8>, flags: u8, prefix: u32, name: &str, value: &[u8]) {
    match STATIC_TABLE.iter().position(|(known, _)| *known == name) {
        Some(index) => write_integer(block, flags, prefix, index + 1),
        None => {
            block.push(flags);
            write_integer(block, 0, 7, name.len());
            block.extend_from_slice(name.as_bytes());
        }
    }
    write_integer(block, 0, 7, value.len());
    block.extend_from_slice(value);
}

#[cfg(test)]
#[path = "hpack_tests.rs"]
mod tests;
